import time

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from hscc_search.errors import ConfigError, StorageError, StudyError
from hscc_search.report.formats import front_json
from hscc_search.storage import existing_storage, open_storage
from hscc_search.study import record as keys
from hscc_search.study.catalogue import copy_study, list_studies, remove_study
from hscc_search.study.stored_study import find_study, read_study
from hscc_search.study.study import run_study
from hscc_search.study.workers import heartbeat


def trials_of(url, name):
    trials = optuna.load_study(study_name=name, storage=existing_storage(url)).trials
    return [
        (
            trial.number,
            trial.state,
            trial.params,
            trial.values,
            trial.user_attrs,
            trial.system_attrs,
            trial.datetime_start,
        )
        for trial in trials
    ]


def test_a_copy_in_the_same_storage_has_all_that_the_study_has(own_url):
    assert copy_study(own_url, "bounded", "again") == 7
    first, second = (read_study(own_url, name) for name in ("bounded", "again"))
    assert first.points == second.points
    assert first.failures == second.failures
    assert trials_of(own_url, "again") == trials_of(own_url, "bounded")
    assert second.config == first.config.model_copy(update={"name": "again"})
    assert [first.plan_of(trial) for trial in range(6)] == [second.plan_of(trial) for trial in range(6)]
    assert front_json(second) == front_json(first).replace('"bounded"', '"again"')
    opened = [optuna.load_study(study_name=name, storage=existing_storage(own_url)) for name in ("bounded", "again")]
    assert opened[0].metric_names == opened[1].metric_names
    assert opened[0].directions == opened[1].directions


def test_a_copy_in_another_storage_goes_on_there(bounded, own_url, tmp_path):
    target = f"sqlite:///{tmp_path}/target.db"
    assert copy_study(own_url, "bounded", "moved", target) == 7
    assert trials_of(target, "moved") == trials_of(own_url, "bounded")
    before = read_study(target, "moved").points
    longer = run_study(bounded(target, "moved", trials=7))
    assert longer.points[:6] == before
    assert len(longer.points) == 7
    assert len(read_study(own_url, "bounded").points) == 6
    assert [status.name for status in list_studies(own_url)] == ["bounded"]


def test_a_copy_leaves_out_what_runs_and_waits(own_url):
    study = optuna.load_study(study_name="bounded", storage=existing_storage(own_url))
    study.add_trial(create_trial(state=TrialState.WAITING))
    study.ask()
    assert copy_study(own_url, "bounded", "again") == 7
    assert {state for _, state, *_ in trials_of(own_url, "again")} == {TrialState.COMPLETE, TrialState.FAIL}


def test_a_taken_or_malformed_name_is_refused_and_nothing_is_made(own_url, tmp_path):
    before = trials_of(own_url, "bounded")
    with pytest.raises(StorageError, match="there is a study 'bounded' already"):
        copy_study(own_url, "bounded", "bounded")
    with pytest.raises(ConfigError, match="two words"):
        copy_study(own_url, "bounded", "two words", f"sqlite:///{tmp_path}/new.db")
    with pytest.raises(StorageError, match="it holds bounded"):
        copy_study(own_url, "absent", "other", f"sqlite:///{tmp_path}/new.db")
    assert not (tmp_path / "new.db").exists()
    assert [status.name for status in list_studies(own_url)] == ["bounded"]
    assert trials_of(own_url, "bounded") == before


def test_a_copy_that_breaks_off_leaves_nothing_half_made(own_url, tmp_path):
    """A trigger in the target's table of trial attributes refuses all rows, so the trials cannot be written."""
    target = f"sqlite:///{tmp_path}/target.db"
    storage = open_storage(target)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON trial_user_attributes BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    with pytest.raises(Exception, match="disk full"):
        copy_study(own_url, "bounded", "moved", target)
    with storage.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM studies").scalar() == 0
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM trials").scalar() == 0
        connection.exec_driver_sql("DROP TRIGGER full")
    assert copy_study(own_url, "bounded", "moved", target) == 7


def test_a_study_is_removed_with_its_trials_and_no_other_one(own_url):
    copy_study(own_url, "bounded", "again")
    remove_study(own_url, "bounded")
    assert [status.name for status in list_studies(own_url)] == ["again"]
    assert len(read_study(own_url, "again").points) == 6
    with existing_storage(own_url).engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM trials").scalar() == 7
    with pytest.raises(StorageError, match="it holds again"):
        remove_study(own_url, "bounded")


def test_a_study_with_a_worker_at_work_is_not_removed(own_url):
    storage = existing_storage(own_url)
    study = find_study(storage, "bounded")
    mine = create_trial(state=TrialState.RUNNING, system_attrs=heartbeat.signature())
    trial = storage.create_new_trial(study._study_id, mine)
    with pytest.raises(StudyError, match="study bounded has 1 worker at work"):
        remove_study(own_url, "bounded")
    (status,) = list_studies(own_url)
    assert (status.running, status.workers, status.waiting) == (1, 1, 0)
    # A start time that no process of this number has: the worker has ended.
    ended = heartbeat.signature()[heartbeat.WORKER][:-4] + "9.99"
    storage.set_trial_system_attr(trial, heartbeat.WORKER, ended)
    (status,) = list_studies(own_url)
    assert (status.running, status.workers, status.waiting) == (0, 0, 1)
    remove_study(own_url, "bounded")
    assert list_studies(own_url) == []


def test_a_worker_of_another_machine_is_at_work_while_it_says_so(own_url):
    storage = existing_storage(own_url)
    elsewhere = {heartbeat.WORKER: "elsewhere/1:1:0.00", heartbeat.ALIVE: time.time()}
    theirs = create_trial(state=TrialState.RUNNING, system_attrs=elsewhere)
    trial = storage.create_new_trial(find_study(storage, "bounded")._study_id, theirs)
    with pytest.raises(StudyError, match="at work"):
        remove_study(own_url, "bounded")
    storage.set_trial_system_attr(trial, heartbeat.ALIVE, time.time() - heartbeat.GRACE_SECONDS - 1)
    remove_study(own_url, "bounded")


def test_studies_are_listed_with_those_of_other_makers(own_url):
    foreign = optuna.create_study(study_name="foreign", storage=existing_storage(own_url))
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    ours, theirs = sorted(list_studies(own_url), key=lambda status: status.name)
    assert (ours.finished, ours.failed, ours.wanted) == (6, 1, 6)
    assert ours.hypervolume == read_study(own_url, "bounded").hypervolume
    assert (theirs.finished, theirs.wanted, theirs.hypervolume) == (2, None, None)
    assert ours.started < theirs.started


def test_a_study_of_an_unknown_format_is_listed_without_what_its_record_says(own_url):
    study = find_study(existing_storage(own_url), "bounded")
    study.set_user_attr(keys.STUDY, {**study.user_attrs[keys.STUDY], "version": keys.FORMAT + 1})
    (status,) = list_studies(own_url)
    assert (status.finished, status.failed, status.wanted, status.hypervolume) == (6, 1, None, None)
