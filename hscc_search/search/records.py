"""Studies as they stand in a storage: read, listed, copied and removed. Nothing here needs torch."""

import base64
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic_core import from_json
from sqlalchemy import text

from hscc_search.config import StudyConfig
from hscc_search.errors import StorageError, StudyError
from hscc_search.search import hypervolume
from hscc_search.search.confidence import Confidence, confidence
from hscc_search.search.front import front
from hscc_search.search.objectives import objectives_of, title
from hscc_search.search.points import Objective, Point
from hscc_search.search.presence import at_work, worker_of
from hscc_search.storage import existing_storage, open_storage

if TYPE_CHECKING:
    from hscc_search.compression.hscc import LayerPlan

RECORD = "hscc"
# Raise it when a trial stores other things, or when the same setting would give another network.
RECORD_VERSION = 4


@dataclass(frozen=True)
class Study:
    """A study as it stands in its storage.

    Attributes:
        config: the study file with all defaults, as it was when the study was created.
        dense: the dense network.
        dense_details: all that was measured of it: cost, quality and the digest of its weights.
        classes: class names.
        labels: class of each validation image, uint16.
        fingerprint: of the data set.
        versions: of the packages that the study was created with.
        points: the finished trials, by number.
        failures: by trial number why it failed.
        plan_of: gives what became of each layer in one finished trial, by its number.
    """

    config: StudyConfig
    dense: Point
    dense_details: dict[str, Any]
    classes: tuple[str, ...]
    labels: np.ndarray = field(compare=False, repr=False)
    fingerprint: str
    versions: dict[str, str]
    points: tuple[Point, ...]
    failures: dict[int, str]
    plan_of: "Callable[[int], tuple[LayerPlan, ...]]" = field(compare=False, repr=False)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the study looks for."""
        return objectives_of(self.config)

    @cached_property
    def front(self) -> list[Point]:
        """The feasible trials that no other feasible trial beats, ascending by the first objective."""
        return front(self.points, self.objectives)

    @cached_property
    def confidence(self) -> Confidence:
        """How surely each trial is on the front, were the validation images drawn anew."""
        return confidence(self.points, self.objectives, self.labels, self.classes, self.config.seed)

    @property
    def reference(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The hypervolume's reference point, and the ideal one opposite: values of the objectives."""
        return hypervolume.reference_point(self.dense, self.objectives, self.labels)

    @property
    def hypervolume(self) -> float:
        """The share of the space between the reference point and the ideal one that the front covers."""
        return hypervolume.hypervolume(self.points, self.objectives, *self.reference)

    def hypervolumes(self) -> list[float]:
        """The hypervolume after each finished trial."""
        return hypervolume.hypervolume_history(self.points, self.objectives, *self.reference)


@dataclass(frozen=True)
class Listed:
    """One study of a storage.

    Attributes:
        name: of the study.
        finished: trials with values.
        failed: trials without.
        running: trials that a living worker is at.
        waiting: trials that wait for one.
        wanted: finished trials that the study shall have; None for a study of other makers.
        workers: at work.
        hypervolume: share of the space that the front covers; None before there is one.
        started: when, in ISO format.
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


def read_study(storage: str | BaseStorage, name: str) -> Study:
    """Read a study from its storage, given by URL or already open.

    Raises:
        StorageError: the storage cannot be reached or holds no such study.
        StudyError: the study is not one of this version of hscc-search.
    """
    opened = existing_storage(storage) if isinstance(storage, str) else storage
    return study_as_it_stands(known_study(opened, name), opened)


def study_as_it_stands(study: optuna.Study, storage: BaseStorage) -> Study:
    """What Optuna's study holds, which lies in ``storage``.

    Raises:
        StorageError: it was not started yet.
        StudyError: it is not one of this version of hscc-search.
    """
    record = record_of(study)
    if record is None:
        raise StorageError(f"study {study.study_name!r} was not started yet: `hscc-search run` does")
    return _read(study, storage, record)


def list_studies(storage: str | BaseStorage) -> list[Listed]:
    """The studies in a storage."""
    opened = existing_storage(storage) if isinstance(storage, str) else storage
    listing = []
    for name in optuna.get_all_study_names(opened):
        study = optuna.load_study(study_name=name, storage=opened)
        # Optuna's own objects only for the trials that are not over: there may be ten thousand of the others.
        counts = Counter(state for _, state, _, _ in _outcomes(study, opened))
        running = opened.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.RUNNING,))
        active = [trial for trial in running if at_work(trial)]
        record = study.user_attrs.get(RECORD)
        known = record is not None and record["version"] == RECORD_VERSION
        reached = study_as_it_stands(study, opened).hypervolume if known and counts[TrialState.COMPLETE] else None
        started = _trial(opened, study._study_id, 0).datetime_start if counts else None
        listing.append(
            Listed(
                name=name,
                finished=counts[TrialState.COMPLETE],
                failed=counts[TrialState.FAIL],
                running=len(active),
                waiting=counts[TrialState.WAITING] + counts[TrialState.RUNNING] - len(active),
                wanted=record["config"]["trials"] if record else None,
                workers=len({worker_of(trial) for trial in active}),
                hypervolume=reached,
                started=started.isoformat(timespec="seconds") if started else None,
            )
        )
    return listing


def remove_study(storage: str, name: str) -> None:
    """Remove a study and all its trials.

    Raises:
        StorageError: the storage cannot be reached or holds no such study.
        StudyError: workers are at it.
    """
    opened = existing_storage(storage)
    study = known_study(opened, name)
    active = [trial for trial in study.get_trials(deepcopy=False) if at_work(trial)]
    if active:
        workers = len({worker_of(trial) for trial in active})
        raise StudyError(f"study {name} has {workers} worker{'s'[: workers > 1]} at work: stop first what works on it")
    optuna.delete_study(study_name=name, storage=opened)


def copy_study(storage: str, name: str, to_name: str, to_storage: str | None = None) -> int:
    """Copy a study with its finished and failed trials, under another name or to another storage.

    Returns:
        How many trials were copied.

    Raises:
        StorageError: a storage cannot be reached, there is no such study, or the other name is taken.
        StudyError: the study is not one of this version of hscc-search.
    """
    source = existing_storage(storage)
    study = known_study(source, name)
    record = record_of(study)
    if record is None:
        raise StorageError(f"study {name!r} was not started yet: there is nothing to copy")
    config = StudyConfig.from_tree({**record["config"], "name": to_name}, f"copy of study {name}")
    target = source if to_storage is None else open_storage(to_storage)
    if find_study(target, to_name) is not None:
        raise StorageError(f"there is a study {to_name!r} already: give the copy another name")
    copied = optuna.create_study(study_name=to_name, storage=target, directions=study.directions)
    try:
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        copied.add_trials(trials)
        name_metrics(copied, config)
        copied.set_user_attr(RECORD, {**record, "config": {**config.stored(), "storage": record["config"]["storage"]}})
    except BaseException:  # a study without its record would stand in the way of the next attempt
        optuna.delete_study(study_name=to_name, storage=target)
        raise
    return len(trials)


def name_metrics(study: optuna.Study, config: StudyConfig) -> None:
    """Have Optuna and its dashboard call the objectives by their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([title(one.metric) for one in objectives_of(config)])


