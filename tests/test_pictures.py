"""The example of studies/PICTURES.md, from images to a folder."""

import json
import re
import shlex
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT
from PIL import Image

from hscc_search.config import StudyConfig
from hscc_search.data import load_dataset, split
from hscc_search.evaluation.normalisation import channel_statistics
from hscc_search.evaluation.predictions import pixel_values
from hscc_search.export.loading import load
from hscc_search.study.stored_study import read_study

PAGE = (ROOT / "studies" / "PICTURES.md").read_text()
COMMANDS = re.search(r"```console\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()


def block(kind):
    return re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the study, its network, and 16-bit images of 12-bit values: coarse and fine waves."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    rows, columns = np.mgrid[:60, :120]
    for name, length in (("coarse", 30), ("fine", 9)):
        (folder / "IMAGES" / name).mkdir(parents=True)
        for number in range(40):
            wave = np.sin((columns * np.cos(number) + rows * np.sin(number)) * 2 * np.pi / length)
            values = 2000 + 1500 * wave + generator.normal(0, 150, wave.shape)
            Image.fromarray(values.astype(np.uint16)).save(folder / "IMAGES" / name / f"{number}.png")
    (folder / "grey.yaml").write_text(block("yaml"))
    (folder / "grey_network.py").write_text(block("python"))
    return folder


@pytest.fixture(scope="module")
def config(cli, folder):
    """The stored study, after the example has run."""
    for command in COMMANDS:
        cli(*shlex.split(command)[1:], cwd=folder)
    return read_study(f"sqlite:///{folder}/hscc-studies.db", "grey").config


def test_the_example_is_short():
    assert sum(len(block(kind).splitlines()) for kind in ("yaml", "python", "console")) < 30


def test_the_normalisation_of_the_train_part_is_stored_and_exported(config, folder):
    data = config.data
    parts = split(load_dataset(data), data.validation, data.test, data.split_seed)
    assert (data.mean, data.std) == channel_statistics(parts.train.images)
    architecture = json.loads((folder / "grey-compressed" / "architecture.json").read_text())
    said = {key: architecture[key] for key in ("image_size", "channels", "resize", "bounds", "mean", "std")}
    assert said == {
        "image_size": [96, 160],
        "channels": 1,
        "resize": "pad",
        "bounds": [0, 4095],
        "mean": list(data.mean),
        "std": list(data.std),
    }
    again = StudyConfig.from_file(folder / "grey.yaml").as_started(config)
    assert not again.differences(config)


def test_both_models_answer_alike_to_what_the_card_reads(config, folder, monkeypatch):
    exported, dataset = folder / "grey-compressed", load_dataset(config.data)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    code = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(exported)
    monkeypatch.syspath_prepend(folder)  # load builds the network again
    monkeypatch.syspath_prepend(exported)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for position in (0, 17, 63):
        variables = {}
        exec(code.replace('"../image.png"', repr(dataset.names[position])), variables)
        pixels = pixel_values(torch.from_numpy(dataset.images[position : position + 1].copy()))
        assert pixels.shape == (1, 1, 96, 160)
        np.testing.assert_array_equal(variables["pixels"], pixels.numpy())
        by_onnx = session.run(None, {"images": pixels.numpy()})[0]
        np.testing.assert_array_equal(variables["scores"], by_onnx)
        with torch.no_grad():
            np.testing.assert_allclose(load(exported, trust=True)(pixels).numpy(), by_onnx, rtol=1e-4, atol=1e-4)
