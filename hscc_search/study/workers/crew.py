"""A crew: several processes of one machine that work on a study together."""

import contextlib
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

import optuna
import torch

from hscc_search.errors import HsccError, StudyError
from hscc_search.memory import keep_freed_memory
from hscc_search.progress import Progress, Report, silent
from hscc_search.storage import patiently
from hscc_search.storage_faults import in_one_line
from hscc_search.study.trial import Prepared
from hscc_search.study.workers.ledger import Ledger
from hscc_search.study.workers.worker import LOOK_SECONDS, work

# Deaths, with no trial finished between them, after which the crew gives up; one trial may cost two processes.
_DEATHS_IN_A_ROW = 10
# Seconds that a process has to hand its trial back before it is killed.
_DISMISSAL_SECONDS = 20

# Opens a study in a process of the crew, to which it is pickled; returns None where there is nothing to do.
Join = Callable[[], tuple[Ledger, Prepared] | None]


@dataclass(frozen=True)
class _Member:
    """A process of the crew, and the connection on which it sends the error or the reason that ended it."""

    process: BaseProcess
    messages: Connection


def work_together(count: int, ledger: Ledger, join: Join, report: Report = silent) -> None:
    """Have several processes of this machine work on a study that is prepared, until it has all its trials.

    A process that dies is replaced. Ctrl-C ends all of them; each hands its trial back.

    Args:
        count: number of processes, each with its share of the machine's cores.
        ledger: of the study; only read.
        join: opens the study in each process.
        report: told of each trial.

    Raises:
        StudyError: a worker failed, with its message, or too many workers died in a row.
    """
    context = _context()
    threads = max(1, torch.get_num_threads() // count)
    wanted = ledger.space.config.trials
    finished, deaths = ledger.finished, 0
    report(Progress("searching", finished, wanted))
    work_in_process = partial(_join_and_work, join, ledger.space.config.storage, threads)
    crew = [_start(context, work_in_process) for _ in range(count)]
    reason = ""
    try:
        while crew:
            time.sleep(LOOK_SECONDS)
            now = ledger.finished
            if now != finished:
                finished, deaths = now, 0
                report(Progress("searching", finished, wanted, f"{len(crew)} workers"))
            for member in [member for member in crew if not member.process.is_alive()]:
                crew.remove(member)
                if member.process.exitcode == 0:
                    reason = _reason(member) or reason
                    continue
                deaths += 1
                _raise_cause(member, deaths)
                crew.append(_start(context, work_in_process))
    finally:
        _dismiss([member.process for member in crew])
    if reason:
        report(Progress("searching", ledger.finished, wanted, reason))


def _start(context: SpawnContext | ForkServerContext, work_in_process: Callable[[Connection], None]) -> _Member:
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=work_in_process, args=(sending,))
    process.start()
    sending.close()
    return _Member(process, receiving)


def _reason(member: _Member) -> str:
    """Why a member ended before all trials were finished; empty where they are, or where it was stopped."""
    with contextlib.suppress(EOFError):
        return str(member.messages.recv())
    return ""


def _raise_cause(member: _Member, deaths: int) -> None:
    """Raise the error that a member sent before it ended, or give up after too many deaths."""
    with contextlib.suppress(EOFError):  # killed before it could send anything
        raise StudyError(str(member.messages.recv()))
    if deaths > _DEATHS_IN_A_ROW:
        raise StudyError(
            f"{deaths} workers died one after the other (exit code {member.process.exitcode}): "
            "try fewer workers, if memory is short; finished trials are kept"
        )


def _dismiss(processes: Sequence[BaseProcess]) -> None:
    """End processes; kill those that do not hand their trials back in time."""
    for process in processes:
        if process.is_alive() and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
    for process in processes:
        process.join(_DISMISSAL_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _context() -> SpawnContext | ForkServerContext:
    """Choose how processes start: where possible as forks of a server that has imported torch and nothing else."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hscc_search.study.study", "sklearn.cluster"])
    return context


def _join_and_work(join: Join, storage: str, threads: int, messages: Connection) -> None:
    """Join a study and work on it, in a process of its own."""
    # SIGTERM acts like Ctrl-C: shells start background jobs with SIGINT ignored, which processes inherit.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parent = multiprocessing.parent_process()
    assert parent is not None
    keep_freed_memory()
    warnings.simplefilter("ignore")  # the command has printed what a user should know
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(threads)
    try:
        with in_one_line(storage):
            ready = patiently(join)()
            if ready is not None:
                ledger, prepared = ready
                messages.send(work(ledger, prepared, keep_on=parent.is_alive))  # an orphan has to end by itself
    except HsccError as error:
        messages.send(str(error))
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        raise SystemExit(0) from error
