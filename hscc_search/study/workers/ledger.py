"""The trials of one study in its storage, shared by any number of workers.

A trial is RUNNING from the moment it is created, with its sample already in it, and its worker sends a heartbeat every
few seconds. A trial whose worker died or was interrupted becomes WAITING, and the next worker takes it. Only Optuna's
storage interface is used, so its gRPC proxy works too. A database is locked while a trial is created, so that two
workers seldom create one at the same time. Calls wait for a storage that cannot be reached.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hscc_search.errors import one_line
from hscc_search.pareto.points import Point
from hscc_search.storage import lockable, locked, patiently
from hscc_search.storage_faults import comes_from_storage
from hscc_search.study.propose import Proposal, Tried
from hscc_search.study.record import FAILURE, MEASURED, REFINES, TOO_LATE, point_from_stored, refined_trials, refines
from hscc_search.study.space import Sample, Space
from hscc_search.study.stored_study import Study, study_as_it_stands
from hscc_search.study.workers.heartbeat import (
    ALIVE,
    BEAT_SECONDS,
    GRACE_SECONDS,
    at_work,
    of_this_process,
    process_ended,
    signature,
)

# Number of workers that may die of one trial before the trial fails.
_ATTEMPTS = 2

_ATTEMPT, _SAMPLER = "hscc:attempt", "hscc:sampler"

P = ParamSpec("P")
R = TypeVar("R")


def _patient(call: Callable[Concatenate["Ledger", P], R]) -> Callable[Concatenate["Ledger", P], R]:
    """Make a method repeat itself while the storage cannot be reached."""

    @wraps(call)
    def waiting(self: "Ledger", *args: P.args, **kwargs: P.kwargs) -> R:
        def note_outage(_: object) -> None:
            self._last_outage = time.time()

        return patiently(call, note_outage)(self, *args, **kwargs)

    return cast(Callable[Concatenate["Ledger", P], R], waiting)


class Ledger:
    """The trials of a study. Safe for any number of processes; one object belongs to one process.

    Attributes:
        study: as Optuna opened it.
        space: of the study.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, space: Space) -> None:
        self.study, self.space, self._storage = study, space, storage
        # Time of the last outage of the storage: heartbeats until GRACE_SECONDS after it prove nothing.
        self._last_outage = 0.0

    @_patient
    def trials(self) -> list[FrozenTrial]:
        """Read all trials, by number."""
        return self.study.get_trials(deepcopy=False)

    @property
    def finished(self) -> int:
        """Number of trials that have their values, without those of the second stage."""
        return sum(trial.state == TrialState.COMPLETE and refines(trial) is None for trial in self.trials())

    def refined_of(self, numbers: Collection[int]) -> int:
        """Count those of some trials whose refined ones have their values, or have failed."""
        over = [trial for trial in self.trials() if trial.state.is_finished()]
        return len(refined_trials(over) & set(numbers))

    def point(self, number: int) -> Point:
        """Read a finished trial, without its scores."""
        return point_from_stored(number, self.trials()[number].user_attrs[MEASURED])

    @_patient
    def claim(self, wanted: int, choose: Callable[[Sequence[Tried]], Proposal | None]) -> FrozenTrial | None:
        """Take a trial for this worker alone: one that lost its worker, or a new one.

        Args:
            wanted: number of finished trials to reach.
            choose: proposes a sample, given all samples so far; None where no sample is left.

        Returns:
            The trial; None where other workers have or have finished all wanted trials, or no sample is left.
        """
        self.reclaim()
        while True:
            trials = self.trials()
            for trial in trials:
                if trial.state == TrialState.WAITING and self._take(trial):
                    return self._read(trial)
            if _count_not_failed(trials) >= wanted:
                return None
            # Chosen without the lock, since a sampler may take seconds.
            proposal = choose([_tried(trial) for trial in trials if refines(trial) is None])
            if proposal is None:
                return None
            with self._lock():
                if not self._still_wanted(proposal.sample, self.trials(), len(trials), wanted):
                    continue
                mine = self._create(proposal.sample, {_SAMPLER: proposal.attributes})
                # Two workers may create one at the same time where there is no lock, or where the server that held it
                # went away (Optuna waits and then creates the trial): the lower number keeps it.
                if self._still_wanted(proposal.sample, self.trials()[: mine.number], len(trials), wanted):
                    return mine
                self.fail(mine, TOO_LATE)

    @_patient
    def claim_refinement(self, wanted: Collection[int]) -> FrozenTrial | None:
        """Take for this worker alone a trial that measures a finished one again, refined: one of the second stage.

        Args:
            wanted: numbers of the trials to refine.

        Returns:
            The trial, with the sample of the one that it refines; None where other workers have or have tried all.
        """
        self.reclaim()
        trials = self.trials()
        for trial in trials:
            if trial.state == TrialState.WAITING and self._take(trial):
                return self._read(trial)
        for number in sorted(set(wanted) - refined_trials(trials)):
            with self._lock():
                if number in refined_trials(self.trials()):
                    continue
                mine = self._create(trials[number].params, {REFINES: number})
                # As in claim: where there is no lock, the lower number keeps it.
                if number not in refined_trials(self.trials()[: mine.number]):
                    return mine
                self.fail(mine, TOO_LATE)
        return None

    @_patient
    def finish(
        self, trial: FrozenTrial, values: Sequence[float], excesses: Sequence[float], record: Mapping[str, Any]
    ) -> None:
        """Store the result of a trial, unless another worker finished it meanwhile.

        Args:
            trial: one that this worker has.
            values: of the objectives.
            excesses: of the constraints, see :func:`hscc_search.pareto.objectives.excesses`.
            record: attributes by key, see :meth:`hscc_search.study.record.TrialRecord.stored`.
        """
        try:
            if excesses:
                # The key that Optuna's samplers and optuna-dashboard read.
                self._storage.set_trial_system_attr(trial._trial_id, "constraints", list(excesses))
            for key, value in record.items():
                self._storage.set_trial_user_attr(trial._trial_id, key, value)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, values)
        except UpdateFinishedTrialError:
            return

    @_patient
    def fail(self, trial: FrozenTrial, reason: str) -> None:
        """Store why a trial has no values."""
        try:
            self._storage.set_trial_user_attr(trial._trial_id, FAILURE, one_line(reason))
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return

    @_patient
    def hand_back(self, trial: FrozenTrial) -> None:
        """Leave a trial to the next worker."""
        try:
            attempt = trial.system_attrs.get(_ATTEMPT, 1)
            self._storage.set_trial_system_attr(trial._trial_id, _ATTEMPT, attempt - 1)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        except UpdateFinishedTrialError:
            return

    def hand_back_own(self) -> None:
        """Leave all trials that this process has to the next workers."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and of_this_process(trial):
                self.hand_back(trial)

    @_patient
    def reclaim(self) -> None:
        """Take trials from dead workers: they wait for another worker, and fail after the second death."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._lost(trial):
                continue
            with self._lock():
                current = self._read(trial)
                if current.state != TrialState.RUNNING or not self._lost(current):
                    continue
                if current.system_attrs.get(_ATTEMPT, 1) < _ATTEMPTS:
                    self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
                else:
                    self.fail(trial, f"its worker died, {_ATTEMPTS} times")

    @contextmanager
    def heartbeat(self, trial: FrozenTrial) -> Iterator[None]:
        """Send heartbeats for a trial from a thread, until the block ends."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                try:
                    self._storage.set_trial_system_attr(trial._trial_id, ALIVE, time.time())
                except UpdateFinishedTrialError:
                    return
                except Exception as error:
                    if not comes_from_storage(error):
                        raise

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @_patient
    def as_it_stands(self) -> Study:
        """Read the study with all trials finished so far."""
        return study_as_it_stands(self.study, self._storage)

    def _read(self, trial: FrozenTrial) -> FrozenTrial:
        return self._storage.get_trial(trial._trial_id)

    def _take(self, trial: FrozenTrial) -> bool:
        """Make a waiting trial this worker's; return False where another was quicker."""
        with self._lock():
            try:
                if not self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                    return False
                attempt = trial.system_attrs.get(_ATTEMPT, 0) + 1
                for key, value in {**signature(), _ATTEMPT: attempt}.items():
                    self._storage.set_trial_system_attr(trial._trial_id, key, value)
            except UpdateFinishedTrialError:
                return False
        return True

    def _create(self, sample: Sample, attributes: Mapping[str, Any]) -> FrozenTrial:
        template = create_trial(
            state=TrialState.RUNNING,
            params=sample,
            distributions=self.space.distributions,
            system_attrs={**signature(), _ATTEMPT: 1, **attributes},
        )
        return self._storage.get_trial(self._storage.create_new_trial(self.study._study_id, template))

    def _still_wanted(self, sample: Sample, trials: Sequence[FrozenTrial], known: int, wanted: int) -> bool:
        """Tell whether a trial is still wanted, and none that came after the first ``known`` ones has its sample."""
        taken = {self.space.key(trial.params) for trial in trials[known:] if refines(trial) is None}
        return _count_not_failed(trials) < wanted and self.space.key(sample) not in taken

    def _lock(self) -> AbstractContextManager[None]:
        """Hold the lock under which a trial is created or changes hands; a proxy's storage has none."""
        return locked(self._storage, self.study._study_id) if lockable(self._storage) else nullcontext()

    def _lost(self, trial: FrozenTrial) -> bool:
        if trial.state != TrialState.RUNNING or at_work(trial):
            return False
        # After an outage every worker gets the time to send a heartbeat.
        return process_ended(trial) or time.time() - self._last_outage > GRACE_SECONDS


def _count_not_failed(trials: Sequence[FrozenTrial]) -> int:
    """Count the trials without those of the second stage and those that failed."""
    states = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
    return sum(trial.state in states and refines(trial) is None for trial in trials)


def _tried(trial: FrozenTrial) -> Tried:
    return Tried(
        sample=trial.params,
        values=tuple(trial.values) if trial.state == TrialState.COMPLETE else None,
        excesses=tuple(trial.system_attrs.get("constraints", ())),
        failed=trial.state == TrialState.FAIL,
        attributes=trial.system_attrs.get(_SAMPLER, {}),
    )
