import hashlib
import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from conftest import SMALL
from PIL import Image

import hscc_search
from hscc_search.config import StudyConfig, find_study_file
from hscc_search.data import load_dataset, split
from hscc_search.errors import CompressionError, ExportError
from hscc_search.export.bundle import export
from hscc_search.search.stored_study import read_study
from hscc_search.search.study import run_study

FILES = {
    "model.onnx",
    "model.safetensors",
    "architecture.json",
    "config.yaml",
    "metrics.json",
    "README.md",
    "manifest.json",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return run_study(StudyConfig.from_file("digits", trials=6, storage=f"sqlite:///{folder}/studies.db", **SMALL))


@pytest.fixture(scope="module")
def exported(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "knee"
    point = max(study.front, key=lambda point: point.settings["regions"])
    assert point.settings["regions"] > 1
    export(study, point, study.config, out)
    return out


@pytest.fixture(scope="module")
def test_part(study):
    data = study.config.data
    return split(load_dataset(data), data.validation, data.test, data.split_seed).test


def scores(exported, part, batch):
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    pixels = part.images.astype(np.float32) / 255
    return np.concatenate(
        [session.run(None, {"images": pixels[i : i + batch]})[0] for i in range(0, len(pixels), batch)]
    )


def test_the_folder_holds_what_it_should_and_the_manifest_knows_it(exported):
    assert {path.name for path in exported.iterdir()} == FILES
    hashes = json.loads((exported / "manifest.json").read_text())["sha256"]
    assert hashes == {
        name: hashlib.sha256((exported / name).read_bytes()).hexdigest() for name in FILES - {"manifest.json"}
    }


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_onnx_runtime_alone_gets_the_recorded_images_right(exported, test_part, batch):
    metrics = json.loads((exported / "metrics.json").read_text())["test"]
    right = int((scores(exported, test_part, batch).argmax(1) == test_part.labels).sum())
    assert right == metrics["right"]
    assert right / len(test_part) == metrics["accuracy"]


def test_the_loaded_module_gives_the_same_scores(exported, test_part):
    module = hscc_search.load(exported)
    with torch.no_grad():
        by_torch = module(torch.from_numpy(test_part.images).float() / 255).numpy()
    np.testing.assert_allclose(by_torch, scores(exported, test_part, 64), rtol=1e-3, atol=1e-3)


def test_metrics_hold_dense_validation_and_test(exported, study):
    metrics = json.loads((exported / "metrics.json").read_text())
    point = study.points[metrics["trial"]]
    assert metrics["settings"] == point.settings
    for part in ("dense", "validation", "test"):
        assert {"accuracy", "macro_f1", "flops"} <= metrics[part].keys()
    assert metrics["dense"]["flops"] == study.dense["flops"]
    assert metrics["validation"]["flops"] == metrics["test"]["flops"] == point["flops"]
    assert metrics["validation"]["accuracy"] == point["accuracy"]
    assert metrics["dense"]["validation"]["accuracy"] == study.dense["accuracy"]


def test_the_loaded_module_trains(exported):
    module = hscc_search.load(exported)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_another_image_size_is_refused(exported):
    with pytest.raises(CompressionError, match=r"takes shape \(n, 3, 16, 16\), not \(1, 3, 24, 24\)"):
        hscc_search.load(exported)(torch.zeros(1, 3, 24, 24))


def test_a_changed_file_is_refused(exported, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(ExportError, match="was changed since the export"):
        hscc_search.load(copy)


def test_an_existing_folder_is_left_alone(study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("kept")
    with pytest.raises(ExportError, match="exists"):
        export(study, study.points[0], study.config, out)
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_a_failed_export_leaves_nothing(study, tmp_path, monkeypatch):
    from hscc_search.export import bundle

    def fail(*arguments):
        raise ExportError("full disk")

    monkeypatch.setattr(bundle, "model_card", fail)
    with pytest.raises(ExportError, match="full disk"):
        export(study, study.points[0], study.config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_config_yaml_names_no_place_of_this_machine(exported):
    stored = yaml.safe_load((exported / "config.yaml").read_text())
    assert stored["settings"].keys() == {"regions", "clusters", "energy"}
    assert (
        not {"path", "checkpoint", "storage"}
        & (stored["study"] | stored["study"]["data"] | stored["study"]["model"]).keys()
    )


def test_the_model_card_runs(exported, test_part, monkeypatch, capsys, tmp_path):
    card = (exported / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(exported)
    image = tmp_path / "image.png"
    Image.fromarray(test_part.images[0].transpose(1, 2, 0)).save(image)
    exec(code.replace('"image.jpg"', repr(str(image))), {})
    assert capsys.readouterr().out.strip() == str(scores(exported, test_part, 1)[0].argmax())


def test_other_images_are_refused_before_anything_is_trained_on_them(study, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))
    data = study.config.data.model_copy(update={"source": "folder", "path": image_folder({"cat": 12, "dog": 12})})
    told = []
    with pytest.raises(ExportError, match="are not those of study digits"):
        export(
            study, study.points[0], study.config.model_copy(update={"data": data}), tmp_path / "out", "cpu", told.append
        )
    assert {progress.task for progress in told} == {"reading images"}
    assert not (tmp_path / "out").exists()


def test_a_study_that_fine_tunes_exports_what_it_measured(cli, tmp_path):
    study_file = yaml.safe_load(find_study_file("digits").read_text())
    study_file |= {"name": "tuned", "trials": 2, "finetuning": {"epochs": 1}}
    study_file["space"] = {**SMALL["space"], "energy": {"low": 0.5, "high": 0.6}}
    study_file["training"]["epochs"], study_file["compression"]["calibration_images"] = 2, 64
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(study_file))
    cli("run", "tuned.yaml", cwd=tmp_path)
    told = cli("export", "tuned", "--select", "trial:1", "--out", "out", cwd=tmp_path).stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert f"test accuracy {metrics['test']['accuracy']:.4f}" in told

    read = read_study(f"sqlite:///{tmp_path}/hscc-studies.db", "tuned")
    assert read.config.finetuning.epochs == 1
    assert metrics["validation"]["accuracy"] == read.points[1]["accuracy"]
    assert metrics["test"]["flops"] == read.points[1]["flops"] < 0.5 * read.dense["flops"]
    plain = StudyConfig.from_tree(
        {**study_file, "name": "plain", "finetuning": {}, "storage": f"sqlite:///{tmp_path}/plain.db"}, "plain"
    )
    untuned = run_study(plain).points
    assert [point.settings for point in untuned[:1]] == [point.settings for point in read.points[:1]]
    assert untuned[0]["flops"] == read.points[0]["flops"]
    assert untuned[0]["accuracy"] <= read.points[0]["accuracy"]
    assert hscc_search.load(tmp_path / "out")(torch.rand(2, 3, 16, 16)).shape == (2, 10)
    assert "fine-tuned for 1 epoch." in (tmp_path / "out" / "README.md").read_text()

    storage = ("--storage", f"sqlite:///{tmp_path}/plain.db", "--select", "trial:0")
    cli("export", "plain", *storage, "--finetune", "1", "--out", "after", cwd=tmp_path)
    after = json.loads((tmp_path / "after" / "metrics.json").read_text())
    assert after["finetuning_epochs"] == 1
    assert after["validation"]["accuracy"] == read.points[0]["accuracy"]
    before = export(run_study(plain), untuned[0], plain, tmp_path / "before")
    assert before["finetuning_epochs"] == 0
    assert before["validation"]["accuracy"] == untuned[0]["accuracy"]
