import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_values import form_in_format_3, names, network_forms, shares

from hscc_search.compression.form import NetworkForm, total_rank
from hscc_search.errors import ExportError
from hscc_search.export.folder import (
    ARCHITECTURE,
    FORMAT,
    Architecture,
    Pictures,
    read_architecture,
)
from hscc_search.export.manifest import write_json

channels = st.tuples(shares, shares, shares)
sides = st.integers(8, 1024)
pictures = st.builds(
    Pictures,
    image_size=st.one_of(sides, st.tuples(sides, sides)),
    channels=st.integers(1, 8),
    resize=st.sampled_from(["squeeze", "crop", "pad"]),
    resize_to=st.one_of(st.none(), sides),
    bounds=st.one_of(st.none(), st.tuples(shares, shares)),
    values=st.sampled_from(["uint8", "uint16", "float32"]),
)
architectures = st.builds(
    Architecture,
    model=names,
    classes=st.lists(names, min_size=2, unique=True).map(tuple),
    pictures=pictures,
    mean=channels,
    std=channels,
    form=network_forms,
)


def through_json(tree):
    return json.loads(json.dumps(tree))


@given(architectures)
def test_an_architecture_comes_back_as_it_was_stored(architecture):
    assert Architecture.from_stored(through_json(architecture.stored())) == architecture


@given(architectures)
def test_an_architecture_of_format_3_is_read(architecture):
    """Format 3 had total ranks, which is all that the module is built from."""
    tree = {**architecture.stored(), "format": 3, "form": form_in_format_3(architecture.form)}
    for later in ("hscc_search", "channels", "resize", "resize_to", "bounds", "values"):
        del tree[later]
    read = Architecture.from_stored(through_json(tree))
    assert read.pictures == Pictures(architecture.pictures.image_size)
    assert read.form.folds == architecture.form.folds
    assert read.form.layers.keys() == architecture.form.layers.keys()
    for name, layer in architecture.form.layers.items():
        again = read.form.layers[name]
        assert [[total_rank(ranks) for ranks in regions] for regions in again.ranks] == [
            [total_rank(ranks) for ranks in regions] for regions in layer.ranks
        ]
        assert (again.output_size, again.pieces, again.input_ranks) == (
            layer.output_size,
            layer.pieces,
            layer.input_ranks,
        )


def test_a_newer_folder_is_refused_by_both_formats_and_versions(tmp_path):
    stored = Architecture(
        "digits_cnn", ("a", "b"), Pictures(16), (0.5,) * 3, (0.5,) * 3, NetworkForm((), (), {})
    ).stored()
    own_version = stored["hscc_search"]
    write_json(tmp_path / ARCHITECTURE, {**stored, "format": FORMAT + 1, "hscc_search": "7.8.9"})
    message = rf"has format 5, written by hscc-search 7.8.9: hscc-search {own_version} reads the formats 3 and 4"
    with pytest.raises(ExportError, match=message):
        read_architecture(tmp_path)


STORED = Architecture("digits_cnn", ("a", "b"), Pictures(16), (0.5,) * 3, (0.5,) * 3, NetworkForm((), (), {})).stored()
LAYER = {"output_size": [8, 8], "ranks": [[[4]]], "pieces": [], "input_ranks": [None]}
PLAIN = {"layer": "2", "weight": [1, 1], "bias": True, "convolution": {}}
FORM = {"plain": [], "folds": [], "layers": {}}
OF_TWO = "has to be a list of 2 values"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"maps": [8]}, "maps: [8] is not allowed: it has to be an empty list or a list of 2 values"),
        ({"maps": [8, 8, 8]}, "maps: [8, 8, 8] is not allowed: it has to be an empty list or a list of 2 values"),
        ({"maps": {"height": 8}}, "maps: {'height': 8} is not allowed: it has to be a list"),
        ({"maps": [8, 0]}, "maps.1: 0 is not allowed: it has to be greater than 0"),
        ({"image_size": [8]}, "image_size: [8] is not allowed: it has to be a whole number or a list of 2 values"),
        ({"image_size": [8, "8"]}, "image_size.1: '8' is not allowed: it has to be a whole number"),
        ({"bounds": [0, 1, 2]}, f"bounds: [0, 1, 2] is not allowed: it {OF_TWO}"),
        ({"bounds": [0]}, f"bounds: [0] is not allowed: it {OF_TWO}"),
        ({"resize": "stretch"}, "resize: 'stretch' is not allowed: it has to be 'squeeze', 'crop' or 'pad'"),
        ({"classes": ["a", 1]}, "classes.1: 1 is not allowed: it has to be a text"),
        ({"form": "none"}, "form: 'none' is not allowed: it has to be a mapping"),
        ({"form": {"plain": [], "layers": {}}}, "form.folds is missing"),
        (
            {"form": {"plain": [PLAIN, {**PLAIN, "weight": [1]}], "folds": [], "layers": {}}},
            "form.plain.1.weight: a layer",
        ),
        (
            {"form": {**FORM, "layers": {"a.0": {**LAYER, "output_size": [8]}}}},
            f"form.layers.a.0.output_size: [8] is not allowed: it {OF_TWO}",
        ),
        (
            {"form": {**FORM, "layers": {"2": {**LAYER, "input_ranks": []}}}},
            "form.layers.2.input_ranks: 0 for the 1",
        ),
        ({"form": {**FORM, "folds": [{"convolution": "0"}]}}, "form.folds.0.batch_norm is missing"),
    ],
)
def test_what_an_architecture_may_not_hold_is_told_with_its_place_in_the_file(tmp_path, changes, said):
    write_json(tmp_path / ARCHITECTURE, {**STORED, **changes})
    with pytest.raises(ExportError) as refused:
        read_architecture(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / ARCHITECTURE} is damaged: {said}")


@pytest.mark.parametrize("name", ["image_size", "form", "maps", "classes"])
def test_a_key_that_an_architecture_lacks_is_named(tmp_path, name):
    write_json(tmp_path / ARCHITECTURE, {key: value for key, value in STORED.items() if key != name})
    with pytest.raises(ExportError, match=rf"architecture.json is damaged: {name} is missing$"):
        read_architecture(tmp_path)
