import getpass
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from conftest import ROOT, SMALL
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from safetensors.torch import save_file

import hscc_search
from hscc_search.config import StudyConfig, find_study_file
from hscc_search.dense.networks import build_network
from hscc_search.errors import ExportError, StudyError
from hscc_search.evaluation.quality import measure_quality
from hscc_search.export.export import export
from hscc_search.export.formats import Extras
from hscc_search.export.verifying import verify
from hscc_search.study.study import run_study

FILES = {
    "model.onnx",
    "model.safetensors",
    "architecture.json",
    "config.yaml",
    "metrics.json",
    "README.md",
    "manifest.json",
    "reference.json",
    "run.py",
}


def test_the_folder_holds_what_it_should_and_the_manifest_knows_it(exported):
    assert {path.name for path in exported.iterdir()} == FILES
    hashes = json.loads((exported / "manifest.json").read_text())["sha256"]
    assert hashes == {
        name: hashlib.sha256((exported / name).read_bytes()).hexdigest() for name in FILES - {"manifest.json"}
    }


def test_everybody_may_read_the_folder(exported):
    assert exported.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in exported.iterdir()} == {0o644}


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_onnx_runtime_alone_gets_the_recorded_images_right(exported, test_part, onnx_scores, batch_size):
    metrics = json.loads((exported / "metrics.json").read_text())
    right = int((onnx_scores(exported, test_part.images, batch_size).argmax(1) == test_part.labels).sum())
    assert right == metrics["right"]
    assert metrics["test_images"] == len(test_part)
    assert right / len(test_part) == metrics["compressed"]["test"]["metrics"]["accuracy"]


def test_metrics_hold_both_networks_on_both_parts(exported, study):
    metrics = json.loads((exported / "metrics.json").read_text())
    point = study.points[metrics["trial"]]
    assert metrics["sample"] == point.sample
    dense, compressed = metrics["dense"], metrics["compressed"]
    assert metrics["finetuning_epochs"] == 0
    for name in ("macs", "flops", "parameters", "megabytes"):
        assert dense["cost"][name] == study.dense[name]
        assert compressed["cost"][name] == point[name]
    named = {f"{measure}:{name}" for measure in ("recall", "f1") for name in metrics["classes"]}
    for results in (dense, compressed):
        for part in ("validation", "test"):
            for values in (results[part]["metrics"], results[part]["errors"]):
                assert values.keys() == {"accuracy", "macro_f1"} | named


def test_what_was_measured_on_the_validation_part_is_what_the_study_has(exported, study):
    metrics = json.loads((exported / "metrics.json").read_text())
    record = study.record
    for part, measured in (("dense", study.dense), ("compressed", study.points[metrics["trial"]])):
        validation = metrics[part]["validation"]
        on_images = [name for name in validation["metrics"] if not name.startswith("f1:")]
        assert {name: measured[name] for name in on_images}.items() <= validation["metrics"].items()
        assert measured.errors.items() <= validation["errors"].items()
        predicted = np.frombuffer(measured.predictions, "<u2")
        quality = measure_quality(predicted, record.labels, record.classes, record.config.seed)
        assert validation == {"metrics": quality.metrics, "errors": quality.errors}
    assert metrics["validation_images"] == len(record.labels)


def test_the_onnx_file_says_what_it_is_and_holds_plain_operators(exported, study):
    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    metrics = json.loads((exported / "metrics.json").read_text())
    said = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(said["classes"]) == metrics["classes"]
    assert said["input"] == "float32, shape (images, 3, 8, 8), values 0 to 1"
    assert json.loads(said["mean"]) == list(study.config.data.mean)
    assert json.loads(said["std"]) == list(study.config.data.std)
    operators = {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} == {""}
    assert not [name for name in operators if "Scatter" in name]  # regions are cut and joined
    contents = metrics["onnx"]
    assert contents["bytes"] == (exported / "model.onnx").stat().st_size
    assert (set(contents["operators"]), contents["opset"]) == (operators, model.opset_import[0].version)
    listed = f"`model.onnx` has opset {contents['opset']} and the operators {', '.join(contents['operators'])}."
    assert listed in (exported / "README.md").read_text()


def test_no_byte_of_a_folder_tells_of_the_machine(exported):
    place = exported.parent.parent
    telling = [place, ROOT, Path.home(), Path.cwd(), Path(sys.prefix), os.environ.get("HSCC_CACHE", place)]
    paths = [str(path).encode() for path in telling if len(Path(path).parts) > 1]
    names = [re.escape(name).encode() for name in (getpass.getuser(), socket.gethostname())]
    source = re.compile(rb"site-packages|\.py\"?, line \d")
    words = re.compile(rb"(?<![\w.])(" + b"|".join(names) + rb")(?!\w)")
    for path in exported.iterdir():
        content = path.read_bytes()
        assert not [place for place in paths if place in content], path.name
        assert not source.search(content), path.name
        # Weights may hold the few letters of a short name by chance.
        assert path.suffix in (".safetensors", ".onnx") or not words.search(content), path.name


