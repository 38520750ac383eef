import re

import pytest
import yaml

from hscc_search.config import StudyConfig
from hscc_search.config.reference import COMMAND, reference, reference_path
from hscc_search.config.section import Section

REFERENCE = reference()


def sections(section=StudyConfig):
    """All sections of a study file, the file itself first."""
    yield section
    for field in section.model_fields.values():
        for annotation in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(annotation, type) and issubclass(annotation, Section):
                yield from sections(annotation)


def test_the_reference_is_current():
    assert reference_path().read_text(encoding="utf-8") == REFERENCE, f"make it again: {COMMAND}"


@pytest.mark.parametrize("section", dict.fromkeys(sections()), ids=lambda section: section.__name__)
def test_every_key_says_what_it_means_and_is_in_the_reference(section):
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name}"
        assert re.search(rf"^\| `{name}` \| .+ \| .+ \| {re.escape(field.description)} \|$", REFERENCE, re.MULTILINE)


@pytest.mark.parametrize(
    "row",
    [
        "| `trials` | whole number, 1 to 1000000 | `40` |",
        "| `image_size` | whole number, 8 to 1024 or list of 2; each: whole number, 8 to 1024 | `224` |",
        "| `validation` | number, > 0 and < 0.5 | `0.15` |",
        "| `std` | list; each: number, 0.0001 to 1000 | `[0.229, 0.224, 0.225]` |",
        '| `objectives` | list of 2 to 4; each: text | `["flops", "accuracy"]` |',
        '| `per` | `network`, `stage`, `layer` | `"network"` |',
        "| `energy` | section | `{low: 0.6, high: 0.99}` |",
        "| `budget` | section | none |",
        "| `path` | path | none |",
        "| `flip` | true or false | `true` |",
        "| `data` | section | required |",
    ],
)
def test_the_reference_says_range_and_default(row):
    assert row in REFERENCE


def test_defaults_of_the_reference_are_those_of_a_file_that_says_nothing():
    tree = {"name": "own", "data": {"source": "digits"}, "model": {"name": "digits_cnn"}}
    stored = StudyConfig.from_tree(tree, "test").stored()
    for key, default in re.findall(
        r"^\| `(\w+)` \| .* \| `(.*)` \| .*$", REFERENCE.partition("## `data`")[0], re.MULTILINE
    ):
        assert yaml.safe_load(default) == stored[key]
