import copy

import pytest
import yaml

from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError


@pytest.fixture
def smallest():
    """The keys that a study file must have."""
    return {"name": "own", "data": {"source": "folder", "path": "images"}, "model": {"name": "alexnet"}}


@pytest.fixture
def study_file(tmp_path, smallest):
    """Write the smallest study file with dotted keys changed: ``study_file({"data.path": "elsewhere"})``."""

    def write(changes=(), text=None):
        tree = copy.deepcopy(smallest)
        for dotted, value in dict(changes).items():
            *sections, last = dotted.split(".")
            section = tree
            for key in sections:
                section = section.setdefault(key, {})
            section[last] = value
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(tree) if text is None else text)
        return path

    return write


@pytest.fixture
def refusal():
    """Read a study file that must be refused, and return the one line that says why."""

    def message_of(path, **overrides):
        with pytest.raises(ConfigError) as caught:
            StudyConfig.from_file(path, **overrides)
        message = str(caught.value)
        assert "\n" not in message
        return message

    return message_of