def test_an_export_that_is_killed_leaves_nothing_half_written(study, exported, tmp_path):
    """As many kills at random moments as HSCC_KILLS says, and then an export that nobody kills; each is signed."""
    kills, chance = int(os.environ.get("HSCC_KILLS", "3")), random.Random(0)
    context = multiprocessing.get_context("fork")
    kept = shutil.copytree(exported, tmp_path / "kept")
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    died, key = 0, Ed25519PrivateKey.generate()
    (tmp_path / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    arguments, signed = (study, study.points[0], study.config, tmp_path / "out"), {"extras": Extras(key=key)}
    for _ in range(kills):
        process = context.Process(target=export, args=arguments, kwargs=signed)
        process.start()
        while process.is_alive() and not any(tmp_path.glob(".out.*")):  # it compresses
            time.sleep(0.01)
        process.join(chance.uniform(0, 1.5))
        process.kill()
        process.join()
        died += process.exitcode != 0
        if (tmp_path / "out").exists():  # it was quicker
            verify(tmp_path / "out", key=tmp_path / "key.pub")
            shutil.rmtree(tmp_path / "out")
        assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert died
    export(*arguments, **signed)
    assert verify(tmp_path / "out", key=tmp_path / "key.pub").signed_by
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "out", "key.pub"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "manifest.json.sig"}
    assert (tmp_path / "out" / "manifest.json.sig").stat().st_mode & 0o777 == 0o644
    assert "`hscc-search verify DIR --key PUBLIC` checks it" in (tmp_path / "out" / "README.md").read_text()


def test_an_existing_folder_is_left_alone(study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("kept")
    with pytest.raises(ExportError, match="exists"):
        export(study, study.points[0], study.config, out)
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_a_failed_export_leaves_nothing(study, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ExportError("full disk")

    monkeypatch.setattr("hscc_search.export.export.model_card", fail)
    with pytest.raises(ExportError, match="full disk"):
        export(study, study.points[0], study.config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_config_yaml_names_no_path_of_this_machine(exported):
    stored = yaml.safe_load((exported / "config.yaml").read_text())
    assert stored["sample"].keys() == {"regions", "clusters", "energy"}
    assert (
        not {"path", "checkpoint", "storage"}
        & (stored["study"] | stored["study"]["data"] | stored["study"]["model"]).keys()
    )


def test_other_images_are_refused_before_anything_is_trained_on_them(study, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))
    data = study.config.data.model_copy(update={"source": "folder", "path": image_folder({"cat": 12, "dog": 12})})
    config = study.config.model_copy(update={"data": data})
    reported = []
    with pytest.raises(StudyError, match=r"study digits was started on other images than those at .*--data PATH"):
        export(study, study.points[0], config, tmp_path / "out", "cpu", reported.append)
    assert {progress.task for progress in reported} == {"reading images"}
    assert not (tmp_path / "out").exists()


def test_another_dense_network_is_refused(study, tmp_path):
    save_file(build_network("digits_cnn", 10, 8).state_dict(), tmp_path / "untrained.safetensors")
    config = study.config.with_paths(None, tmp_path / "untrained.safetensors")
    with pytest.raises(StudyError, match=r"study digits was started with another dense network: .*--checkpoint FILE"):
        export(study, study.points[0], config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_that_fine_tunes_exports_what_it_measured(cli, tmp_path):
    study_file = yaml.safe_load(find_study_file("digits").read_text())
    study_file |= {"trials": 2, "storage": f"sqlite:///{tmp_path}/studies.db"}
    study_file["space"] = {**SMALL["space"], "energy": {"low": 0.5, "high": 0.6}}
    study_file["data"]["image_size"] = 8
    study_file["training"]["epochs"], study_file["compression"]["calibration_images"] = 2, 64
    finetuned, plain = (
        run_study(StudyConfig.from_tree({**study_file, "name": name, "finetuning": {"epochs": epochs}}, name))
        for name, epochs in (("finetuned", 1), ("plain", 0))
    )
    assert finetuned.points[0].sample == plain.points[0].sample
    assert finetuned.points[0]["flops"] == plain.points[0]["flops"]
    assert finetuned.points[0].predictions != plain.points[0].predictions

    metrics = export(finetuned, finetuned.points[1], finetuned.config, tmp_path / "out")
    assert metrics.finetuning_epochs == finetuned.config.finetuning.epochs == 1
    assert metrics.compressed.validation.metrics["accuracy"] == finetuned.points[1]["accuracy"]
    assert metrics.compressed.cost.flops == finetuned.points[1]["flops"] < 0.5 * finetuned.dense["flops"]
    assert "fine-tuned for 1 epoch." in (tmp_path / "out" / "README.md").read_text()

    options = ("--storage", study_file["storage"], "--select", "trial:0", "--finetune", "1", "--out", "after")
    output = cli("export", "plain", *options, cwd=tmp_path).stdout
    after = json.loads((tmp_path / "after" / "metrics.json").read_text())
    assert f"test accuracy {after['compressed']['test']['metrics']['accuracy']:.4f}" in output
    assert after["finetuning_epochs"] == 1
    before, now = plain.points[0]["accuracy"], after["compressed"]["validation"]["metrics"]["accuracy"]
    said = f"fine-tuning took the validation accuracy from {before:.4f} to {now:.4f}"
    assert said in output
    assert (f"warning: {said}: lower finetuning.learning_rate" in output) == (now < before)
    assert after["compressed"]["validation"]["metrics"]["accuracy"] == finetuned.points[0]["accuracy"]
    assert "fine-tuned for 1 epoch." in (tmp_path / "after" / "README.md").read_text()
    assert hscc_search.load(tmp_path / "out").training is False
