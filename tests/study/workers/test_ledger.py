import multiprocessing
import os
import signal
import threading
import time

import optuna
import pytest
from command_line import FORKS
from optuna.trial import TrialState

from hscc_search.config import StudyConfig
from hscc_search.pareto.objectives import objectives_of
from hscc_search.storage import existing_storage, open_storage
from hscc_search.study.propose import Proposal, propose
from hscc_search.study.space import Space
from hscc_search.study.workers import heartbeat as heartbeat
from hscc_search.study.workers import ledger as ledger_module
from hscc_search.study.workers.heartbeat import ALIVE, GRACE_SECONDS, at_work
from hscc_search.study.workers.ledger import Ledger

CONFIG = StudyConfig.from_file("digits", sampler="random")
SPACE = Space(CONFIG, {})


@pytest.fixture(params=["sqlite", "postgresql", "grpc"])
def url(request, tmp_path):
    """A storage without studies, of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/studies.db"
    elif request.param == "postgresql":
        yield request.getfixturevalue("database")
    else:
        proxy = request.getfixturevalue("proxy")
        yield proxy
        optuna.delete_study(study_name="one", storage=existing_storage(proxy))


@pytest.fixture
def open_ledger(url):
    storage = open_storage(url)
    optuna.create_study(study_name="one", storage=storage, directions=["minimize", "maximize"])
    return lambda: opened(url)


def opened(url):
    storage = existing_storage(url)
    return Ledger(optuna.load_study(study_name="one", storage=storage), storage, SPACE)


def choose(tried):
    return propose(SPACE, objectives_of(CONFIG), tried, len(tried))


def finish(ledger, trial, accuracy=0.5):
    ledger.finish(trial, [1.0, accuracy], {}, {"measured": {"metrics": {}}})


def test_a_claimed_trial_is_running_with_its_sample_and_finishes_once(open_ledger):
    ledger = open_ledger()
    trial = ledger.claim(3, choose)
    assert trial.state == TrialState.RUNNING
    assert trial.params.keys() == SPACE.distributions.keys()
    assert at_work(trial)
    finish(ledger, trial)
    finish(ledger, trial, accuracy=0.9)  # another worker had it too and came second
    (stored,) = ledger.trials()
    assert (stored.state, stored.values) == (TrialState.COMPLETE, [1.0, 0.5])
    ledger.fail(trial, "too late")
    ledger.hand_back(trial)
    assert ledger.trials()[0].state == TrialState.COMPLETE


def test_no_more_is_claimed_than_wanted_and_a_failure_does_not_count(open_ledger):
    ledger = open_ledger()
    first, second = ledger.claim(2, choose), ledger.claim(2, choose)
    assert ledger.claim(2, choose) is None
    ledger.fail(first, "out of\nmemory")
    third = ledger.claim(2, choose)
    assert third.number == 2
    assert ledger.claim(2, choose) is None
    finish(ledger, second)
    finish(ledger, third)
    assert ledger.finished == 2
    assert ledger.trials()[0].user_attrs["failure"] == "out of memory"


def test_a_trial_that_is_handed_back_is_taken_before_a_new_one(open_ledger):
    ledger, other = open_ledger(), open_ledger()
    trial = ledger.claim(5, choose)
    ledger.hand_back(trial)
    again = other.claim(5, choose)
    assert (again.number, again.params) == (trial.number, trial.params)
    other.hand_back(again)  # any number of times
    assert ledger.claim(5, choose).number == trial.number


def test_nothing_is_claimed_where_no_sample_is_left(open_ledger):
    assert open_ledger().claim(5, lambda tried: None) is None


def claim_and_die(url, wanted):
    opened(url).claim(wanted, choose)
    os.kill(os.getpid(), signal.SIGKILL)


def context_of(url):
    """How to start processes: gRPC does not survive a fork of the process that uses it."""
    return FORKS if url.startswith("grpc") else multiprocessing.get_context("fork")


def in_process(target, url, *arguments):
    process = context_of(url).Process(target=target, args=(url, *arguments))
    process.start()
    return process


def test_the_trial_of_a_dead_worker_is_run_again_once(open_ledger, url):
    ledger = open_ledger()
    in_process(claim_and_die, url, 1).join()
    (trial,) = ledger.trials()
    assert trial.state == TrialState.RUNNING
    assert not at_work(trial)
    in_process(claim_and_die, url, 1).join()  # takes it over and dies as well
    assert len(ledger.trials()) == 1
    following = ledger.claim(1, choose)
    assert following.number == 1
    (first, _) = ledger.trials()
    assert first.state == TrialState.FAIL
    assert first.user_attrs["failure"] == "its worker died, 2 times"


def test_a_trial_of_another_machine_is_given_up_after_silence(open_ledger, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(heartbeat, "_host", lambda: "elsewhere/1")
        trial = open_ledger().claim(1, choose)
    ledger = open_ledger()
    assert ledger.claim(1, choose) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + GRACE_SECONDS + 1)
    assert ledger.claim(1, choose).number == trial.number


def test_a_worker_with_a_heartbeat_is_alive(open_ledger, monkeypatch):
    monkeypatch.setattr(ledger_module, "BEAT_SECONDS", 0.05)
    ledger = open_ledger()
    trial = ledger.claim(1, choose)
    before = ledger.trials()[0].system_attrs[ALIVE]
    with ledger.heartbeat(trial):
        time.sleep(0.5)
    after = ledger.trials()[0].system_attrs[ALIVE]
    assert after > before
    time.sleep(0.2)
    assert ledger.trials()[0].system_attrs[ALIVE] == after


def claim_many(url, wanted, start):
    ledger = opened(url)
    start.wait()
    while (trial := ledger.claim(wanted, choose_few)) is not None:
        finish(ledger, trial)


def choose_few(tried):
    """Choose the first untried sample of a small grid, so that workers collide all the time."""
    taken = {SPACE.key(one.sample) for one in tried}
    for regions in range(1, 10):
        for clusters in range(1, 5):
            sample = {"regions": regions, "clusters": clusters, "energy": 0.9}
            if SPACE.key(sample) not in taken:
                return Proposal(sample)
    return None


def test_workers_that_claim_at_once_take_exactly_what_is_wanted(open_ledger, url):
    wanted = 20
    context = context_of(url)
    start = context.Barrier(4)
    crew = [context.Process(target=claim_many, args=(url, wanted, start)) for _ in range(4)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
        assert process.exitcode == 0
    trials = opened(url).trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == wanted
    assert len({SPACE.key(trial.params) for trial in complete}) == len(complete)
    left = [trial for trial in trials if trial.state != TrialState.COMPLETE]
    if url.startswith("grpc"):  # without a lock the worker that comes second fails its trial and takes another sample
        assert {trial.state for trial in left} <= {TrialState.FAIL}
        assert {trial.user_attrs["failure"] for trial in left} <= {"another worker was quicker"}
    else:
        assert left == []


@pytest.mark.parametrize("other_is_quicker", [True, False])
def test_a_lock_that_went_with_the_server_lets_no_sample_in_twice(database, postgresql, monkeypatch, other_is_quicker):
    optuna.create_study(study_name="one", storage=open_storage(database), directions=["minimize", "maximize"])
    ledger, other = opened(database), opened(database)

    def create(*arguments):
        monkeypatch.undo()
        postgresql.psql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory';")
        if other_is_quicker:
            assert other.claim(5, choose_few).number == 0
        return ledger._create(*arguments)

    monkeypatch.setattr(ledger, "_create", create)
    trial = ledger.claim(5, choose_few)
    trials = ledger.trials()
    if other_is_quicker:
        assert [one.state for one in trials] == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING]
        assert trials[1].user_attrs["failure"] == "another worker was quicker"
        assert trial.number == 2
        assert SPACE.key(trial.params) != SPACE.key(trials[0].params)
    else:
        assert [one.number for one in trials] == [trial.number]
        assert at_work(trials[0])


def test_a_database_that_is_away_for_a_while_is_waited_for(tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    optuna.create_study(study_name="one", storage=open_storage(url), directions=["minimize", "maximize"])
    ledger = opened(url)
    trial = ledger.claim(1, choose)
    (tmp_path / "studies.db").rename(tmp_path / "away.db")
    (tmp_path / "studies.db").mkdir()  # cannot be opened

    def bring_back():
        time.sleep(1.5)
        (tmp_path / "studies.db").rmdir()
        (tmp_path / "away.db").rename(tmp_path / "studies.db")

    ledger._storage.engine.dispose()
    thread = threading.Thread(target=bring_back)
    thread.start()
    finish(ledger, trial)
    thread.join()
    assert ledger.finished == 1
