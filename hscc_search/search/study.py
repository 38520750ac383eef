"""A study: started, gone on with, and read back."""

import importlib.metadata
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from hscc_search import models
from hscc_search.compression.hscc import LayerPlan
from hscc_search.config import StudyConfig
from hscc_search.data import Dataset, Parts, load_dataset, split
from hscc_search.errors import StorageError, StudyError
from hscc_search.evaluation.cost import measure_cost
from hscc_search.progress import Progress, Report, silent
from hscc_search.search.front import Point, front
from hscc_search.search.objective import Bench, Measurement, calibration_images, make_bench, setting_of
from hscc_search.storage import existing_storage, find_storage, open_storage, shown
from hscc_search.training import dense_network

_RECORD = "hscc"
# Raise it when a trial stores other things, or when the same setting would give another network.
_RECORD_VERSION = 2
# A study whose trials all fail has one cause, and going on does not remove it.
_FAILURES_IN_A_ROW = 5


@dataclass(frozen=True)
class Study:
    """A study as it stands in its storage.

    Attributes:
        config: the study file with all defaults, as it was when the study was created.
        dense: the dense network.
        dense_details: all that was measured of it: cost, quality and the digest of its weights.
        classes: class names.
        fingerprint: of the data set.
        versions: of the packages that the study was created with.
        points: the finished trials.
        plans: by trial number the plan of its layers.
        failures: by trial number why it failed.
    """

    config: StudyConfig
    dense: Point
    dense_details: dict[str, Any]
    classes: tuple[str, ...]
    fingerprint: str
    versions: dict[str, str]
    points: tuple[Point, ...]
    plans: dict[int, tuple[LayerPlan, ...]]
    failures: dict[int, str]

    @property
    def front(self) -> list[Point]:
        """The trials that no other trial beats, by ascending FLOPs."""
        return front(self.points)


def run_study(config: StudyConfig, device: str = "auto", report: Report = silent) -> Study:
    """Start a study, or go on with it, until it has ``config.trials`` finished trials in all.

    Every trial is stored when it finishes, so that whatever stops this function loses no finished trial.

    Args:
        config: its storage is created where it does not exist.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading, training, calibrating and each trial.

    Raises:
        HsccError: bad input, a study whose file has changed, or trials that fail one after the other.
    """
    place = models.choose_device(device)
    storage = find_storage(config.storage)
    study = _find(storage, config.name) if storage is not None else None
    record = _record(study, config.name) if study is not None else None
    if record is not None:
        differences = config.differences(_stored_config(record, config.name))
        if differences:
            raise StudyError(
                f"study {config.name} was started with another study file ({'; '.join(differences)}): "
                "restore these values, or give the changed study a name of its own"
            )
        if study is not None and _finished(study) >= config.trials:
            return read_study(config.storage, config.name)
    dataset = load_dataset(config.data, report)
    if record is not None and record["fingerprint"] != dataset.fingerprint:
        raise StudyError(
            f"study {config.name} was started on other images than those at {config.data.path}: "
            "give the same images with --data DIR, or give the study a name of its own"
        )
    parts = split(dataset, config.data.validation, config.data.test, config.data.split_seed)
    network = dense_network(config, dataset, parts, place, report)
    if record is not None and record["dense"]["weights"] != models.weights_digest(network):
        raise StudyError(
            f"study {config.name} was started with another dense network: "
            "give the same weights with --checkpoint FILE, or give the study a name of its own"
        )
    bench = make_bench(config, network, dataset.classes, parts.train, parts.validation, place, report)
    try:
        if study is None or record is None:
            study = _create(config, dataset, bench)
        else:  # harmless fields follow the last run: how many trials are wanted, where the images lie
            study.set_user_attr(_RECORD, {**record, "config": _to_store(config)})
        _run_trials(study, bench, report)
    except Exception as error:
        if not _comes_from_storage(error):
            raise
        raise StorageError(
            f"lost the storage {shown(config.storage)}: finished trials are kept, and the same command goes on"
        ) from error
    return read_study(config.storage, config.name)


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


