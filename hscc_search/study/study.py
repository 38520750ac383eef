"""Start, continue or join a study, with one process or several."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from hscc_search.config import StudyConfig
from hscc_search.data.dataset import kept_labels
from hscc_search.data.rows import Rows
from hscc_search.dense.opened import Opened, open_dense
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import StorageError, StudyError
from hscc_search.evaluation.draws import alone
from hscc_search.evaluation.own import own_metrics
from hscc_search.pareto.objectives import objectives_of
from hscc_search.progress import Report, silent
from hscc_search.storage import check_storage, existing_storage, find_storage, open_storage
from hscc_search.storage_faults import in_one_line, undamaged
from hscc_search.study.beforehand import Notices, notices_before_training, notices_on_dense
from hscc_search.study.images_record import ImagesRecord
from hscc_search.study.opening import calibration_pixels, open_again, same_as_stored
from hscc_search.study.propose import directions_of
from hscc_search.study.record import DenseRecord, StudyRecord, refines, versions
from hscc_search.study.refinement import left_to_refine
from hscc_search.study.space import Space, check_space, space_of
from hscc_search.study.stored_study import (
    Study,
    find_study,
    known_study,
    read_record,
    read_study,
    upgrade_record,
    write_record,
)
from hscc_search.study.trial import Prepared, check_metrics, measure, prepare
from hscc_search.study.workers.crew import work_together
from hscc_search.study.workers.ledger import Ledger
from hscc_search.study.workers.worker import work


def run_study(
    config: StudyConfig,
    device: str = "auto",
    report: Report = silent,
    workers: int = 1,
    strict: bool = False,
    given: Opened | None = None,
) -> Study:
    """Start a study, or continue it, until it has ``config.trials`` finished trials in all.

    Every trial is stored when it finishes, so that whatever stops this function loses no finished trial.

    Args:
        config: its storage is created where it does not exist.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading, training, calibrating and each trial.
        workers: number of processes that share the trials.
        strict: whether a new study is refused where there is something to warn of.
        given: images and dense network that are in memory, for one worker; None opens those that ``config`` names.

    Raises:
        HsccError: bad input, a study whose file has changed, or several trials in a row that fail.
    """
    with in_one_line(config.storage):
        ready = start_study(config, device, report, strict, given)
    if ready is not None:
        _run_trials(*ready, config, device, report, workers)
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
        data: folder of the images on this machine; None takes the study's.
        checkpoint: weights of the dense network on this machine; None takes the study's.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading, training, calibrating and each trial.
        workers: number of processes of this machine that share the trials.
        timeout: seconds after which this worker starts no more trials.

    Raises:
        HsccError: there is no such study, its images or its dense network are not available on this machine, or
            several trials in a row fail.
    """
    with in_one_line(storage):
        ready = join_study(storage, name, data, checkpoint, timeout, device, report)
    if ready is not None:
        _, prepared = ready
        _run_trials(*ready, prepared.config, device, report, workers)
    return read_study(storage, name)


def _run_trials(
    ledger: Ledger, prepared: Prepared, config: StudyConfig, device: str, report: Report, workers: int
) -> None:
    with in_one_line(config.storage):
        if workers == 1:
            work(ledger, prepared, report)
        else:
            data, checkpoint = config.data.path, config.model.checkpoint
            join = partial(join_study, config.storage, config.name, data, checkpoint, config.timeout, device)
            work_together(workers, ledger, join, report)


