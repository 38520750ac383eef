"""The examples of studies/OUTPUTS.md, from data to a folder: networks that answer with a dict, and with maps."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT
from PIL import Image

from hscc_search.data import load_dataset, split
from hscc_search.evaluation.predictions import pixel_values
from hscc_search.export.loading import load
from hscc_search.export.run import Folder
from hscc_search.export.verifying import verify
from hscc_search.study.stored_study import read_study

PAGE = (ROOT / "studies" / "OUTPUTS.md").read_text()
BLOCKS = re.findall(r"```(yaml|python|console)\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = {"heads": dict(BLOCKS[:3]), "blobs": dict(BLOCKS[3:])}
# Scores of one image.
SHAPES = {"heads": (10,), "blobs": (2, 32, 32)}


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request, cli, tmp_path_factory):
    """The name and the folder of an example after its commands."""
    name, folder = request.param, tmp_path_factory.mktemp("outputs")
    (folder / f"{name}.yaml").write_text(EXAMPLES[name]["yaml"])
    (folder / f"{name}.py").write_text(EXAMPLES[name]["python"])
    for command in EXAMPLES[name]["console"].splitlines():
        cli(*shlex.split(command)[1:], cwd=folder)
    return name, folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name):
    lines = [line for block in EXAMPLES[name].values() for line in block.splitlines() if line]
    assert len(lines) < 30


def test_both_exported_models_answer_alike_and_as_measured(example, monkeypatch):
    name, folder = example
    monkeypatch.chdir(folder)  # where the network, and the function that picks its scores, are imported from
    exported, study = folder / f"{name}-compressed", read_study(f"sqlite:///{folder}/hscc-studies.db", name)
    data = study.config.data
    test = split(load_dataset(data), data.validation, data.test, data.split_seed).test
    pixels = pixel_values(torch.from_numpy(np.asarray(test.images)))
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    by_onnx = session.run(None, {"images": pixels.numpy()})[0]
    with torch.no_grad():
        by_torch = load(exported, trust=True)(pixels).numpy()
    assert by_torch.shape == (len(test), *SHAPES[name])
    np.testing.assert_allclose(by_onnx, by_torch, rtol=1e-3, atol=1e-3)

    metrics, predicted = json.loads((exported / "metrics.json").read_text()), by_onnx.argmax(axis=1)
    said = metrics["compressed"]["test"]["metrics"]
    assert said["accuracy"] == pytest.approx((predicted == test.labels).mean(), abs=1e-12)
    assert said["accuracy"] > 1.1 * np.bincount(test.labels.ravel()).max() / test.labels.size
    if name == "blobs":
        both, either = (predicted & test.labels).sum(), predicted.sum() + test.labels.sum()
        assert said["dice"] == pytest.approx(2 * both / either, abs=1e-3)  # of scores in float16
        assert said["dice"] > 0.8


def test_a_folder_is_verified_where_its_code_is_trusted(example, monkeypatch):
    name, folder = example
    monkeypatch.chdir(folder)
    exported = folder / f"{name}-compressed"
    assert "is code of somebody's own: --trust runs it" in verify(exported).not_run["model.safetensors"]
    assert verify(exported, trust=True).gaps.keys() == {"model.onnx", "model.safetensors"}
    image = folder / "image.png"
    Image.new("RGB", (40, 40), (90, 120, 150)).save(image)
    answer = Folder(exported).answer(image)
    assert sum(answer["probabilities" if name == "heads" else "shares"].values()) == pytest.approx(1)


def test_the_card_runs(example, monkeypatch):
    name, folder = example
    code = re.search(r"```python\n(.*?)```", (folder / f"{name}-compressed" / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(folder / f"{name}-compressed")
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Image.new("RGB", (40, 40), (90, 120, 150)).save("../image.jpg")
    values = {}
    exec(code, values)
    assert values["scores"].shape == (1, *SHAPES[name])
