"""The whole way on the real images: small images and a small network, so that it takes less than a minute."""

import json

import numpy as np
import onnxruntime
import pytest

from hscc_search.config import StudyConfig
from hscc_search.data import load_dataset, split

STUDY = """
name: mri
data: {path: placeholder, image_size: 8}
model: {name: digits_cnn}
training: {epochs: 3, learning_rate: 0.02}
compression: {calibration_images: 128}
refine: {most: 1, epochs: 2}
trials: 6
"""


@pytest.fixture(scope="module")
def study_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mri") / "mri.yaml"
    path.write_text(STUDY)
    return path


def test_from_a_study_file_to_a_folder_that_runs(cli, mri, study_file):
    folder = study_file.parent
    cli("run", study_file.name, "--data", mri, cwd=folder)
    front = json.loads(cli("front", "mri", "--format", "json", cwd=folder).stdout)
    assert front["study"] == "mri"
    for point in front["front"]:
        metrics = point["metrics"]
        assert metrics["flops"] == 2 * metrics["macs"]
        assert 0 <= metrics["accuracy"] <= 1
        assert 0 <= point["probability"] <= 1
    fewest = min(point["metrics"]["flops"] for point in front["front"])
    assert fewest < front["dense"]["metrics"]["flops"] / 2
    cli("export", "mri", "--out", "out", cwd=folder)
    metrics = json.loads((folder / "out" / "metrics.json").read_text())

    data = StudyConfig.from_file(study_file, data__path=mri).data
    test = split(load_dataset(data), data.validation, data.test, data.split_seed).test
    session = onnxruntime.InferenceSession(folder / "out" / "model.onnx")
    scores = session.run(None, {"images": test.images[:].astype(np.float32) / 255})[0]
    assert int((scores.argmax(1) == test.labels).sum()) == metrics["right"]
    assert metrics["dense"]["test"]["metrics"]["accuracy"] > 0.5


def test_the_shipped_study_reads_the_set(mri):
    config = StudyConfig.from_file(
        "brain_tumor_alexnet", data__path=mri, data__image_size=8
    )  # as above, so that the set is decoded once
    dataset = load_dataset(config.data)
    assert dict(zip(dataset.classes, np.bincount(dataset.labels).tolist(), strict=True)) == {
        "glioma_tumor": 926,
        "meningioma_tumor": 937,
        "no_tumor": 500,
        "pituitary_tumor": 901,
    }


def test_data_check_tells_what_is_wrong_in_the_set(cli, mri, tmp_path):
    found = json.loads(cli("data", "check", mri, "--format", "json", cwd=tmp_path).stdout)
    assert found["images"] == 3264
    assert found["exact_copies"] == 237
    assert found["unreadable"] == []
    assert len(found["label_conflicts"]) >= 8
