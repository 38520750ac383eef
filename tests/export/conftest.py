import shutil

import numpy as np
import onnxruntime
import pytest
from conftest import SMALL

from hscc_search.config import StudyConfig
from hscc_search.data import load_dataset, split
from hscc_search.export.export import export
from hscc_search.export.manifest import write_manifest
from hscc_search.study.study import run_study


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return run_study(StudyConfig.from_file("digits", trials=6, storage=f"sqlite:///{folder}/studies.db", **SMALL))


@pytest.fixture(scope="session")
def exported(study, tmp_path_factory):
    """An exported folder with the network of a trial that divides its layers into regions."""
    out = tmp_path_factory.mktemp("export") / "divided"
    point = max(study.front, key=lambda point: point.sample["regions"])
    assert point.sample["regions"] > 1
    export(study, point, study.config, out)
    return out


@pytest.fixture
def changed(exported, tmp_path):
    """A copy of the exported folder with some file changed: ``changed(name, change)``, a function of its bytes.

    The manifest fits what was changed, as somebody would see to who means harm; with ``sealed=False`` it does not.
    """

    def make(name, change, sealed=True):
        copy = tmp_path / "changed"
        shutil.copytree(exported, copy)
        (copy / name).write_bytes(change((copy / name).read_bytes()))
        if sealed and name != "manifest.json":
            write_manifest(copy)
        return copy

    return make


@pytest.fixture(scope="session")
def test_part(study):
    data = study.config.data
    return split(load_dataset(data), data.validation, data.test, data.split_seed).test


@pytest.fixture(scope="session")
def onnx_scores():
    """Run ``model.onnx`` of a folder over images of uint8: ``onnx_scores(folder, images)``."""

    def run(folder, images, batch_size=64):
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        pixels = np.asarray(images).astype(np.float32) / 255
        batches = [pixels[first : first + batch_size] for first in range(0, len(pixels), batch_size)]
        return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])

    return run
