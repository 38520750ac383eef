import time
from dataclasses import replace

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError, StorageError, StudyError
from hscc_search.report.table import columns, front_line, rows
from hscc_search.report.terminal import front_csv, front_json
from hscc_search.search.catalogue import copy_study, list_studies, remove_study
from hscc_search.search.record import RECORD, find_study, packed, record_of, unpacked
from hscc_search.search.stored_study import read_study
from hscc_search.search.study import run_study
from hscc_search.search.workers import heartbeat as presence
from hscc_search.storage import existing_storage, open_storage

START = [
    {"regions": 1, "clusters": 1, "energy": 0.7},
    {"regions": 4, "clusters": 2, "energy": 0.95},
    {"regions": 1, "clusters": 1, "energy": 0.998},
]


def bounded(url, name="bounded", bound=0.9, trials=6):
    """A study over three objectives, in which the poorest networks don't keep a constraint."""
    return StudyConfig.from_file(
        "digits",
        name=name,
        storage=url,
        trials=trials,
        training__epochs=2,
        compression__calibration_images=64,
        objectives=["latency", "accuracy", "parameters"],
        constraints=[{"metric": "accuracy", "at_least": bound}, {"metric": "latency", "at_most": 1000.0}],
        latency={"runtime": "torch"},
        start=START,
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A storage with a study, finished and with one failed trial, that no test changes."""
    url = f"sqlite:///{tmp_path_factory.mktemp('records')}/studies.db"
    run_study(bounded(url, bound=0.75))
    study = optuna.load_study(study_name="bounded", storage=existing_storage(url))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"failure": "RuntimeError: no memory"}))
    return url


@pytest.fixture
def own(url, tmp_path):
    """A copy of that study in a storage of the test's own."""
    copied = f"sqlite:///{tmp_path}/own.db"
    copy_study(url, "bounded", "bounded", copied)
    return copied


def trials_of(url, name):
    trials = optuna.load_study(study_name=name, storage=existing_storage(url)).trials
    return [
        (one.number, one.state, one.params, one.values, one.user_attrs, one.system_attrs, one.datetime_start)
        for one in trials
    ]


def test_infeasible_trials_are_never_on_the_front_and_optuna_agrees(url):
    study = read_study(url, "bounded")
    poor = {point.trial for point in study.points if point["accuracy"] < 0.75}
    assert 0 < len(poor) < len(study.points)
    assert {point.trial for point in study.points if not point.feasible} == poor
    members = {point.trial for point in study.front}
    assert members
    assert not members & poor
    opened = optuna.load_study(study_name="bounded", storage=existing_storage(url))
    assert {trial.number for trial in opened.best_trials} == members
    assert all(study.confidence.probability[trial] == 0 for trial in poor)
    assert not study.confidence.close & poor
    assert study.confidence.knee not in poor
    assert [trial.values for trial in opened.best_trials] == [
        [study.points[trial.number][one.metric] for one in study.objectives] for trial in opened.best_trials
    ]


def test_starts_come_first_and_every_point_has_all_metrics(url):
    study = read_study(url, "bounded")
    assert [point.settings for point in study.points[:3]] == START
    assert len(study.points) == 6
    assert {frozenset(point.metrics) for point in study.points} == {frozenset(study.dense.metrics)}
    assert study.dense["latency"] > 0
    for point in study.points:
        predicted = np.frombuffer(point.predictions, "<u2")
        assert float((predicted == study.labels).mean()) == point["accuracy"]
        assert point.constraints == {
            "accuracy >= 0.75": 0.75 - point["accuracy"],
            "latency <= 1000": point["latency"] - 1000,
        }
    assert study.failures == {6: "RuntimeError: no memory"}
    history = study.hypervolumes()
    assert history == sorted(history)
    assert history[-1] == pytest.approx(study.hypervolume)


def test_a_copy_in_the_same_storage_has_all_that_the_study_has(own):
    assert copy_study(own, "bounded", "again") == 7
    first, second = (read_study(own, name) for name in ("bounded", "again"))
    assert first.points == second.points
    assert first.failures == second.failures
    assert trials_of(own, "again") == trials_of(own, "bounded")
    assert second.config == first.config.model_copy(update={"name": "again"})
    assert [first.plan_of(trial) for trial in range(6)] == [second.plan_of(trial) for trial in range(6)]
    assert front_json(second) == front_json(first).replace('"bounded"', '"again"')
    opened = [optuna.load_study(study_name=name, storage=existing_storage(own)) for name in ("bounded", "again")]
    assert opened[0].metric_names == opened[1].metric_names
    assert opened[0].directions == opened[1].directions


def test_a_copy_in_another_storage_goes_on_there(own, tmp_path):
    target = f"sqlite:///{tmp_path}/target.db"
    assert copy_study(own, "bounded", "moved", target) == 7
    assert trials_of(target, "moved") == trials_of(own, "bounded")
    before = read_study(target, "moved").points
    longer = run_study(bounded(target, "moved", bound=0.75, trials=7))
    assert longer.points[:6] == before
    assert len(longer.points) == 7
    assert len(read_study(own, "bounded").points) == 6
    assert [row.name for row in list_studies(own)] == ["bounded"]


def test_a_copy_leaves_out_what_runs_and_waits(own):
    study = optuna.load_study(study_name="bounded", storage=existing_storage(own))
    study.add_trial(create_trial(state=TrialState.WAITING))
    study.ask()
    assert copy_study(own, "bounded", "again") == 7
    assert {state for _, state, *_ in trials_of(own, "again")} == {TrialState.COMPLETE, TrialState.FAIL}


def test_a_taken_or_malformed_name_is_refused_and_nothing_is_made(own, tmp_path):
    before = trials_of(own, "bounded")
    with pytest.raises(StorageError, match="there is a study 'bounded' already"):
        copy_study(own, "bounded", "bounded")
    with pytest.raises(ConfigError, match="two words"):
        copy_study(own, "bounded", "two words", f"sqlite:///{tmp_path}/new.db")
    with pytest.raises(StorageError, match="it holds bounded"):
        copy_study(own, "absent", "other", f"sqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "new.db").exists()
    assert [row.name for row in list_studies(own)] == ["bounded"]
    assert trials_of(own, "bounded") == before


def test_a_copy_that_breaks_off_leaves_nothing_half_made(own, tmp_path):
    """The target's table of trial attributes is gone, so the trials cannot be written."""
    target = f"sqlite:///{tmp_path}/target.db"
    storage = open_storage(target)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON trial_user_attributes BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    with pytest.raises(Exception, match="disk full"):
        copy_study(own, "bounded", "moved", target)
    with storage.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM studies").scalar() == 0
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM trials").scalar() == 0
        connection.exec_driver_sql("DROP TRIGGER full")
    assert copy_study(own, "bounded", "moved", target) == 7


def test_a_study_is_removed_with_its_trials_and_no_other_one(own):
    copy_study(own, "bounded", "again")
    remove_study(own, "bounded")
    assert [row.name for row in list_studies(own)] == ["again"]
    assert len(read_study(own, "again").points) == 6
    with existing_storage(own).engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM trials").scalar() == 7
    with pytest.raises(StorageError, match="it holds again"):
        remove_study(own, "bounded")


def test_a_study_with_a_worker_at_work_is_not_removed(own):
    storage = existing_storage(own)
    study = find_study(storage, "bounded")
    mine = create_trial(state=TrialState.RUNNING, system_attrs=presence.signature())
    trial = storage.create_new_trial(study._study_id, mine)
    with pytest.raises(StudyError, match="study bounded has 1 worker at work"):
        remove_study(own, "bounded")
    (row,) = list_studies(own)
    assert (row.running, row.workers, row.waiting) == (1, 1, 0)
    # Its process is gone: nobody is at work any more.
    storage.set_trial_system_attr(trial, presence.WORKER, presence.signature()[presence.WORKER][:-4] + "9.99")
    (row,) = list_studies(own)
    assert (row.running, row.workers, row.waiting) == (0, 0, 1)
    remove_study(own, "bounded")
    assert list_studies(own) == []


def test_a_worker_of_another_machine_is_at_work_while_it_says_so(own):
    storage = existing_storage(own)
    elsewhere = {presence.WORKER: "elsewhere/1:1:0.00", presence.ALIVE: time.time()}
    mine = create_trial(state=TrialState.RUNNING, system_attrs=elsewhere)
    trial = storage.create_new_trial(find_study(storage, "bounded")._study_id, mine)
    with pytest.raises(StudyError, match="at work"):
        remove_study(own, "bounded")
    storage.set_trial_system_attr(trial, presence.ALIVE, time.time() - presence.GRACE_SECONDS - 1)
    remove_study(own, "bounded")


def test_studies_are_listed_with_those_of_other_makers(own):
    other = optuna.create_study(study_name="other", storage=existing_storage(own))
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    ours, theirs = sorted(list_studies(own), key=lambda row: row.name)
    assert (ours.finished, ours.failed, ours.wanted) == (6, 1, 6)
    assert ours.hypervolume == read_study(own, "bounded").hypervolume
    assert (theirs.finished, theirs.wanted, theirs.hypervolume) == (2, None, None)
    assert ours.started < theirs.started


def test_a_study_of_another_version_is_refused_by_its_version(own):
    study = find_study(existing_storage(own), "bounded")
    study.set_user_attr(RECORD, {**record_of(study), "version": 1})
    with pytest.raises(StudyError, match="another version of hscc-search"):
        read_study(own, "bounded")
    (row,) = list_studies(own)
    assert (row.finished, row.hypervolume) == (6, None)


@given(st.binary(max_size=300))
def test_what_is_packed_comes_back(values):
    assert unpacked(packed(values)) == values
    assert packed(values).isascii()


@pytest.mark.parametrize("kept", ["none finished", "none feasible"])
def test_a_study_without_a_front_says_so(url, kept):
    study = read_study(url, "bounded")
    points = tuple(replace(one, constraints={"accuracy >= 0.99": 1 + one["flops"]}) for one in study.points)
    study = replace(study, points=points if kept == "none feasible" else ())
    line = front_line(study)
    if kept == "none feasible":
        nearest = min(study.points, key=lambda one: one["flops"])
        assert f"no trial keeps the constraints: trial {nearest.trial} comes nearest" in line
    else:
        assert "no trial is finished yet" in line
    assert [row.kind for row in rows(study)] == ["dense"]
    assert len(rows(study)[0].cells) == len(columns(study))
    assert '"front": []' in front_json(study)
    assert len(front_csv(study).splitlines()) == 2
    assert study.hypervolume == 0
