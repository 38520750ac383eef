import itertools
import signal
import sys
import time

import command_line
import numpy as np
import optuna
import pytest
import yaml
from conftest import SMALL

from hscc_search.errors import ConfigError, HsccError, StorageError, StudyError
from hscc_search.storage import existing_storage, open_storage
from hscc_search.study import record as keys
from hscc_search.study.catalogue import list_studies
from hscc_search.study.stored_study import find_study, read_study
from hscc_search.study.study import run_study
from hscc_search.study.workers import worker


@pytest.fixture
def small(digits):
    """The digits study with a small training and calibration."""

    def make(**overrides):
        return digits(**{**SMALL, **overrides})

    return make


def write_study(config, folder):
    """Write a study file with all that a configuration says; gives its name."""
    (folder / "study.yaml").write_text(yaml.safe_dump(config.stored()))
    return "study.yaml"


def values(study):
    return [(point.trial, point.sample, point["flops"], point["accuracy"]) for point in study.points]


def test_another_seed_gives_other_trials(small, tmp_path):
    first = run_study(small(trials=4)).points
    other = run_study(small(trials=4, seed=1, name="other")).points
    # Whatever the seed, a study begins with the ends of its space.
    assert [point.sample for point in other[:2]] == [point.sample for point in first[:2]]
    assert [point.sample["energy"] for point in first[:2]] == [0.7, 0.998]
    assert all(one.sample != two.sample for one, two in zip(other[2:], first[2:], strict=True))


def test_the_same_seed_gives_the_same_trials_also_after_stops(small, tmp_path):
    unbroken = run_study(small(trials=14))
    elsewhere = f"sqlite:///{tmp_path}/other.db"
    for trials in (5, 11, 14):
        study = run_study(small(trials=trials).model_copy(update={"storage": elsewhere}))
        assert len(study.points) == trials
        assert read_study(elsewhere, "digits").config.trials == trials
    assert len(unbroken.points) == 14
    assert values(study) == values(unbroken)
    assert [study.plan_of(trial) for trial in range(14)] == [unbroken.plan_of(trial) for trial in range(14)]


def test_a_study_is_calibrated_once_whether_its_network_was_trained_or_read(small, tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))
    config, told = small(trials=2), []
    first = run_study(config)
    again = run_study(config.model_copy(update={"storage": f"sqlite:///{tmp_path}/again.db"}), report=told.append)
    assert len(list((tmp_path / "cache" / "calibrations").iterdir())) == 1
    assert not [step for step in told if getattr(step, "task", "").startswith("calibrating")]
    assert values(again) == values(first)


@pytest.mark.parametrize(
    ("kilobytes", "options", "spoil", "said"),
    [
        (4, "rw", lambda folder: None, "no room for storage"),
        (2000, "ro", lambda folder: None, "cannot write to storage"),
        (2000, "rw", lambda folder: (folder / "n.db.lock").mkdir(), "n.db.lock beside it is no file"),
        (2000, "rw", lambda folder: (folder / "n.db-wal").mkdir(), "n.db-wal beside it is no file"),
    ],
    ids=["full", "read-only", "lock", "log"],
)
def test_a_storage_that_takes_no_study_is_refused_before_anything_is_done(
    small, small_disk, kilobytes, options, spoil, said
):
    folder, told = small_disk(kilobytes, options), []
    spoil(folder)
    before = list(folder.iterdir())
    config = small(trials=1).model_copy(update={"storage": f"sqlite:///{folder}/n.db"})
    with pytest.raises(StorageError, match=said):
        run_study(config, report=told.append)
    assert (told, list(folder.iterdir())) == ([], before)


def test_a_finished_study_does_nothing(small):
    run_study(small(trials=3))
    told = []
    study = run_study(small(trials=2), report=told.append)
    assert len(study.points) == 3
    assert told == []


def test_a_finished_study_says_that_there_is_nothing_to_do(cli, small, tmp_path):
    arguments = ("run", write_study(small(), tmp_path), "--trials", "2")
    assert "nothing to do" not in cli(*arguments, cwd=tmp_path).stdout
    assert "2 trials finished, 2 wanted, so there is nothing to do" in cli(*arguments, cwd=tmp_path).stdout


def test_a_trial_stores_its_sample_what_was_measured_and_its_plan(small):
    config = small(trials=1)
    study = run_study(config)
    (trial,) = optuna.load_study(study_name="digits", storage=existing_storage(config.storage)).trials
    (point,) = study.points
    assert trial.values == [point["flops"], point["accuracy"]]
    assert set(trial.params) == {"regions", "clusters", "energy"}
    assert point.sample == trial.params
    on_images = {"accuracy", "macro_f1", *(f"recall:{name}" for name in study.record.classes)}
    assert point.errors.keys() == on_images
    assert point.metrics.keys() == {"flops", "macs", "parameters", "megabytes", *on_images}
    assert sum(layer["macs"] for layer in trial.user_attrs["plan"]) == point["macs"]
    predicted = np.frombuffer(point.predictions, "<u2")
    assert float((predicted == study.record.labels).mean()) == point["accuracy"]


