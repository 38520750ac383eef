"""Which worker has a trial, and whether it lives.

A trial says which process of which machine took it, and when that process last was alive. On one machine it can be
looked up whether a process has ended; of other machines only their silence tells, so their clocks should agree to
within some seconds.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
from optuna.trial import FrozenTrial, TrialState

# A worker says that it is alive every so often; a trial that was silent for the grace period has lost its worker.
BEAT_SECONDS = 10
GRACE_SECONDS = 60

WORKER, ALIVE = "hscc:worker", "hscc:alive"


def signature() -> dict[str, Any]:
    """What this process writes into a trial that it takes."""
    began = psutil.Process().create_time()
    return {WORKER: f"{_host()}:{os.getpid()}:{began:.2f}", ALIVE: time.time()}


def at_work(trial: FrozenTrial) -> bool:
    """Whether a trial has a worker that lives, as far as can be known."""
    if trial.state != TrialState.RUNNING or gone(trial):
        return False
    alive = trial.system_attrs.get(ALIVE)
    if alive is None:
        return False
    return bool(time.time() - alive < GRACE_SECONDS)


def worker_of(trial: FrozenTrial) -> str:
    """Machine and process that took a trial last."""
    return str(trial.system_attrs.get(WORKER, ""))


def _here(trial: FrozenTrial) -> bool:
    return worker_of(trial).split(":")[0] == _host()


def gone(trial: FrozenTrial) -> bool:
    """Whether a trial's worker was a process of this machine that has ended."""
    if not _here(trial):
        return False
    _, number, began = worker_of(trial).split(":")
    try:
        process = psutil.Process(int(number))
        return f"{process.create_time():.2f}" != began or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _host() -> str:
    """The machine, or the container on it that numbers processes by itself."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        space = ""
    return f"{socket.gethostname()}/{space}"
