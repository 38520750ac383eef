"""A study: started, or gone on with, by one process or several."""

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hscc_search import models
from hscc_search.config import StudyConfig
from hscc_search.data import Dataset, Parts, load_dataset, split
from hscc_search.errors import StorageError, StudyError
from hscc_search.evaluation.cost import CountedCost
from hscc_search.progress import Report, silent
from hscc_search.search.ledger import Ledger
from hscc_search.search.objective import Bench, calibration_images, make_bench, metrics_of
from hscc_search.search.objectives import check_classes, objectives_of
from hscc_search.search.records import (
    RECORD,
    RECORD_VERSION,
    Study,
    find_study,
    known_study,
    name_metrics,
    packed,
    read_study,
    record_of,
    stored_config,
)
from hscc_search.search.space import Space, space_of
from hscc_search.search.worker import work, work_together
from hscc_search.storage import comes_from_storage, existing_storage, find_storage, open_storage, shown
from hscc_search.training import dense_network


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


def _go_on(ready: tuple[Ledger, Bench] | None, config: StudyConfig, device: str, report: Report, workers: int) -> None:
    if ready is None:
        return
    ledger, bench = ready
    with _lost_in_one_line(config.storage):
        if workers == 1:
            work(ledger, bench, report)
        else:
            places = (config.data.path, config.model.checkpoint, config.timeout)
            work_together(workers, ledger, partial(join_study, config.storage, config.name, *places, device), report)


def start_study(config: StudyConfig, device: str = "auto", report: Report = silent) -> tuple[Ledger, Bench] | None:
    """Create a study where it does not exist, and prepare what its trials need.

    Returns:
        None where the study has all its trials.

    Raises:
        HsccError: bad input, or a study whose file, images or dense network have changed.
    """
    storage = find_storage(config.storage)
    study = find_study(storage, config.name) if storage is not None else None
    record = record_of(study) if study is not None else None
    if record is not None:
        differences = config.differences(stored_config(record))
        if differences:
            raise StudyError(
                f"study {config.name} was started with another study file ({'; '.join(differences)}): "
                "restore these values, or give the changed study a name of its own"
            )
        if study is not None and _finished(study) >= config.trials:
            return None
    dataset, bench, space = _prepare(config, record, device, report)
    with _lost_in_one_line(config.storage):
        storage = storage or open_storage(config.storage)
        if study is None or record is None:
            study = _create(config, dataset, bench, storage)
        else:  # harmless fields follow the last run: how many trials are wanted, where the images lie
            study.set_user_attr(RECORD, {**record, "config": _to_store(config)})
    return Ledger(study, storage, space), bench


def join_study(
    storage: str,
    name: str,
    data: Path | None = None,
    checkpoint: Path | None = None,
    timeout: float | None = None,
    device: str = "auto",
    report: Report = silent,
) -> tuple[Ledger, Bench] | None:
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
    record = record_of(study)
    if record is None:
        raise StorageError(f"study {name!r} was not started yet: `hscc-search run` does")
    config = stored_config(record).placed(data, checkpoint)
    config = config.model_copy(update={"storage": storage, "timeout": timeout})
    if _finished(study) >= config.trials:
        return None
    _, bench, space = _prepare(config, record, device, report)
    return Ledger(study, opened, space), bench


def train_dense(
    config: StudyConfig, device: str = "auto", report: Report = silent
) -> tuple[Dataset, Parts, torch.nn.Module]:
    """Train the dense network of a study, or take it from the cache; returns it with the data it belongs to."""
    place = models.choose_device(device)
    dataset = load_dataset(config.data, report)
    parts = split(dataset, config.data.validation, config.data.test, config.data.split_seed)
    return dataset, parts, dense_network(config, dataset, parts, place, report)


def load_dense(
    config: StudyConfig, device: str = "auto", report: Report = silent
) -> tuple[torch.nn.Module, torch.Tensor]:
    """The dense network of a study and its calibration images, ready for :func:`hscc_search.calibrate`.

    Returns:
        The network in evaluation mode, trained now where it was not before, and float32 images as it takes them,
        shape (images, 3, side, side), both on the device.
    """
    _, parts, network = train_dense(config, device, report)
    return network, calibration_images(config, parts.train, models.choose_device(device))


def _prepare(
    config: StudyConfig, record: Mapping[str, Any] | None, device: str, report: Report
) -> tuple[Dataset, Bench, Space]:
    """Images, dense network and calibration of a study, those it was started with, and what it samples."""
    place = models.choose_device(device)
    dataset = load_dataset(config.data, report)
    if record is not None and record["fingerprint"] != dataset.fingerprint:
        raise StudyError(
            f"study {config.name} was started on other images than those at {config.data.path}: "
            "give the same images with --data DIR, or give the study a name of its own"
        )
    check_classes(config, dataset.classes)
    parts = split(dataset, config.data.validation, config.data.test, config.data.split_seed)
    network = dense_network(config, dataset, parts, place, report)
    if record is not None and record["dense"]["weights"] != models.weights_digest(network):
        raise StudyError(
            f"study {config.name} was started with another dense network: "
            "give the same weights with --checkpoint FILE, or give the study a name of its own"
        )
    cost = CountedCost(**record["dense"]["cost"]) if record is not None else None
    latency = record["dense"]["metrics"].get("latency") if record is not None else None
    bench = make_bench(config, network, dataset.classes, parts.train, parts.validation, place, cost, latency, report)
    space = space_of(config, bench.calibration)
    for sample in config.start:
        space.checked(sample)
    return dataset, bench, space


def _create(config: StudyConfig, dataset: Dataset, bench: Bench, storage: BaseStorage) -> optuna.Study:
    cost = bench.dense_cost
    quality, predictions = bench.quality(bench.network)
    metrics, errors = metrics_of(cost, quality, dataset.classes, bench.dense_latency)
    # One attribute, so that a study has its record whole or not at all.
    record = {
        "version": RECORD_VERSION,
        "config": _to_store(config),
        "versions": _versions(),
        "fingerprint": dataset.fingerprint,
        "images": len(dataset.labels),
        "classes": list(dataset.classes),
        "labels": packed(bench.validation.labels.astype("<u2").tobytes()),
        "dense": {
            "metrics": metrics,
            "errors": errors,
            "predictions": packed(predictions),
            "cost": cost.stored(),
            "quality": quality.stored(),
            "weights": models.weights_digest(bench.network),
        },
    }
    directions = [StudyDirection.MAXIMIZE if one.maximise else StudyDirection.MINIMIZE for one in objectives_of(config)]
    study = optuna.create_study(study_name=config.name, storage=storage, directions=directions, load_if_exists=True)
    name_metrics(study, config)
    study.set_user_attr(RECORD, record)
    return study


def _finished(study: optuna.Study) -> int:
    return sum(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False))


def _to_store(config: StudyConfig) -> dict[str, Any]:
    """What is stored of a configuration: all but the database's password."""
    return {**config.stored(), "storage": shown(config.storage)}


@contextmanager
def _lost_in_one_line(storage: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not comes_from_storage(error):
            raise
        raise StorageError(
            f"lost the storage {shown(storage)}: finished trials are kept, and the same command goes on"
        ) from error


def _versions() -> dict[str, str]:
    packages = ("hscc-search", "torch", "torchvision", "optuna", "scikit-learn", "fvcore", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