def test_a_study_over_budgets_meets_each_of_them(small):
    study = run_study(small(trials=3, space={"budget": {"low": 2, "high": 6}}))
    for point in study.points:
        asked = point.sample["budget"]
        assert asked <= study.dense["macs"] / point["macs"] <= 1.03 * asked
    assert len(study.points) == 3


def test_the_record_holds_file_costs_fingerprint_and_versions(small):
    config = small(trials=1)
    study = run_study(config)
    assert study.config == config
    assert study.dense["macs"] == study.record.dense.cost.macs_torch
    assert len(study.record.fingerprint) == 64
    assert set(study.record.versions) >= {"hscc-search", "torch", "optuna"}
    opened = optuna.load_study(study_name="digits", storage=existing_storage(config.storage))
    assert opened.metric_names == ["FLOPs", "accuracy"]
    assert [direction.name for direction in opened.directions] == ["MINIMIZE", "MAXIMIZE"]


def test_a_changed_study_file_is_refused_with_the_difference(small):
    run_study(small(trials=1))
    with pytest.raises(StudyError, match=r"space\.energy\.low: 0\.7 -> 0\.6"):
        run_study(small(trials=2, space={**SMALL["space"], "energy": {"low": 0.6, "high": 0.998}}))
    assert len(run_study(small(trials=2, timeout=1000.0)).points) == 2


def test_another_dense_network_is_refused(small, tmp_path):
    from safetensors.torch import save_file

    from hscc_search.dense.networks import build_network

    run_study(small(trials=1))
    save_file(build_network("digits_cnn", 10, 8).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(StudyError, match="another dense network"):
        run_study(small(trials=2, model__checkpoint=tmp_path / "other.safetensors"))


OWN = """
import torch
from own_study_helper import scale
from torch import nn


class Net(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * scale()


def make(classes):
    torch.manual_seed(0)
    return Net(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes))


def given(classes):
    network = make(classes)
    torch.seed()
    return network
"""


@pytest.fixture
def own(small, tmp_path, monkeypatch):
    """Configure a study of a network of one's own, whose helper scales by a factor."""
    (tmp_path / "own").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "own")
    modules = ("own_study", "own_study_helper")

    def make(factor=1.0, function="make", **overrides):
        (tmp_path / "own" / "own_study.py").write_text(OWN)
        (tmp_path / "own" / "own_study_helper.py").write_text(f"def scale():\n    return {factor}\n")
        for name in modules:
            sys.modules.pop(name, None)
        return small(model__name=f"own_study:{function}", training__epochs=1, trials=1, **overrides)

    yield make
    for name in modules:
        sys.modules.pop(name, None)


def test_a_network_whose_helper_has_changed_stops_a_study_before_training(own):
    study = run_study(own())
    assert {"structure", "own_study.Net.forward", "own_study_helper.scale"} <= study.record.dense.network.keys()
    told = []
    with pytest.raises(
        StudyError, match=r"another dense network: own_study_helper\.scale of own_study:make has changed"
    ):
        run_study(own(2.0).model_copy(update={"trials": 2}), report=told.append)
    assert not [progress for progress in told if progress.task == "training the dense network"]
    assert len(run_study(own().model_copy(update={"trials": 2})).points) == 2


def test_a_study_of_the_version_before_goes_on_training_what_it_trained(own):
    """0.1.0 did not know ``training.when``, nor what the code of a network is, and trained what a function returns."""
    config = own(function="given", training__when="always")
    weights = run_study(config).record.dense.weights
    study = find_study(existing_storage(config.storage), "digits")
    stored = study.user_attrs[keys.STUDY]
    del stored["config"]["training"]["when"]
    del stored["dense"]["network"]
    study.set_user_attr(keys.STUDY, stored)
    after = run_study(own(function="given").model_copy(update={"trials": 2}))
    assert len(after.points) == 2
    assert (after.record.dense.weights, after.config.training.when) == (weights, "always")


def test_a_study_that_another_program_made_is_left_alone(small):
    config = small(trials=1)
    study = optuna.create_study(study_name="digits", storage=open_storage(config.storage))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="not made by hscc-search"):
        run_study(config)
    assert len(study.trials) == 1


def test_the_timeout_starts_no_more_trials(small):
    assert len(run_study(small(trials=1000, timeout=1.0)).points) < 1000


