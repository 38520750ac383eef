"""Studies and exported folders of version 0.1.0, which are still read and continued."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import optuna
import pytest
import torch
from safetensors.torch import load_file, save_file

import hscc_search
from hscc_search.compression.form import total_rank
from hscc_search.config.dense import RefineConfig
from hscc_search.errors import ExportError, StudyError
from hscc_search.export.export import export
from hscc_search.export.manifest import write_json, write_manifest
from hscc_search.export.verifying import verify
from hscc_search.storage import existing_storage
from hscc_search.study import record as keys
from hscc_search.study.stored_study import find_study, read_study
from hscc_search.study.study import run_study, work_on

BEFORE = Path(__file__).parent / "before"
EXPORTED = BEFORE / "exported-0.1.0"
FRONT = json.loads((BEFORE / "front-0.1.0.json").read_text())
# Trial 4, which was exported.
KNEE = FRONT["knee"]


# A second stage that takes a moment.
SHORT = {"most": 1, "epochs": 2}


@pytest.fixture
def url(tmp_path):
    """A copy of the database."""
    shutil.copy(BEFORE / "studies-0.1.0.sqlite", tmp_path / "studies.db")
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture
def config(url):
    """The configuration of the study, with the paths of its files on this machine."""
    stored = read_study(url, "before").config.with_paths(None, BEFORE / "dense-0.1.0.safetensors")
    return stored.model_copy(update={"storage": url, "refine": RefineConfig(**SHORT)})


@pytest.fixture
def folder(tmp_path):
    """A copy of the exported folder."""
    shutil.copytree(EXPORTED, tmp_path / "exported")
    return tmp_path / "exported"


def test_a_study_is_read_with_the_same_front(url):
    study = read_study(url, "before")
    assert len(study.points) == FRONT["trials"] == 6
    assert {objective.metric: objective.direction for objective in study.objectives} == FRONT["objectives"]
    assert study.hypervolume == pytest.approx(FRONT["hypervolume"], rel=1e-12)
    assert study.reference == (tuple(FRONT["reference"].values()), tuple(FRONT["ideal"].values()))
    assert (study.dense.metrics, study.dense.errors) == (FRONT["dense"]["metrics"], FRONT["dense"]["errors"])
    assert [point.trial for point in study.front] == [trial["trial"] for trial in FRONT["front"]]
    for point, trial in zip(study.front, FRONT["front"], strict=True):
        assert point.sample == trial["settings"]
        assert (point.metrics, point.errors) == (trial["metrics"], trial["errors"])
        assert point.feasible
        assert point.violations == {name: max(0, excess) for name, excess in trial["constraints"].items()}


def test_a_study_is_read_with_the_same_confidence(url):
    study = read_study(url, "before")
    probability = {trial["trial"]: trial["probability"] for trial in FRONT["front"]}
    assert {point.trial: study.confidence.probability[point.trial] for point in study.front} == probability
    assert study.confidence.knee == KNEE
    assert study.close == FRONT["close"] == []


def test_a_study_is_read_with_the_plan_of_each_layer(url):
    study = read_study(url, "before")
    for point in study.points:
        plan = study.plan_of(point.trial)
        assert [layer.name for layer in plan] == ["0", "2", "5", "7", "11", "13"]
        assert sum(layer.macs for layer in plan) == point["macs"]
        assert sum(layer.macs_dense for layer in plan) == study.dense["macs"]
        for layer in plan[:4]:
            stage = "stage1" if layer.name in ("0", "2") else "stage2"
            clusters = {len(ranks) for regions in layer.ranks for ranks in regions if ranks is not None}
            assert layer.regions == point.sample[f"regions@{stage}"]
            assert clusters <= {point.sample[f"clusters@{stage}"]}
    exported = json.loads((EXPORTED / "architecture.json").read_text())["form"]["layers"]
    for layer in study.plan_of(KNEE):
        totals = [[total_rank(ranks) for ranks in regions] for regions in layer.ranks]
        assert totals == exported[layer.name]["ranks"]


def test_a_study_goes_on(url, config):
    before = read_study(url, "before")
    after = run_study(config.model_copy(update={"trials": 8}))
    assert len(after.searched.points) == 8
    assert len(after.points) > 8  # 0.1.0 knew no refining, and its studies get a second stage as any other
    assert after.points[:6] == before.points
    assert [after.plan_of(trial) for trial in range(6)] == [before.plan_of(trial) for trial in range(6)]
    # The new trials are on the scale of the old ones: a plan's MACs are the network's.
    assert all(sum(layer.macs for layer in after.plan_of(trial)) == after.points[trial]["macs"] for trial in (6, 7))
    stored = optuna.load_study(study_name="before", storage=existing_storage(url)).user_attrs[keys.STUDY]
    assert stored["version"] == keys.FORMAT


def test_a_worker_that_joins_raises_the_format_before_it_adds_trials(url, config):
    """Or the version before would read a study of its own format and stumble over trials of a later one."""
    wanted = config.model_copy(update={"trials": 8})
    optuna_study = find_study(existing_storage(url), "before")
    stored = optuna_study.user_attrs[keys.STUDY]
    assert stored["version"] < keys.FORMAT
    optuna_study.set_user_attr(keys.STUDY, {**stored, "config": {**stored["config"], "trials": 8, "refine": SHORT}})
    study = work_on(url, "before", checkpoint=wanted.model.checkpoint, device="cpu")
    assert len(study.searched.points) == 8
    assert find_study(existing_storage(url), "before").user_attrs[keys.STUDY]["version"] == keys.FORMAT
    assert study.config.trials == 8


def test_a_trial_is_exported_again_with_the_same_network(url, config, tmp_path):
    study = read_study(url, "before")
    metrics = export(study, study.points[KNEE], config, tmp_path / "again")
    before = load_file(EXPORTED / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert after.keys() == before.keys()
    for name, weights in before.items():
        torch.testing.assert_close(after[name], weights, rtol=1e-4, atol=1e-4)  # other processors round otherwise

    was = json.loads((EXPORTED / "metrics.json").read_text())
    assert metrics.sample == was["settings"]
    assert metrics.right == was["test"]["right"]
    for results, costs, validation, test in (
        (metrics.dense, was["dense"], was["dense"]["validation"], was["dense"]),
        (metrics.compressed, was["test"], was["validation"], was["test"]),
    ):
        cost = results.cost.stored()
        assert cost.pop("notes") == []  # which this version adds
        assert cost.items() <= costs.items()
        assert results.validation.metrics == by_name(validation, metrics.classes)
        assert results.test.metrics == by_name(test, metrics.classes)
        for quality, errors_before in ((results.validation, validation), (results.test, test)):
            for name, error in by_name(errors_before, metrics.classes, "_se").items():
                # 0.1.0 took it for sure that all answers are right, or none.
                assert quality.errors[name] == error if error else quality.errors[name] > 0


def by_name(quality, classes, suffix=""):
    """Metrics of format 3, in which recall and F1 were lists over classes."""
    values = {name: quality[name + suffix] for name in ("accuracy", "macro_f1")}
    for measure in ("recall", "f1"):
        values |= {f"{measure}:{name}": value for name, value in zip(classes, quality[measure + suffix], strict=True)}
    return values


def test_an_exported_folder_is_loaded_and_answers_as_its_onnx_file():
    images = np.random.default_rng(0).random((32, 3, 8, 8), np.float32)
    by_onnx = onnxruntime.InferenceSession(EXPORTED / "model.onnx").run(None, {"images": images})[0]
    with torch.no_grad():
        by_torch = hscc_search.load(EXPORTED)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(by_torch, by_onnx, rtol=1e-4, atol=1e-4)


def test_an_exported_folder_without_answers_is_verified_by_comparing_its_models(folder):
    write_manifest(folder)  # its card was edited in this repository
    assert verify(folder).gaps.keys() == {"model.onnx", "model.safetensors"}
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: 1.1 * tensor for name, tensor in tensors.items()}, weights)
    write_manifest(folder)
    with pytest.raises(ExportError, match="disagree: scores differ by"):
        verify(folder)


def test_a_study_of_the_format_before_is_refused_by_both_formats_and_versions(url, config):
    study = optuna.load_study(study_name="before", storage=existing_storage(url))
    study.set_user_attr(keys.STUDY, {**study.user_attrs[keys.STUDY], "version": 3})
    message = (
        rf"study 'before' has format 3, written by hscc-search 0\.1\.0: "
        rf"hscc-search {keys.versions()['hscc-search']} reads the formats 4 and 5"
    )
    with pytest.raises(StudyError, match=message):
        read_study(url, "before")
    with pytest.raises(StudyError, match=message):
        run_study(config)


@pytest.mark.parametrize("config_yaml", [None, "", "[]"])
def test_a_folder_whose_writer_is_not_known_is_refused_all_the_same(folder, config_yaml):
    tree = json.loads((folder / "architecture.json").read_text())
    write_json(folder / "architecture.json", {**tree, "format": 2})
    (folder / "config.yaml").unlink()
    if config_yaml is not None:
        (folder / "config.yaml").write_text(config_yaml)
    write_manifest(folder)
    with pytest.raises(ExportError, match="has format 2, written by hscc-search of an unknown version"):
        hscc_search.load(folder)


def test_a_folder_of_the_format_before_is_refused_by_both_formats_and_versions(folder):
    architecture = json.loads((folder / "architecture.json").read_text())
    write_json(folder / "architecture.json", {**architecture, "format": 2})
    write_manifest(folder)
    message = (
        rf"has format 2, written by hscc-search 0\.1\.0: "
        rf"hscc-search {keys.versions()['hscc-search']} reads the formats 3 and 4"
    )
    with pytest.raises(ExportError, match=message):
        hscc_search.load(folder)