def read_study(storage: str | optuna.storages.RDBStorage, name: str) -> Study:
    """Read a study from its storage, given by URL or already open.

    Raises:
        StorageError: the storage cannot be reached or holds no such study.
    """
    opened = existing_storage(storage) if isinstance(storage, str) else storage
    study = _find(opened, name)
    if study is None:
        known = ", ".join(sorted(optuna.get_all_study_names(opened))) or "none"
        raise StorageError(f"no study {name!r} in this storage: it holds {known}")
    record = _record(study, name)
    if record is None:
        raise StorageError(f"study {name!r} was not started yet: `hscc-search run` does")
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    dense = record["dense"]
    return Study(
        config=_stored_config(record, name),
        dense=_point(None, {}, dense["cost"], dense["quality"]),
        dense_details=dense,
        classes=tuple(record["classes"]),
        fingerprint=record["fingerprint"],
        versions=record["versions"],
        points=tuple(
            _point(trial.number, trial.params, trial.user_attrs["cost"], trial.user_attrs["quality"])
            for trial in complete
        ),
        plans={
            trial.number: tuple(LayerPlan.from_stored(layer) for layer in trial.user_attrs["plan"])
            for trial in complete
        },
        failures={
            trial.number: trial.user_attrs.get("failure", "its process ended")
            for trial in trials
            if trial.state == TrialState.FAIL
        },
    )


def list_studies(storage: str | optuna.storages.RDBStorage) -> list[dict[str, Any]]:
    """The studies in a storage: name, finished, failed and running trials, wanted trials, and when they began."""
    opened = existing_storage(storage) if isinstance(storage, str) else storage
    listing = []
    for study in (optuna.load_study(study_name=name, storage=opened) for name in optuna.get_all_study_names(opened)):
        record = study.user_attrs.get(_RECORD)
        trials = study.get_trials(deepcopy=False)
        states = [trial.state for trial in trials]
        starts = [trial.datetime_start for trial in trials if trial.datetime_start]
        listing.append(
            {
                "name": study.study_name,
                "finished": states.count(TrialState.COMPLETE),
                "failed": states.count(TrialState.FAIL),
                "running": states.count(TrialState.RUNNING),
                "wanted": record["config"]["trials"] if record else None,
                "started": min(starts).isoformat(timespec="seconds") if starts else None,
            }
        )
    return listing


def _find(storage: optuna.storages.RDBStorage, name: str) -> optuna.Study | None:
    if name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=name, storage=storage, sampler=_sampler(0))


def _record(study: optuna.Study, name: str) -> dict[str, Any] | None:
    """What was stored with a study when it was created; None where the process ended before that."""
    record = study.user_attrs.get(_RECORD)
    if record is None:
        if study.get_trials(deepcopy=False):
            raise StudyError(
                f"study {name!r} in this storage was not made by hscc-search: choose another name or storage"
            )
        return None
    if record["version"] != _RECORD_VERSION:
        raise StudyError(
            f"study {name!r} was made by another version of hscc-search ({record['versions']['hscc-search']})"
        )
    return dict(record)


def _stored_config(record: dict[str, Any], name: str) -> StudyConfig:
    return StudyConfig.from_tree(record["config"], f"stored study {name}")


def _to_store(config: StudyConfig) -> dict[str, Any]:
    """What is stored of a configuration: all but the database's password."""
    return {**config.stored(), "storage": shown(config.storage)}


