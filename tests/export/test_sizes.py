"""Folders whose sizes and names were made up: refused in one line, before anything of that size is made."""

import json
import os
import re
import shutil
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_values import changed_trees
from torch import nn

import hscc_search
from hscc_search.dense.networks import build_network
from hscc_search.errors import ExportError, HsccError
from hscc_search.export.folder import ARCHITECTURE, WEIGHTS, read_architecture
from hscc_search.export.loading import build_module
from hscc_search.export.run import Folder, Refused
from hscc_search.export.sizes import check_form, stored_shapes
from hscc_search.export.verifying import verify

LAYER = ("form", "layers", "2")


def set_in(tree, path, value):
    *outer, last = path
    for key in outer:
        tree = tree[key]
    assert last in tree or isinstance(tree, list)
    tree[last] = value


HOSTILE = {
    "an image of a million pixels a side": (("image_size",), 10**6),
    "an image beyond every number": (("image_size",), [8, 10**400]),
    "a larger image than that of the weights": (("image_size",), 1024),
    "a billion channels": (("channels",), 10**9),
    "more channels than the weights have": (("channels",), 1000),
    "a million classes": (("classes",), ["x"] * 10**6),
    "more classes than the weights have": (("classes",), [str(number) for number in range(60_000)]),
    "a rank of a billion": ((*LAYER, "ranks", 0, 0), [10**9]),
    "a rank that the weights do not have": ((*LAYER, "ranks", 0, 0), [3]),
    "an input rank of a billion": ((*LAYER, "input_ranks"), [10**9]),
    "a hundred thousand regions": ((*LAYER, "ranks", 0), [[4]] * 10**5),
    "a map of a million rows": ((*LAYER, "output_size"), [10**6, 8]),
    "a piece far outside of its map": ((*LAYER, "pieces", 0, "bottom"), 10**9),
    "a piece of no region": ((*LAYER, "pieces", 0, "region"), 99),
    "pieces that leave a gap": ((*LAYER, "pieces", 0, "bottom"), 1),
    "a plain layer of a terabyte": (
        ("form", "plain"),
        [{"layer": "2", "weight": [10**6, 10**6], "bias": False, "convolution": {}}],
    ),
    "a layer that is not there": (("form", "folds"), [{"convolution": "nowhere", "batch_norm": "2"}]),
    "another network": (("model",), "vgg19"),
    "no known network": (("model",), "skynet"),
    "a module of the system": (("model",), "os:system"),
    "a module of the system that picks scores": (("output",), "os:system"),
    "a number for a name": (("model",), 7),
    "no mean for each channel": (("mean",), [0.5]),
    "a text for a form": (("form",), "none"),
    "another format": (("format",), {"a": 1}),
    "a format that is no whole number": (("format",), 4.0),
    "more layers than any network": (("form", "plain"), [{}] * 20_000),
    "a text for a side": (("image_size",), "8"),
    "a truth for a side": (("image_size",), [True, 8]),
    "a side that is no whole number": (("image_size",), 8.0),
    "three sides": (("image_size",), [8, 8, 8]),
    "no way to bring an image to size": (("resize",), "stretch"),
    "bounds that are one": (("bounds",), [1, 1]),
    "an infinite bound": (("bounds",), [0, float("inf")]),
    "a list for the ranks of a layer": ((*LAYER, "ranks"), {"0": [[4]]}),
    "no list for the plain layers": (("form", "plain"), {}),
}


# Words of pydantic and of Python's own errors.
FOREIGN = re.compile(
    r"validation|\bshould\b|[Tt]uple|required|something else|unpack|indices|subscript|argument|object|Error\b"
)


