import itertools
import os
import signal
import time
from pathlib import Path

import command_line
import optuna
import pytest
from conftest import SMALL
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hscc_search.errors import DiskFullError, StudyError
from hscc_search.progress import Progress
from hscc_search.storage import existing_storage
from hscc_search.study.stored_study import find_study, read_study
from hscc_search.study.study import run_study, work_on
from hscc_search.study.workers import worker
from hscc_search.study.workers.heartbeat import at_work

both = pytest.mark.parametrize("small", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def small(request, digits):
    """A digits study that trains and calibrates quickly; in SQLite, unless a test asks for both kinds of database."""

    def make(**overrides):
        config = digits(**{**SMALL, **overrides})
        if getattr(request, "param", "sqlite") == "postgresql":
            config = config.model_copy(update={"storage": request.getfixturevalue("database")})
        return config

    return make


def stored(config):
    return find_study(existing_storage(config.storage), config.name)


def trials_of(config):
    return stored(config).get_trials(deepcopy=False)


def samples(trials):
    return [tuple(sorted(trial.params.items())) for trial in trials]


@pytest.mark.parametrize(("small", "workers"), [("sqlite", 4), ("postgresql", 8)], indirect=["small"])
def test_many_workers_finish_exactly_what_is_asked(small, workers):
    config = small(
        trials=16,
        space={
            "regions": {"low": 1, "high": 4},
            "clusters": {"low": 1, "high": 2},
            "energy": {"low": 0.7, "high": 0.99, "levels": 4},
        },
    )
    run_study(config.model_copy(update={"trials": 1}), "cpu")
    study = run_study(config, "cpu", workers=workers)
    trials = trials_of(config)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 16
    assert len(set(samples(trials))) == 16
    assert len(study.points) == 16


def test_a_space_that_is_exhausted_ends_the_study(small):
    space = {
        "regions": {"low": 1, "high": 2},
        "clusters": {"low": 1, "high": 1},
        "energy": {"low": 0.7, "high": 0.99, "levels": 3},
    }
    config = small(trials=50, space=space, sampler="grid")
    for workers in (2, 1):  # the second finds nothing to do
        steps = []
        assert len(run_study(config, "cpu", steps.append, workers).points) == 6
        assert (steps[-1].done, steps[-1].total) == (6, 50)
        assert steps[-1].note == "nothing is left to try, since every sample of the space was tried"
    stdout, _ = start_worker(config).communicate()
    assert stdout == f"study digits: 6 trials finished, 50 wanted, {steps[-1].note}\n"


def test_several_workers_give_trials_with_the_values_that_one_gives(small):
    """The result of a trial depends on its sample alone."""
    space = {
        "regions": {"low": 1, "high": 2},
        "clusters": {"low": 1, "high": 2},
        "energy": {"low": 0.7, "high": 0.99, "levels": 2},
    }
    config = small(trials=8, space=space, sampler="grid")
    alone = run_study(config, "cpu")
    together = run_study(config.model_copy(update={"name": "together"}), "cpu", workers=2)

    def by_sample(study):
        return {tuple(sorted(p.sample.items())): (p.metrics, p.predictions) for p in study.points}

    assert by_sample(alone) == by_sample(together)


def test_a_worker_joins_with_nothing_but_the_storage(small):
    config = small(trials=3)
    run_study(config, "cpu")
    longer = config.model_copy(update={"trials": 5})
    run_study(longer.model_copy(update={"timeout": 1e-6}), "cpu")  # says how many are wanted, and measures nothing
    study = work_on(config.storage, "digits", device="cpu")
    assert len(study.points) == 5
    assert study.config.trials == 5


def start_worker(config, *arguments):
    return command_line.start("worker", config.name, "--storage", config.storage, *arguments, cwd=Path.cwd())


def wait_for(condition):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("it did not come about")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_worker_hands_its_trial_back(small, how):
    config = small(trials=1)
    run_study(config, "cpu")
    run_study(config.model_copy(update={"trials": 400, "timeout": 1e-6}), "cpu")
    process, study = start_worker(config), stored(config)
    wait_for(lambda: len(study.trials) >= 3 and any(at_work(trial) for trial in study.trials))
    process.send_signal(how)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    states = [trial.state for trial in trials_of(config)]
    assert TrialState.RUNNING not in states
    assert TrialState.FAIL not in states
    assert states.count(TrialState.WAITING) <= 1


@pytest.mark.parametrize("call", ["create_new_trial", "get_trial", "set_trial_user_attr", "set_trial_state_values"])
def test_a_trial_is_handed_back_wherever_the_worker_is_interrupted(small, monkeypatch, call):
    config = small(trials=1)
    run_study(config, "cpu")
    original, interrupted = getattr(RDBStorage, call), []

    def interrupt_the_first(*arguments, **named):
        result = original(*arguments, **named) if call == "create_new_trial" else None  # as late as it can come
        if not interrupted:
            interrupted.append(call)
            raise KeyboardInterrupt
        return result or original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(RDBStorage, call, interrupt_the_first)
        with pytest.raises(KeyboardInterrupt):
            run_study(config.model_copy(update={"trials": 2}), "cpu")
    assert [trial.state for trial in trials_of(config)] == [TrialState.COMPLETE, TrialState.WAITING]
    again = run_study(config.model_copy(update={"trials": 2}), "cpu")
    assert [point.trial for point in again.points] == [0, 1]


def test_a_full_disk_ends_the_work_and_takes_no_trial(small, monkeypatch):
    config = small(trials=1)
    run_study(config, "cpu")

    def full(*_):
        raise DiskFullError("no room for temporary files")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "run_trial", full)
        with pytest.raises(DiskFullError):
            run_study(config.model_copy(update={"trials": 2}), "cpu")
    assert [trial.state for trial in trials_of(config)] == [TrialState.COMPLETE, TrialState.WAITING]