def test_trials_that_all_fail_end_the_study_with_the_reason(small, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(worker, "run_trial", fail)
    config = small(trials=3)
    with pytest.raises(HsccError, match="5 trials in a row failed, the last one because RuntimeError: out of memory"):
        run_study(config)
    study = read_study(config.storage, "digits")
    assert study.failures == dict.fromkeys(range(5), "RuntimeError: out of memory")
    assert study.points == ()
    monkeypatch.undo()
    assert len(run_study(config).points) == 3


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_loses_no_finished_trial_and_goes_on(small, tmp_path, how):
    config = small(trials=400)
    run_study(small(trials=1))  # trained and created
    process = command_line.start("run", write_study(config, tmp_path), "--storage", config.storage, cwd=tmp_path)
    while len(read_study(config.storage, "digits").points) < 4:
        assert process.returncode is None
        time.sleep(0.05)
    process.send_signal(how)
    _, stderr = process.communicate()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in stderr
    before = values(read_study(config.storage, "digits"))
    assert 4 <= len(before) < 400
    after = run_study(config.model_copy(update={"trials": len(before) + 3}))
    assert values(after)[: len(before)] == before
    assert len(after.points) == len(before) + 3


def test_a_storage_that_is_damaged_ends_the_run_at_once_and_in_one_line(small, tmp_path, monkeypatch):
    run_trial = worker.run_trial

    def run_and_damage(*arguments):
        result = run_trial(*arguments)
        for path in tmp_path.glob("studies.db*"):
            path.write_bytes(b"no database any more " * 1000)
        return result

    run_study(small(trials=1))
    monkeypatch.setattr(worker, "run_trial", run_and_damage)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"is damaged \(file is not a database\): `sqlite3 .*studies\.db \.recover"):
        run_study(small(trials=3))
    assert time.monotonic() - began < 30, "it was waited for"


def test_studies_are_listed(small):
    config = small(trials=2)
    run_study(config)
    (row,) = list_studies(config.storage)
    assert (row.name, row.finished, row.wanted, row.failed, row.running) == ("digits", 2, 2, 0, 0)
    assert (row.waiting, row.workers, row.hypervolume) == (0, 0, read_study(config.storage, "digits").hypervolume)


def test_ten_lines_of_python(small):
    import hscc_search as hscc

    config = small(trials=4)
    study = hscc.run_study(config)
    assert [point.trial for point in study.front]
    knee = hscc.select("knee", study.points, study.objectives, study.truth)
    assert knee in study.points


def test_a_grid_over_stages_is_searched_for_macro_f1_and_one_recall(small):
    """Two qualities and no cost, energies by stage on levels, and no more trials than the grid has."""
    config = small(
        trials=50,
        objectives=["macro_f1", "recall:3"],
        constraints=[{"metric": "megabytes", "at_most": 0.35}],
        sampler="grid",
        space={
            "per": "stage",
            "regions": {"low": 1, "high": 1},
            "clusters": {"low": 1, "high": 1},
            "energy": {"low": 0.7, "high": 0.99, "levels": 2},
        },
        start=[
            {f"{name}@stage{stage}": 1 for name in ("regions", "clusters") for stage in (1, 2)}
            | {f"energy@stage{stage}": 0.99 for stage in (1, 2, 3)}
        ],
    )
    study = run_study(config)
    assert [one.metric for one in study.objectives if one.maximise] == ["macro_f1", "recall:3"]
    energies = [tuple(point.sample[f"energy@stage{stage}"] for stage in (1, 2, 3)) for point in study.points]
    assert energies[0] == (0.99, 0.99, 0.99)
    assert sorted(energies) == sorted(itertools.product((0.7, 0.99), repeat=3))
    assert len({point["flops"] for point in study.points}) == 8
    assert 0 < sum(point.feasible for point in study.points) < 8
    best = {one.metric: max(point[one.metric] for point in study.points if point.feasible) for one in study.objectives}
    assert study.front[-1]["macro_f1"] == best["macro_f1"]
    assert study.front[0]["recall:3"] == best["recall:3"]
    assert all(point.feasible and point["megabytes"] <= 0.35 for point in study.front)
    assert 0 < study.hypervolume < 1
    # All samples were tried, so a second run does nothing.
    assert run_study(config).points == study.points


def test_a_recall_of_no_class_and_a_wrong_start_make_no_study(small, tmp_path):
    for changes, said in (
        ({"objectives": ["flops", "recall:ten"]}, "there is no class 'ten'"),
        ({"start": [{"regions": 1, "clusters": 1, "energy": 0.1}]}, "energy 0.1 is not in the study's space"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_study(small(trials=1, **changes))
    assert list(tmp_path.iterdir()) == []
