"""The worker of a trial, and whether it is alive.

A trial holds the process and the machine that took it, and the time of its last heartbeat. On the same machine the
system tells whether the process has ended. On another machine only a long silence does, so the clocks of all machines
should agree to within a few seconds.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
from optuna.trial import FrozenTrial, TrialState

# Seconds between two heartbeats of a worker, and seconds of silence after which a trial has lost its worker.
BEAT_SECONDS = 10
GRACE_SECONDS = 60

WORKER, ALIVE = "hscc:worker", "hscc:alive"


def signature() -> dict[str, Any]:
    """The attributes, by key, that this process writes into a trial when it takes the trial."""
    return {WORKER: _this_process(), ALIVE: time.time()}


def of_this_process(trial: FrozenTrial) -> bool:
    """Tell the trials that this process took last."""
    return worker_of(trial) == _this_process()


def at_work(trial: FrozenTrial) -> bool:
    """Tell whether a trial has a worker that is alive, as far as can be known."""
    if trial.state != TrialState.RUNNING or process_ended(trial):
        return False
    alive = trial.system_attrs.get(ALIVE)
    if alive is None:
        return False
    return bool(time.time() - alive < GRACE_SECONDS)


def worker_of(trial: FrozenTrial) -> str:
    """The machine and process that took a trial last."""
    return str(trial.system_attrs.get(WORKER, ""))


def _on_this_machine(trial: FrozenTrial) -> bool:
    return worker_of(trial).split(":")[0] == _host()


def process_ended(trial: FrozenTrial) -> bool:
    """Tell whether a trial's worker was a process of this machine that has ended."""
    if not _on_this_machine(trial):
        return False
    _, number, began = worker_of(trial).split(":")
    try:
        process = psutil.Process(int(number))
        return f"{process.create_time():.2f}" != began or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _this_process() -> str:
    return f"{_host()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def _host() -> str:
    """The machine, and the namespace of its process numbers, since containers have their own."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{namespace}"