@both
def test_a_crew_replaces_a_killed_worker_and_ends_together(small):
    config = small(trials=1)
    run_study(config, "cpu")
    run_study(config.model_copy(update={"trials": 10, "timeout": 1e-6}), "cpu")
    process, study = start_worker(config, "--workers", "2"), stored(config)
    wait_for(lambda: any(at_work(trial) for trial in study.trials))
    victim = next(trial for trial in study.trials if at_work(trial))
    os.kill(int(victim.system_attrs["hscc:worker"].split(":")[1]), signal.SIGKILL)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "10 trials finished" in stdout
    trials = trials_of(config)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 10
    again = trials[victim.number]
    assert again.system_attrs["hscc:attempt"] <= 2
    assert again.params == victim.params


def test_a_failing_trial_is_recorded_and_the_study_goes_on(small, monkeypatch):
    run_trial, calls = worker.run_trial, itertools.count()

    def fail_every_third(*arguments):
        if next(calls) % 3 == 1:
            raise MemoryError("cannot allocate\n4 GB")
        return run_trial(*arguments)

    monkeypatch.setattr(worker, "run_trial", fail_every_third)
    config = small(trials=6)
    study = run_study(config, "cpu")
    assert len(study.points) == 6
    assert set(study.failures.values()) == {"MemoryError: cannot allocate 4 GB"}
    assert len(study.failures) + len(study.points) == len(trials_of(config))
    listed = set(samples(trials_of(config)))
    assert len(listed) == len(trials_of(config))  # a failed sample is not tried again


def test_patience_ends_a_study_whose_hypervolume_no_longer_grows(small):
    space = {
        "regions": {"low": 1, "high": 2},
        "clusters": {"low": 1, "high": 1},
        "energy": {"low": 0.7, "high": 0.998},
    }
    steps = []
    study = run_study(small(trials=300, patience=6, space=space), "cpu", steps.append)
    assert steps[-1].note == "the hypervolume no longer grows"
    assert 6 < len(study.points) < 300
    grown = study.hypervolumes()
    assert grown[-1] < grown[-7] * 1.001


def test_start_samples_are_tried_first(small):
    start = [{"regions": 4, "clusters": 1, "energy": 0.9}, {"regions": 1, "clusters": 2, "energy": 0.8}]
    study = run_study(small(trials=3, start=start), "cpu")
    assert [point.sample for point in study.points][:2] == start


def test_a_study_that_was_not_started_cannot_be_joined(small):
    config = small(trials=1)
    run_study(config, "cpu")
    optuna.create_study(study_name="empty", storage=existing_storage(config.storage))
    with pytest.raises(Exception, match="not started yet"):
        work_on(config.storage, "empty")


def test_trials_that_all_fail_end_each_worker(small, monkeypatch):
    monkeypatch.setattr(worker, "run_trial", lambda *_: 1 / 0)
    config = small(trials=3)
    with pytest.raises(StudyError, match="5 trials in a row failed, the last one because ZeroDivisionError"):
        run_study(config, "cpu")
    assert read_study(config.storage, "digits").points == ()


@pytest.mark.parametrize(("rate", "in_vain"), [(0.01, False), (1.0, True)], ids=["small steps", "large steps"])
def test_a_trial_that_refining_brought_no_nearer_is_told_of_as_such(small, rate, in_vain):
    """Refining is judged by its answers beside the dense network's, and not by the metric that the line names."""
    told = []
    refine = {"trials": "all", "epochs": 2, "learning_rate": rate}
    study = run_study(small(trials=1, refine=refine), "cpu", report=told.append)
    assert (study.points[0].refined["best_epoch"] == 0) == in_vain
    (note,) = {step.note for step in told if isinstance(step, Progress) and step.note.startswith("trial 0: ")}
    assert note.endswith(
        "; no pass brought it nearer to the dense network" if in_vain else f"{study.points[0]['accuracy']:.4f}"
    )