@pytest.fixture
def most_memory():
    """The bytes that this process has taken at most since the test began, beyond what it had then."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def peak():
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return 1024 * int(line.split()[1])

    before = peak()
    return lambda: peak() - before


@pytest.mark.parametrize(("path", "value"), HOSTILE.values(), ids=HOSTILE)
def test_what_a_folder_makes_up_is_refused_in_one_line_and_takes_no_memory(changed, most_memory, path, value):
    def change(content):
        tree = json.loads(content)
        set_in(tree, path, value)
        return json.dumps(tree).encode()

    folder = changed(ARCHITECTURE, change)
    for attacked in (hscc_search.load, verify):
        if attacked is verify and value == "os:system":  # the files are as they were, and it is told what was not run
            assert "os:system is code of somebody's own" in verify(folder).not_run["model.safetensors"]
            continue
        with pytest.raises(HsccError) as refused:
            attacked(folder)
        assert "\n" not in str(refused.value)
        assert not FOREIGN.search(str(refused.value))
    assert most_memory() < 300e6


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"image_size": ' + b"9" * 10_000 + b"}", b" " * (1 << 26)],
    ids=["empty", "cut off", "a list", "nested", "no UTF-8", "a long number", "large"],
)
def test_an_architecture_that_is_no_json_is_refused_in_one_line(changed, content):
    with pytest.raises(HsccError) as refused:
        hscc_search.load(changed(ARCHITECTURE, lambda _: content))
    assert "\n" not in str(refused.value)


def header_of(tree, rest=b""):
    content = json.dumps(tree).encode()
    return struct.pack("<Q", len(content)) + content + rest


def tensor(shape, begin, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        header_of({f"t{number}": tensor([0], 0, 0) for number in range(150_000)}),
        struct.pack("<Q", 200_000_000) + b"{" + b" " * 1000,
        header_of([]),
        header_of({"a": tensor([10**9, 10**9], 0, 16)}, bytes(16)),
        header_of({"a": tensor([2**40, 2**40], 0, 4)}, bytes(4)),
        header_of({"a": tensor([4], 0, 10**12)}),
        header_of({"a": tensor([4], -16, 0)}, bytes(16)),
        header_of({"a": tensor([4], 0, 16), "b": tensor([4], 0, 16)}, bytes(16)),
        header_of({"__metadata__": {"a": "a"}}),
        header_of({"a": tensor([1], 0, 4)}, bytes(4)),
    ],
    ids=[
        *(
            "empty",
            "a header without end",
            "a header of too many tensors",
            "a header longer than the file",
            "no mapping",
            "a shape larger than its bytes",
        ),
        *("a product that overflows", "bytes beyond the file", "negative bytes", "bytes twice", "a name of itself"),
        "other tensors",
    ],
)
def test_a_weights_file_that_was_made_up_is_refused_in_one_line_and_takes_no_memory(changed, most_memory, content):
    folder = changed(WEIGHTS, lambda _: content)
    with pytest.raises(HsccError) as refused:
        hscc_search.load(folder)
    assert "\n" not in str(refused.value)
    assert most_memory() < 100e6


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: None])
def test_the_header_of_a_weights_file_is_read_of_a_file_alone(tmp_path, make):
    make(tmp_path / WEIGHTS)
    with pytest.raises(ExportError, match=f"{WEIGHTS} is (missing|no regular file)$"):
        stored_shapes(tmp_path / WEIGHTS)


def test_the_form_of_what_was_exported_fits_its_weights(exported):
    architecture, shapes = read_architecture(exported), stored_shapes(exported / WEIGHTS)
    check_form(architecture.form, shapes)
    assert shapes["mean"] == (1, 3, 1, 1)
    own = hscc_search.load(exported).state_dict()
    assert {name: tuple(value.shape) for name, value in own.items()} == shapes


def test_code_of_somebodys_own_runs_only_where_it_is_trusted_or_given(changed, tmp_path, monkeypatch):
    (tmp_path / "somebody.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\nfrom hscc_search.dense.networks import DigitsCNN\n"
        "def network(classes):\n    return DigitsCNN(classes, 8)\n"
    )
    monkeypatch.chdir(tmp_path)
    folder = changed(ARCHITECTURE, lambda content: content.replace(b'"digits_cnn"', b'"somebody:network"'))
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(HsccError, match=r"names 'somebody:network'.*trust=True"):
        hscc_search.load(folder)
    given = hscc_search.load(folder, build_network("digits_cnn", 10, 8))(images)
    assert not (tmp_path / "ran").exists()
    torch.testing.assert_close(hscc_search.load(folder, trust=True)(images), given)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["model", "output"])
@pytest.mark.parametrize("name", ["somebody", "somebody:", "somebody:network", ""])
def test_no_module_is_imported_for_a_folder_that_is_not_trusted(changed, tmp_path, monkeypatch, key, name):
    (tmp_path / "somebody.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    folder = changed(ARCHITECTURE, lambda content: json.dumps({**json.loads(content), key: name}).encode())
    with pytest.raises(HsccError, match=r"^[^\n]+$"):
        hscc_search.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def loose(exported, tmp_path_factory):
    """A copy of the exported folder that has no manifest, its architecture, and what it answers to two images."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("loose") / "folder")
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8)
    return folder, json.loads((folder / ARCHITECTURE).read_text()), images, build_module(folder)(images)


# Keys that may have values of several types, and one that is for people.
OF_SEVERAL_TYPES = {"image_size", "resize_to", "bounds", "output", "ranks", "input_ranks", "mean", "std", "hscc_search"}


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_an_architecture_with_anything_in_any_place_gives_the_same_network_or_is_refused(loose, data):
    folder, tree, images, answers = loose
    now, path, before, value = data.draw(changed_trees(tree))
    (folder / ARCHITECTURE).write_text(json.dumps(now))
    with suppress(Refused):
        Folder(folder)
    try:
        module = build_module(folder)
    except HsccError as refused:
        assert "\n" not in str(refused)
        assert not FOREIGN.search(str(refused))
        return
    assert Folder(folder).classes == tuple(now["classes"])
    assert type(value) is type(before) or OF_SEVERAL_TYPES & set(path), (path, before, value)
    if "region" not in path:  # which filters a piece has is not to be seen from sizes
        torch.testing.assert_close(module(images), answers)


@pytest.mark.parametrize("name", ["regnet_y_32gf", "vit_h_14"])
def test_a_folder_that_names_a_huge_network_is_refused_before_it_is_built(changed, most_memory, name):
    """RegNet computes while it is built; that one has 145 million parameters, and ViT-H 632 million."""

    def change(content):
        form = {"plain": [], "folds": [], "layers": {}}
        return json.dumps({**json.loads(content), "model": name, "image_size": 224, "form": form}).encode()

    with pytest.raises(HsccError, match="in its weights file it has no such tensor"):
        hscc_search.load(changed(ARCHITECTURE, change))
    assert most_memory() < 300e6
    assert nn.Linear(2, 2).weight.device.type == "cpu"  # and nobody else's networks are empty