def known_study(storage: BaseStorage, name: str) -> optuna.Study:
    """A study as Optuna has it.

    Raises:
        StorageError: there is none of that name; it says which ones there are.
    """
    study = find_study(storage, name)
    if study is None:
        known = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none"
        raise StorageError(f"no study {name!r} in this storage: it holds {known}")
    return study


def find_study(storage: BaseStorage, name: str) -> optuna.Study | None:
    """A study as Optuna has it; None where there is none of that name."""
    if name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=name, storage=storage)


def record_of(study: optuna.Study) -> dict[str, Any] | None:
    """What was stored with a study when it was created; None where the process ended before that.

    Raises:
        StudyError: the study is not one of this version of hscc-search.
    """
    name = study.study_name
    record = study.user_attrs.get(RECORD)
    if record is None:
        if study.get_trials(deepcopy=False):
            raise StudyError(
                f"study {name!r} in this storage was not made by hscc-search: choose another name or storage"
            )
        return None
    if record["version"] != RECORD_VERSION:
        raise StudyError(
            f"study {name!r} was made by another version of hscc-search ({record['versions']['hscc-search']})"
        )
    return dict(record)


def stored_config(record: Mapping[str, Any]) -> StudyConfig:
    """The configuration of a record."""
    return StudyConfig.from_tree(record["config"], f"stored study {record['config']['name']}")


def packed(values: bytes) -> str:
    """Bytes as short text."""
    return base64.b64encode(zlib.compress(values)).decode()


def unpacked(text: str) -> bytes:
    """Undo :func:`packed`."""
    return zlib.decompress(base64.b64decode(text))


def _read(study: optuna.Study, storage: BaseStorage, record: Mapping[str, Any]) -> Study:
    dense = record["dense"]
    points, failures = [], {}
    for number, state, measured, failure in _outcomes(study, storage):
        if state == TrialState.FAIL:
            failures[number] = failure or "its process ended"
        elif state == TrialState.COMPLETE and measured is not None:
            points.append(
                Point(
                    number,
                    measured["settings"],
                    measured["metrics"],
                    measured["errors"],
                    unpacked(measured["predictions"]),
                    measured["violations"],
                )
            )
    return Study(
        config=stored_config(record),
        dense=Point(None, {}, dense["metrics"], dense["errors"], unpacked(dense["predictions"])),
        dense_details=dense,
        classes=tuple(record["classes"]),
        labels=np.frombuffer(unpacked(record["labels"]), "<u2"),
        fingerprint=record["fingerprint"],
        versions=record["versions"],
        points=tuple(points),
        failures=failures,
        plan_of=partial(_plan, storage, study._study_id),
    )


def _outcomes(
    study: optuna.Study, storage: BaseStorage
) -> Iterator[tuple[int, TrialState, dict[str, Any] | None, str | None]]:
    """Number, state, what was measured, and why it failed, of each trial in order.

    From a database they come by one query: Optuna builds objects for every value, and for ten thousand trials these
    take ten times as long.
    """
    if not isinstance(storage, RDBStorage):
        for trial in study.get_trials(deepcopy=False):
            yield trial.number, trial.state, trial.user_attrs.get("measured"), trial.user_attrs.get("failure")
        return
    query = text(
        "SELECT trials.number, trials.state, measured.value_json, failure.value_json FROM trials "
        "LEFT JOIN trial_user_attributes AS measured "
        "ON measured.trial_id = trials.trial_id AND measured.key = 'measured' "
        "LEFT JOIN trial_user_attributes AS failure "
        "ON failure.trial_id = trials.trial_id AND failure.key = 'failure' "
        "WHERE trials.study_id = :study ORDER BY trials.number"
    )
    with storage.engine.connect() as connection:
        for number, state, measured, failure in connection.execute(query, {"study": study._study_id}):
            yield number, TrialState[state], from_json(measured or "null"), from_json(failure or "null")


def _plan(storage: BaseStorage, study: int, number: int) -> "tuple[LayerPlan, ...]":
    from hscc_search.compression.hscc import LayerPlan

    return tuple(LayerPlan.from_stored(layer) for layer in _trial(storage, study, number).user_attrs["plan"])


def _trial(storage: BaseStorage, study: int, number: int) -> FrozenTrial:
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study, number))
