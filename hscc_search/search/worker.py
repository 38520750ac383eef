"""Work on a study: take a trial, measure, store, until it has all it wants. Alone or as several processes."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

import optuna
import torch
from optuna.trial import FrozenTrial

from hscc_search.errors import HsccError, StudyError
from hscc_search.memory import keep_freed_memory
from hscc_search.progress import Progress, Report, silent
from hscc_search.search.hypervolume import stagnant
from hscc_search.search.ledger import Ledger
from hscc_search.search.objective import Bench, Measurement, metrics_of
from hscc_search.search.objectives import objectives_of, violations
from hscc_search.search.propose import Proposal, Tried, propose
from hscc_search.search.records import packed
from hscc_search.storage import patiently

# A study whose trials all fail has one cause, and going on does not remove it.
_FAILURES_IN_A_ROW = 5
# Between two looks at what other workers do.
_LOOK_SECONDS = 0.3
# Processes that may die without a trial finishing between them: each trial gets two of them.
_DEATHS_IN_A_ROW = 10
# For a process to hand its trial back.
_DISMISSAL_SECONDS = 20

# Opens a study in a process of its own; it must travel to that process. None where there is nothing to do.
Join = Callable[[], tuple[Ledger, Bench] | None]


def work(ledger: Ledger, bench: Bench, report: Report = silent, keep_on: Callable[[], bool] = lambda: True) -> None:
    """Work on a study until all its trials are finished, by this worker or by others.

    Ctrl-C hands the current trial back.

    Args:
        ledger: of the study.
        bench: of the study.
        report: told of each trial.
        keep_on: asked before each trial.

    Raises:
        StudyError: this worker's trials fail one after the other.
    """
    config = bench.config
    began = time.monotonic()
    failed_in_a_row = 0
    report(Progress("searching", ledger.finished, config.trials))
    while keep_on():
        if config.timeout is not None and time.monotonic() - began > config.timeout:
            return
        if config.patience is not None and _stagnant(ledger, config.patience):
            report(Progress("searching", ledger.finished, config.trials, "the hypervolume no longer grows"))
            return
        trial = ledger.claim(config.trials, _chooser(ledger, bench))
        if trial is None:
            if all(other.state.is_finished() for other in ledger.trials()):
                return
            time.sleep(_LOOK_SECONDS)  # what others are at may come back
            continue
        found = _one_trial(ledger, bench, trial)
        if isinstance(found, Measurement):
            failed_in_a_row = 0
            report(Progress("searching", ledger.finished, config.trials, _note(trial, found, bench)))
            continue
        failed_in_a_row += 1
        report(Progress("searching", ledger.finished, config.trials, f"trial {trial.number} failed: {found}"))
        if failed_in_a_row == _FAILURES_IN_A_ROW:
            raise StudyError(f"{failed_in_a_row} trials in a row failed, the last one because {found}")


def _chooser(ledger: Ledger, bench: Bench) -> Callable[[Sequence[Tried], int], Proposal | None]:
    objectives = objectives_of(bench.config)

    def choose(tried: Sequence[Tried], count: int) -> Proposal | None:
        # Seeded by how many there are, a study that was interrupted samples what an unbroken one would have.
        return propose(ledger.space, objectives, tried, bench.config.seed * 1_000_003 + count)

    return choose


def _one_trial(ledger: Ledger, bench: Bench, trial: FrozenTrial) -> Measurement | str:
    """Measure and store; returns what was found, or why there is nothing."""
    try:
        with ledger.beating(trial):
            measured = bench.measure(ledger.space.setting(trial.params))
    except KeyboardInterrupt:
        ledger.hand_back(trial)
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        ledger.fail(trial, reason)
        return reason
    metrics, errors = metrics_of(measured.cost, measured.quality, bench.classes, measured.latency)
    kept = violations(bench.config, metrics)
    values = [metrics[objective.metric] for objective in objectives_of(bench.config)]
    stored = {
        "settings": trial.params,
        "metrics": metrics,
        "errors": errors,
        "violations": kept,
        "predictions": packed(measured.predictions),
        "seconds": {phase: round(value, 4) for phase, value in measured.seconds.items()},
    }
    plan = [layer.stored() for layer in measured.compressed.plan]
    ledger.finish(trial, values, kept, {"measured": stored, "plan": plan})
    return measured


def _stagnant(ledger: Ledger, patience: int) -> bool:
    return stagnant(ledger.as_it_stands().hypervolumes(), patience)


def _note(trial: FrozenTrial, measured: Measurement, bench: Bench) -> str:
    ratio = bench.calibration.macs / measured.compressed.macs
    return f"trial {trial.number}: {ratio:.2f}x fewer FLOPs, accuracy {measured.quality.accuracy:.4f}"


def work_together(count: int, ledger: Ledger, join: Join, report: Report = silent) -> None:
    """Have several processes of this machine work on a study that is prepared, until it has all its trials.

    A process that dies is replaced. Ctrl-C ends all of them; each hands its trial back.

    Args:
        count: of processes, each with its share of the machine's cores.
        ledger: of the study, to look at.
        join: what a process needs to join the study.
        report: told of each trial.

    Raises:
        HsccError: what a worker met; or workers die one after the other.
    """
    context = _context()
    threads = max(1, torch.get_num_threads() // count)
    wanted = ledger.space.config.trials
    finished, deaths = ledger.finished, 0
    report(Progress("searching", finished, wanted))

    def start() -> tuple[BaseProcess, Connection]:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_join_and_work, args=(join, threads, theirs))
        process.start()
        theirs.close()
        return process, ours

    crew = [start() for _ in range(count)]
    try:
        while crew:
            time.sleep(_LOOK_SECONDS)
            now = ledger.finished
            if now != finished:
                finished, deaths = now, 0
                report(Progress("searching", finished, wanted, f"{len(crew)} workers"))
            for member in list(crew):
                process, messages = member
                if process.is_alive():
                    continue
                crew.remove(member)
                if process.exitcode == 0:
                    continue
                with contextlib.suppress(EOFError):  # killed before it could say anything
                    raise StudyError(str(messages.recv()))
                deaths += 1
                if deaths > _DEATHS_IN_A_ROW:
                    raise StudyError(
                        f"{deaths} workers died one after the other (exit code {process.exitcode}): "
                        "is there memory for so many? finished trials are kept"
                    )
                crew.append(start())
    finally:
        _dismiss([process for process, _ in crew])


def _dismiss(crew: Sequence[BaseProcess]) -> None:
    """End processes; those that do not hand their trials back in time are killed."""
    for process in crew:
        if process.is_alive() and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
    for process in crew:
        process.join(_DISMISSAL_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _context() -> SpawnContext | ForkServerContext:
    """How processes are started: where that can be, as forks of one that has imported torch but holds nothing yet."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hscc_search.search.study", "sklearn.cluster"])
    return context


def _join_and_work(join: Join, threads: int, messages: Connection) -> None:
    """What each process does."""
    # Behind a shell's & Ctrl-C is ignored, and so it would be here; this ends a process whatever it inherited.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parent = multiprocessing.parent_process()
    assert parent is not None
    keep_freed_memory()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(threads)
    try:
        ready = patiently(join)()
        if ready is not None:
            ledger, bench = ready
            work(ledger, bench, keep_on=parent.is_alive)  # nobody is left to end an orphan
    except HsccError as error:
        messages.send(str(error))
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        raise SystemExit(0) from error
