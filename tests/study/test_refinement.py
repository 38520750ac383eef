"""The second stage of a study: trials of the front, measured again, refined."""

import json
from functools import partial

import numpy as np
import pytest
from conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from hscc_search.config import StudyConfig
from hscc_search.export.export import export
from hscc_search.progress import Progress
from hscc_search.storage import existing_storage
from hscc_search.study.catalogue import list_studies
from hscc_search.study.refinement import _set_aside, to_refine
from hscc_search.study.stored_study import find_study, read_study
from hscc_search.study.study import run_study
from hscc_search.study.workers import worker

# Rates at which a small network, hardly trained, is better after each pass.
REFINE = {"trials": "front", "epochs": 2, "learning_rate": 0.02, "most": 3}


def config_of(storage, trials=5, which="front", **others):
    keys = {f"refine__{key}": value for key, value in {**REFINE, "trials": which}.items()}
    return StudyConfig.from_file("digits", storage=storage, **{**SMALL, **keys, "trials": trials, **others})


@pytest.fixture
def refining(tmp_path):
    return partial(config_of, f"sqlite:///{tmp_path}/studies.db")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study after its second stage, and the steps that were reported; no test changes it."""
    steps: list[Progress] = []
    return run_study(
        config_of(f"sqlite:///{tmp_path_factory.mktemp('refined')}/studies.db"), "cpu", steps.append
    ), steps


def trials_of(config):
    return find_study(existing_storage(config.storage), config.name).get_trials(deepcopy=False)


def test_a_refined_trial_takes_as_long_as_the_one_that_it_refines(refining):
    study = run_study(refining(trials=2, objectives=["latency", "accuracy"]), "cpu")
    by_number = {point.trial: point for point in study.points}
    again = [point for point in study.points if point.refines is not None]
    assert again, "no trial became better: the test shows nothing"
    assert all(point["latency"] == by_number[point.refines]["latency"] for point in again)


def test_the_front_is_measured_again_refined(finished):
    study, _ = finished
    assert [point.trial for point in study.searched.points] == [0, 1, 2, 3, 4]
    wanted = to_refine(study)
    again = [point for point in study.points if point.refines is not None]
    assert {point.refines for point in again} <= set(wanted)
    assert len(wanted) == 3
    assert len(trials_of(study.config)) == 8
    by_number = {point.trial: point for point in study.points}
    assert again, "no trial became better: the test shows nothing"
    for point in again:
        original = by_number[point.refines]
        assert point.sample == original.sample
        assert point["flops"] == original["flops"]
        assert point.refined["after"] < point.refined["before"]
        assert not original.refined
    members = {point.trial for point in study.searched.front}
    assert members <= set(wanted) or len(members) > 3


def test_a_finished_second_stage_is_not_repeated_and_a_changed_front_is_refined(refining):
    run_study(refining(), "cpu")
    before = trials_of(refining())
    told = []
    run_study(refining(), "cpu", told.append)
    assert len(trials_of(refining())) == len(before)
    assert told == []  # there was nothing to do
    study = run_study(refining(trials=7), "cpu")
    assert len(study.searched.points) == 7
    assert [trial.params for trial in trials_of(refining())[: len(before)]] == [trial.params for trial in before]
    refined = [trial.system_attrs.get("hscc:refines") for trial in trials_of(refining())]
    numbers = [number for number in refined if number is not None]
    assert len(numbers) == len(set(numbers))
    assert set(to_refine(study)) <= set(numbers)


def test_the_second_stage_leaves_the_search_as_it_is(refining):
    plain = run_study(refining(trials=7), "cpu")
    storage = plain.config.storage
    assert [point.trial for point in plain.searched.points] == list(range(7))
    stopped = refining(trials=4).model_copy(update={"name": "stopped", "storage": storage})
    run_study(stopped, "cpu")
    study = run_study(stopped.model_copy(update={"trials": 7}), "cpu")
    assert [point.sample for point in study.searched.points] == [point.sample for point in plain.searched.points]


def test_each_trial_may_be_refined_or_none(refining, digits):
    study = run_study(refining(2, which="all"), "cpu")
    assert len(study.points) == 2
    assert all(point.refined and point.refines is None for point in study.points)
    none = refining(3, which="none").model_copy(update={"name": "none"})
    assert not any(point.refined for point in run_study(none, "cpu").points)


def test_a_study_without_a_second_stage_gets_one_later(refining):
    run_study(refining(which="none"), "cpu")
    study = run_study(refining(), "cpu")
    assert len(study.searched.points) == 5
    assert any(trial.system_attrs.get("hscc:refines") is not None for trial in trials_of(study.config))


def test_a_second_stage_that_is_stopped_goes_on(refining, monkeypatch):
    run_trial, calls = worker.run_trial, []

    def stop_in_the_second(*arguments):
        calls.append(arguments[2])
        if sum(refinement is not None for refinement in calls) == 2:
            raise KeyboardInterrupt
        return run_trial(*arguments)

    monkeypatch.setattr(worker, "run_trial", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_study(refining(), "cpu")
    states = [trial.state for trial in trials_of(refining())]
    assert states == [TrialState.COMPLETE] * 6 + [TrialState.WAITING]
    monkeypatch.setattr(worker, "run_trial", run_trial)
    study = run_study(refining(), "cpu")
    assert [trial.state for trial in trials_of(study.config)] == [TrialState.COMPLETE] * 8


def test_workers_share_the_second_stage(refining):
    study = run_study(refining(), "cpu", workers=2)
    assert len(study.searched.points) == 5
    refined = [trial.system_attrs.get("hscc:refines") for trial in trials_of(study.config)]
    assert sorted(number for number in refined if number is not None) == to_refine(study)


def test_a_refined_trial_is_exported_as_it_was_measured(finished, tmp_path):
    study, _ = finished
    point = next(point for point in study.points if point.refines is not None)
    metrics = export(study, point, study.config, tmp_path / "out", "cpu")
    assert metrics.compressed.validation.metrics["accuracy"] == point["accuracy"]
    assert metrics.refined == pytest.approx(point.refined)
    assert "refined towards the dense network's answers" in (tmp_path / "out" / "README.md").read_text()
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["refined"] == pytest.approx(point.refined)


def test_the_list_of_studies_counts_the_search_alone(finished):
    study, _ = finished
    (status,) = list_studies(study.config.storage)
    assert (status.finished, status.wanted, status.failed) == (5, 5, 0)


def test_the_second_stage_is_reported(finished):
    _, steps = finished
    second = [step for step in steps if step.task == "refining the front"]
    assert [(step.done, step.total) for step in second] == [(1, 3), (2, 3), (3, 3)]
    assert steps[-1].task == "searching"
    assert (steps[-1].done, steps[-1].note) == (5, "")


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40), share=st.floats(0, 1), seed=st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_a_tenth_is_set_aside_in_whole_groups_that_layers_were_not_fitted_to(sizes, share, seed):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    fitted = np.random.default_rng(seed + 1).random(len(groups)) < share
    wanted, kept = max(1, len(groups) // 10), np.zeros(len(groups), bool)
    kept[_set_aside(groups, fitted, seed)] = True
    assert kept.sum() >= wanted
    assert kept.sum() < len(groups) or len(groups) == 1
    whole = not set(groups[kept]) & set(groups[~kept])
    assert whole or kept.sum() == wanted
    free = sum((groups == group).sum() for group in set(groups) - set(groups[fitted]))
    if whole and free >= wanted:
        assert not fitted[kept].any()


def test_a_refined_trial_reads_back(finished):
    study, _ = finished
    again = read_study(study.config.storage, study.config.name)
    assert again.points == study.points
