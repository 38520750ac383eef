"""Studies that sample the number format: what a trial of 8-bit integers measures, stores and exports."""

import copy
import json
import time

import numpy as np
import onnx
import pytest
import torch
from conftest import SMALL

from hscc_search.config import StudyConfig
from hscc_search.dense.opened import open_dense
from hscc_search.errors import ConfigError
from hscc_search.export.export import export
from hscc_search.files import sha256
from hscc_search.progress import Notice
from hscc_search.runtime.onnx import onnx_scores
from hscc_search.storage import existing_storage
from hscc_search.study import trial
from hscc_search.study.deployment import deployed
from hscc_search.study.opening import open_again
from hscc_search.study.space import Space, precision_of
from hscc_search.study.stored_study import find_study
from hscc_search.study.study import run_study
from hscc_search.study.trial import prepare

KEYS = {
    **SMALL,
    "data__image_size": 16,
    "space": {**SMALL["space"], "precision": ["float32", "int8"]},
    "objectives": ["megabytes", "accuracy"],
}
START = [
    {"regions": regions, "clusters": 2, "energy": 0.95, "precision": precision}
    for regions in (1, 4)
    for precision in ("float32", "int8")
]


def config_of(storage, **keys):
    return StudyConfig.from_file("digits", storage=storage, **{**KEYS, "start": START, "trials": 4, **keys})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return run_study(config_of(f"sqlite:///{tmp_path_factory.mktemp('int8')}/studies.db"), "cpu")


def pairs(study):
    by_number = {point.trial: point for point in study.points}
    return [(by_number[0], by_number[1]), (by_number[2], by_number[3])]


def test_a_trial_in_integers_costs_the_same_operations_and_a_third_of_the_size(study):
    for exact, rounded in pairs(study):
        assert rounded["macs"] == exact["macs"]
        assert rounded["parameters"] == exact["parameters"]
        assert rounded["megabytes"] < exact["megabytes"] / 2
        assert abs(rounded["accuracy"] - exact["accuracy"]) <= 0.02
        assert not exact.int8
        assert rounded.int8["divergence"] <= 0.005
    assert 1 in {point.trial for point in study.front}


def test_sizes_are_those_of_files_of_either_precision(study, tmp_path):
    exact, _ = pairs(study)[0]
    export(study, exact, study.config, tmp_path / "float")
    assert exact["megabytes"] == (tmp_path / "float" / "model.onnx").stat().st_size / 1e6
    weights = sum(value.numel() for value in open_again(study.record, study.config, "cpu").network.parameters())
    assert study.dense["megabytes"] == study.record.dense.cost.megabytes > 4 * weights / 1e6


def test_the_exported_file_is_the_one_that_was_measured(study, tmp_path):
    for _, rounded in pairs(study):
        out = tmp_path / str(rounded.trial)
        metrics = export(study, rounded, study.config, out)
        assert sha256(out / "model.onnx") == rounded.int8["sha256"]
        assert metrics.int8["as_measured"]
        assert metrics.compressed.cost.megabytes == rounded["megabytes"] == (out / "model.onnx").stat().st_size / 1e6
        types = {tensor.data_type for tensor in onnx.load(out / "model.onnx").graph.initializer}
        assert onnx.TensorProto.INT8 in types
        opened = open_again(study.record, study.config, "cpu")
        predicted = onnx_scores(out / "model.onnx", opened.parts.validation).argmax(axis=1)
        assert predicted.astype("<u2").tobytes() == rounded.predictions
        assert "byte by byte, the file that the search measured" in (out / "README.md").read_text()
        assert json.loads((out / "metrics.json").read_text())["int8"]["divergence"] < 0.005


def test_latency_is_that_of_the_file(tmp_path, monkeypatch):
    run_file = trial.file_runner

    def slowly(path):
        run = run_file(path)
        integers = onnx.TensorProto.INT8 in {tensor.data_type for tensor in onnx.load(path).graph.initializer}
        return (lambda images: (time.sleep(0.05), run(images))) if integers else run

    monkeypatch.setattr(trial, "file_runner", slowly)
    config = config_of(
        f"sqlite:///{tmp_path}/studies.db", objectives=["latency", "accuracy"], trials=2, latency={"batch_size": 8}
    )
    exact, rounded = run_study(config, "cpu").points
    assert rounded["latency"] > 5 * exact["latency"] > 0


@pytest.mark.parametrize("precision", [["float32", "int8"], ["float32"]], ids=["int8", "float"])
def test_the_dense_network_is_timed_as_the_trials_are(precision):
    """Beside files, which normalise their images themselves, it is a file, too."""
    space = {**KEYS["space"], "precision": precision}
    config = config_of("sqlite:///x.db", objectives=["latency", "accuracy"], start=[], space=space)
    opened = open_dense(config, "cpu")
    given = torch.rand(4, *config.data.shape, generator=torch.Generator().manual_seed(0))
    (scores,) = prepare(opened).dense_runner(given)
    expected = deployed(copy.deepcopy(opened.network), opened) if "int8" in precision else opened.network
    np.testing.assert_allclose(scores, expected(given).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_a_refined_trial_in_integers_is_rounded_after_refining(tmp_path):
    refine = {"trials": "all", "epochs": 2, "learning_rate": 0.02}
    config = config_of(f"sqlite:///{tmp_path}/studies.db", trials=2, refine=refine)
    exact, rounded = run_study(config, "cpu").points
    assert exact.refined == rounded.refined
    assert rounded.int8
    assert not exact.int8


def test_integers_need_their_runtime_and_something_to_gain(tmp_path):
    with pytest.raises(ConfigError, match=r"latency\.runtime: torch does not run the int8 of space\.precision"):
        config_of("sqlite:///x.db", objectives=["latency", "accuracy"], latency={"runtime": "torch"})
    told = []
    run_study(
        config_of(f"sqlite:///{tmp_path}/studies.db", objectives=["flops", "accuracy"], trials=1), "cpu", told.append
    )
    lines = [step.task for step in told if isinstance(step, Notice)]
    assert any("int8 changes neither FLOPs nor parameters" in line for line in lines)


def test_precision_is_sampled_like_any_value_and_no_part_of_the_setting():
    space = Space(config_of("sqlite:///x.db"), {})
    assert space.distributions["precision"].choices == ("float32", "int8")
    assert space.setting(START[0]) == space.setting(START[1])
    assert space.key(START[0]) != space.key(START[1])
    assert precision_of({"energy": 0.9}) == "float32"


def test_a_study_without_precision_goes_on_as_it_was(study):
    stored = find_study(existing_storage(study.config.storage), study.config.name)
    assert set(stored.trials[0].params) == {"regions", "clusters", "energy", "precision"}
    before = StudyConfig.from_file("digits", **SMALL)
    tree = before.stored()
    del tree["space"]["precision"]
    assert StudyConfig.from_stored(tree, "stored").differences(before) == []
    assert np.isfinite([point["accuracy"] for point in study.points]).all()