def _create(config: StudyConfig, dataset: Dataset, bench: Bench) -> optuna.Study:
    dense = {
        "cost": measure_cost(bench.network, config.data.image_size).stored(),
        "quality": bench.quality(bench.network).stored(),
        "weights": models.weights_digest(bench.network),
    }
    study = optuna.create_study(
        study_name=config.name,
        storage=open_storage(config.storage),
        sampler=_sampler(0),
        directions=["minimize", "maximize"],
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(["FLOPs", "accuracy"])
    # One attribute, so that a study has its record whole or not at all.
    study.set_user_attr(
        _RECORD,
        {
            "version": _RECORD_VERSION,
            "config": _to_store(config),
            "versions": _versions(),
            "fingerprint": dataset.fingerprint,
            "images": len(dataset.labels),
            "classes": list(dataset.classes),
            "dense": dense,
        },
    )
    return study


def _run_trials(study: optuna.Study, bench: Bench, report: Report) -> None:
    config = bench.config
    began = time.monotonic()
    failed_in_a_row = 0
    report(Progress("searching", _finished(study), config.trials))
    while (finished := _finished(study)) < config.trials:
        if config.timeout is not None and time.monotonic() - began > config.timeout:
            return
        # Seeded by the trial's number, a study that was interrupted samples what an unbroken one would have.
        number = len(study.get_trials(deepcopy=False))
        study.sampler = _sampler(config.seed * 1_000_003 + number)
        study.optimize(_objective(bench), n_trials=1, catch=(Exception,))
        last = study.get_trials(deepcopy=False)[number]
        if last.state == TrialState.COMPLETE:
            failed_in_a_row = 0
            report(Progress("searching", finished + 1, config.trials, _note(last, study)))
            continue
        failed_in_a_row += 1
        reason = last.user_attrs.get("failure", "unknown")
        report(Progress("searching", finished, config.trials, f"trial {last.number} failed: {reason}"))
        if failed_in_a_row == _FAILURES_IN_A_ROW:
            raise StudyError(f"{failed_in_a_row} trials in a row failed, the last one because {reason}")


def _objective(bench: Bench) -> Callable[[optuna.Trial], tuple[float, float]]:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        space = bench.config.space
        trial.suggest_int("regions", space.regions.low, space.regions.high)
        trial.suggest_int("clusters", space.clusters.low, space.clusters.high)
        if space.budget is not None:
            # The front is drawn over FLOPs, so that ratios are spread evenly on a logarithmic scale.
            trial.suggest_float("budget", space.budget.low, space.budget.high, log=True)
        else:
            assert space.energy is not None
            trial.suggest_float("energy", space.energy.low, space.energy.high)
        try:
            measured = bench.measure(setting_of(bench.config, trial.params))
        except BaseException as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
            trial.set_user_attr("failure", " ".join(reason.split())[:500])
            raise
        _store(trial, measured)
        return measured.cost.flops, measured.quality.accuracy

    return objective


def _store(trial: optuna.Trial, measured: Measurement) -> None:
    trial.set_user_attr("cost", measured.cost.stored())
    trial.set_user_attr("quality", measured.quality.stored())
    trial.set_user_attr("plan", [layer.stored() for layer in measured.compressed.plan])
    trial.set_user_attr("seconds", {phase: round(value, 4) for phase, value in measured.seconds.items()})


def _comes_from_storage(error: BaseException | None) -> bool:
    """Whether a storage error stands behind another one: Optuna 5 trips over itself when its storage goes away."""
    while error is not None:
        if isinstance(error, (StorageInternalError, SQLAlchemyError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _note(trial: FrozenTrial, study: optuna.Study) -> str:
    dense = study.user_attrs[_RECORD]["dense"]["cost"]["flops"]
    flops, accuracy = trial.values
    return f"trial {trial.number}: {dense / flops:.2f}x fewer FLOPs, accuracy {accuracy:.3f}"


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed % 2**32, multivariate=True)


def _point(number: int | None, params: dict[str, Any], cost: dict[str, Any], quality: dict[str, Any]) -> Point:
    return Point(
        trial=number,
        settings=dict(params),
        **{key: cost[key] for key in ("flops", "macs", "parameters", "megabytes")},
        **{key: quality[key] for key in ("accuracy", "accuracy_se", "macro_f1", "macro_f1_se")},
    )


def _versions() -> dict[str, str]:
    packages = ("hscc-search", "torch", "torchvision", "optuna", "scikit-learn", "fvcore", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