def start_study(
    config: StudyConfig,
    device: str = "auto",
    report: Report = silent,
    strict: bool = False,
    given: Opened | None = None,
) -> tuple[Ledger, Prepared] | None:
    """Create a study where it does not exist, and prepare what its trials share.

    Returns:
        The ledger of the trials and what they share; None where the study has all its trials.

    Raises:
        HsccError: bad input, or a study whose file, images or dense network have changed.
    """
    storage = find_storage(config.storage)
    with undamaged(config.storage):
        study = find_study(storage, config.name) if storage is not None else None
        record = read_record(study) if study is not None else None
    if record is not None:
        config = config.as_started(record.config)
        differences = config.differences(record.config)
        if differences:
            raise StudyError(
                f"study {config.name} was started with another study file ({'; '.join(differences)}): "
                "restore these values, or give the changed study a name of its own"
            )
        assert study is not None and storage is not None
        with undamaged(config.storage):
            if _all_done(study, storage, config):
                return None
    check_storage(config.storage)
    notices = Notices(report, strict)
    prepared, space = _prepare(config, record, device, report, notices, given)
    storage = storage or open_storage(config.storage)
    if study is None or record is None:
        study = _create(prepared, storage, notices)
    else:  # fields that may change take the values of the last run, such as the number of trials
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
    """Prepare on this machine what the trials of a stored study share.

    Args:
        storage: URL.
        name: of the study.
        data: folder of the images on this machine; None takes the study's.
        checkpoint: weights of the dense network on this machine; None takes the study's.
        timeout: seconds after which this worker starts no more trials; that of the study file is for `run` alone.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading, training and calibrating.

    Returns:
        The ledger of the trials and what they share; None where the study has all its trials.

    Raises:
        HsccError: there is no such study, or its images or its dense network are not available on this machine.
    """
    opened = existing_storage(storage)
    with undamaged(storage):
        study = known_study(opened, name)
        record = read_record(study)
    if record is None:
        raise StorageError(f"study {name!r} was not started yet: start it with `hscc-search run`")
    config = record.config.with_paths(data, checkpoint)
    config = config.model_copy(update={"storage": storage, "timeout": timeout})
    with undamaged(storage):
        if _all_done(study, opened, config):
            return None
    prepared, space = _prepare(config, record, device, report, Notices(report, strict=False))
    upgrade_record(study)
    return Ledger(study, opened, space), prepared


def _prepare(
    config: StudyConfig,
    record: StudyRecord | None,
    device: str,
    report: Report,
    notices: Notices,
    given: Opened | None = None,
) -> tuple[Prepared, Space]:
    """Prepare what the trials of a study share, and its space; images and network must be those of the record."""
    check_space(config)
    own_metrics(config)  # imported before anything takes time
    if given is not None:
        opened = given if record is None else same_as_stored(given, record)
        if record is None:
            notices.tell(notices_before_training(given))
    elif record is None:

        def look(built: Opened) -> None:
            notices.tell(notices_before_training(built))

        opened = open_dense(config, device, report, look=look)
    else:
        opened = open_again(record, config, device, report)
    check_metrics(opened)
    prepared = prepare(opened, None if record is None else record.dense, report)
    space = space_of(config, prepared.calibration)
    space.check()
    return prepared, space


def _create(prepared: Prepared, storage: BaseStorage, notices: Notices) -> optuna.Study:
    opened, config = prepared.opened, prepared.config
    validation = opened.parts.validation
    measured = measure(opened, opened.network, prepared.dense_cost, prepared.dense_latency)
    notices.tell(notices_on_dense(opened, measured))
    record = StudyRecord(
        config=config,
        fingerprint=opened.dataset.fingerprint,
        classes=opened.dataset.classes,
        labels=kept_labels(validation.labels, len(opened.dataset.classes)),
        groups=None if alone(validation.groups) else validation.groups,
        dense=DenseRecord(
            measured=measured,
            cost=prepared.dense_cost,
            weights=weights_digest(opened.network),
            network=opened.identity,
        ),
        versions=versions(),
        inspection=prepared.calibration.inspection,
        notices=tuple(notices.lines),
        images=_images(opened),
    )
    directions = directions_of(objectives_of(config))
    study = optuna.create_study(study_name=config.name, storage=storage, directions=directions, load_if_exists=True)
    write_record(study, record)
    return study


def _images(opened: Opened) -> ImagesRecord:
    validation, names = opened.parts.validation.images, opened.dataset.names
    of_validation = [names[index] for index in validation.indices] if isinstance(validation, Rows) else []
    return ImagesRecord.of(of_validation, calibration_pixels(opened).numpy())


def _all_done(study: optuna.Study, storage: BaseStorage, config: StudyConfig) -> bool:
    """Tell whether a study has all its trials, and those of its second stage."""
    trials = study.get_trials(deepcopy=False)
    finished = sum(trial.state == TrialState.COMPLETE and refines(trial) is None for trial in trials)
    return finished >= config.trials and not left_to_refine(study, storage, config)
