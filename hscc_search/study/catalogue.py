"""List, remove and copy the studies of a storage. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hscc_search.config import StudyConfig
from hscc_search.errors import StorageError, StudyError
from hscc_search.storage import existing_storage, open_storage, storage_to_read
from hscc_search.storage_faults import in_one_line, undamaged
from hscc_search.study.record import StudyRecord
from hscc_search.study.stored_study import (
    find_study,
    get_trial,
    known_study,
    read_record,
    study_as_it_stands,
    write_record,
)
from hscc_search.study.workers.heartbeat import at_work, worker_of


@dataclass(frozen=True)
class StudyStatus:
    """The progress of one study of a storage.

    Attributes:
        name: of the study.
        finished: number of trials with values, without those that measure others again, refined.
        failed: number of trials that ended without values.
        running: number of trials whose worker is alive.
        waiting: number of trials that wait for a worker.
        wanted: number of finished trials to reach; None where this version cannot read the study.
        workers: number of workers that are alive.
        hypervolume: normalised hypervolume, 0 to 1; None without finished trials, and where `wanted` is None.
        started: start of the first trial, in ISO format; None without trials.
    """

    name: str
    finished: int
    failed: int
    running: int
    waiting: int
    wanted: int | None
    workers: int
    hypervolume: float | None
    started: str | None


def list_studies(storage: str | BaseStorage) -> list[StudyStatus]:
    """List the studies of a storage with their progress.

    Raises:
        StorageError: the storage cannot be reached.
    """
    opened = storage_to_read(storage) if isinstance(storage, str) else storage
    with in_one_line(opened), undamaged(opened):
        return [_status(opened, name) for name in optuna.get_all_study_names(opened)]


def _status(storage: BaseStorage, name: str) -> StudyStatus:
    study = optuna.load_study(study_name=name, storage=storage)
    # Optuna's trial objects are built for unfinished trials only: there may be ten thousand finished ones.
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    open_trials = storage.get_all_trials(study._study_id, deepcopy=False, states=unfinished)
    active = [trial for trial in open_trials if at_work(trial)]
    complete = storage.get_n_trials(study._study_id, TrialState.COMPLETE)
    failed = storage.get_n_trials(study._study_id, TrialState.FAIL)
    try:
        record = read_record(study)
    except StudyError:
        record = None
    started = get_trial(storage, study._study_id, 0).datetime_start if complete + failed + len(open_trials) else None
    read = study_as_it_stands(study, storage) if record and complete else None
    return StudyStatus(
        name=name,
        finished=complete if read is None else len(read.searched.points),
        failed=failed,
        running=len(active),
        waiting=len(open_trials) - len(active),
        wanted=record.config.trials if record else None,
        workers=len({worker_of(trial) for trial in active}),
        hypervolume=None if read is None else read.hypervolume,
        started=started.isoformat(timespec="seconds") if started else None,
    )


def remove_study(storage: str, name: str) -> None:
    """Remove a study and all its trials.

    Raises:
        StorageError: the storage cannot be reached or holds no such study.
        StudyError: workers are working on it.
    """
    opened = existing_storage(storage)
    with in_one_line(opened), undamaged(opened):
        _remove_idle(known_study(opened, name), opened)


def _remove_idle(study: optuna.Study, storage: BaseStorage) -> None:
    active = [trial for trial in study.get_trials(deepcopy=False) if at_work(trial)]
    if active:
        workers = len({worker_of(trial) for trial in active})
        noun = "worker" if workers == 1 else "workers"
        raise StudyError(f"study {study.study_name} has {workers} {noun} at work: stop them first")
    optuna.delete_study(study_name=study.study_name, storage=storage)


def copy_study(storage: str, name: str, to_name: str, to_storage: str | None = None) -> int:
    """Copy a study with its finished and failed trials, under another name or to another storage.

    Returns:
        The number of copied trials.

    Raises:
        StorageError: a storage cannot be reached, there is no such study, or the other name is taken.
        StudyError: as :func:`hscc_search.study.stored_study.read_study`.
    """
    source = storage_to_read(storage) if to_storage is not None else existing_storage(storage)
    with in_one_line(source), undamaged(source):
        study = known_study(source, name)
        record = read_record(study)
        if record is None:
            raise StorageError(f"study {name!r} was not started yet: there is nothing to copy")
        config = StudyConfig.from_tree({**record.config.stored(), "name": to_name}, f"copy of study {name}")
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        target = source if to_storage is None else open_storage(to_storage)
    with in_one_line(target):
        _add_study(target, replace(record, config=config), study.directions, trials)
    return len(trials)


def _add_study(
    target: BaseStorage, record: StudyRecord, directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial]
) -> None:
    """Make a study of finished trials, whole or not at all.

    Raises:
        StorageError: there is one of that name.
    """
    name = record.config.name
    if find_study(target, name) is not None:
        raise StorageError(f"there is a study {name!r} already: give the copy another name")
    copied = optuna.create_study(study_name=name, storage=target, directions=directions)
    try:
        copied.add_trials(trials)
        write_record(copied, record)
    except BaseException:  # a half-made copy would occupy the name
        optuna.delete_study(study_name=name, storage=target)
        raise
