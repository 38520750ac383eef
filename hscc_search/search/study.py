"""A study: started, or gone on with, by one process or several."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from hscc_search.config import StudyConfig
from hscc_search.dense.opened import open_dense
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import StorageError, StudyError
from hscc_search.pareto.objectives import objectives_of
from hscc_search.progress import Report, silent
from hscc_search.search.propose import directions_of
from hscc_search.search.record import DenseRecord, StudyRecord, versions
from hscc_search.search.space import Space, space_of
from hscc_search.search.stored_study import Study, find_study, known_study, read_record, read_study, write_record
from hscc_search.search.trial import Prepared, measure, prepare
from hscc_search.search.workers.crew import work_together
from hscc_search.search.workers.ledger import Ledger
from hscc_search.search.workers.worker import work
from hscc_search.storage import comes_from_storage, existing_storage, find_storage, open_storage, without_password


def run_study(config: StudyConfig, device: str = "auto", report: Report = silent, workers: int = 1) -> Study:
    """Start a study, or go on with it, until it has ``config.trials`` finished trials in all.

    Every trial is stored when it finishes, so that whatever stops this function loses no finished trial.

    Args:
        config: its storage is created where it does not exist.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading, training, calibrating and each trial.
        workers: processes that share the trials.

    Raises:
        HsccError: bad input, a study whose file has changed, or trials that fail one after the other.
    """
    _go_on(start_study(config, device, report), config, device, report, workers)
    return read_study(config.storage, config.name)


def work_on(
    storage: str,
    name: str,
    data: Path | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
    report: Report = silent,
    workers: int = 1,
    timeout: float | None = None,
) -> Study:
    """Join a study that was started before, perhaps on another machine, and work on it until it has all its trials.

    Args:
        storage: URL.
        name: of the study.
        data: where the images lie here, None where the study says.
        checkpoint: where the weights of the dense network lie here, None where the study says.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading, training, calibrating and each trial.
        workers: processes of this machine that share the trials.
        timeout: seconds after which this worker starts no more trials.

    Raises:
        HsccError: there is no such study, its images or its dense network are not to be had here, or trials fail one
            after the other.
    """
    ready = join_study(storage, name, data, checkpoint, timeout, device, report)
    if ready is not None:
        _go_on(ready, ready[1].config, device, report, workers)
    return read_study(storage, name)


def _go_on(
    ready: tuple[Ledger, Prepared] | None, config: StudyConfig, device: str, report: Report, workers: int
) -> None:
    if ready is None:
        return
    ledger, prepared = ready
    with _lost_in_one_line(config.storage):
        if workers == 1:
            work(ledger, prepared, report)
        else:
            given = (config.data.path, config.model.checkpoint, config.timeout, device)
            work_together(workers, ledger, partial(join_study, config.storage, config.name, *given), report)


def start_study(config: StudyConfig, device: str = "auto", report: Report = silent) -> tuple[Ledger, Prepared] | None:
    """Create a study where it does not exist, and prepare what its trials need.

    Returns:
        None where the study has all its trials.

    Raises:
        HsccError: bad input, or a study whose file, images or dense network have changed.
    """
    storage = find_storage(config.storage)
    study = find_study(storage, config.name) if storage is not None else None
    record = read_record(study) if study is not None else None
    if record is not None:
        differences = config.differences(record.config)
        if differences:
            raise StudyError(
                f"study {config.name} was started with another study file ({'; '.join(differences)}): "
                "restore these values, or give the changed study a name of its own"
            )
        if study is not None and _finished(study) >= config.trials:
            return None
    prepared, space = _prepare(config, record, device, report)
    with _lost_in_one_line(config.storage):
        storage = storage or open_storage(config.storage)
        if study is None or record is None:
            study = _create(prepared, storage)
        else:  # harmless fields follow the last run: how many trials are wanted, where the images lie
            write_record(study, replace(record, config=config))
    return Ledger(study, storage, space), prepared


def join_study(
    storage: str,
    name: str,
    data: Path | None = None,
    checkpoint: Path | None = None,
    timeout: float | None = None,
    device: str = "auto",
    report: Report = silent,
) -> tuple[Ledger, Prepared] | None:
    """Prepare what trials of a study need that exists in a storage, perhaps on another machine.

    Args:
        storage: URL.
        name: of the study.
        data: where the images lie here, None where the study says.
        checkpoint: where the weights of the dense network lie here, None where the study says.
        timeout: seconds after which no more trials shall start here; the study's own is for those who started it.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading, training and calibrating.

    Returns:
        None where the study has all its trials.

    Raises:
        HsccError: there is no such study, or its images or its dense network are not to be had here.
    """
    opened = existing_storage(storage)
    study = known_study(opened, name)
    record = read_record(study)
    if record is None:
        raise StorageError(f"study {name!r} was not started yet: `hscc-search run` does")
    config = record.config.with_paths(data, checkpoint)
    config = config.model_copy(update={"storage": storage, "timeout": timeout})
    if _finished(study) >= config.trials:
        return None
    prepared, space = _prepare(config, record, device, report)
    return Ledger(study, opened, space), prepared


def _prepare(config: StudyConfig, record: StudyRecord | None, device: str, report: Report) -> tuple[Prepared, Space]:
    """Prepare what the trials of a study share, and what it samples; a record says what it was started with."""
    started_with = {} if record is None else {"fingerprint": record.fingerprint, "weights": record.dense.weights}
    opened = open_dense(config, device, report, **started_with)
    prepared = prepare(opened, None if record is None else record.dense, report)
    space = space_of(config, prepared.calibration)
    for sample in config.start:
        space.checked(sample)
    return prepared, space


def _create(prepared: Prepared, storage: BaseStorage) -> optuna.Study:
    opened, config = prepared.opened, prepared.config
    record = StudyRecord(
        config=config,
        fingerprint=opened.dataset.fingerprint,
        classes=opened.dataset.classes,
        labels=opened.parts.validation.labels,
        dense=DenseRecord(
            measured=measure(opened, opened.network, prepared.dense_cost, prepared.dense_latency),
            cost=prepared.dense_cost,
            weights=weights_digest(opened.network),
        ),
        versions=versions(),
    )
    directions = directions_of(objectives_of(config))
    study = optuna.create_study(study_name=config.name, storage=storage, directions=directions, load_if_exists=True)
    write_record(study, record)
    return study


def _finished(study: optuna.Study) -> int:
    return sum(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False))


@contextmanager
def _lost_in_one_line(storage: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not comes_from_storage(error):
            raise
        raise StorageError(
            f"lost the storage {without_password(storage)}: finished trials are kept, and the same command goes on"
        ) from error
