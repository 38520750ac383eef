"""A study as it stands in its storage. Needs no torch."""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from hscc_search.compression.divided import DividedLayer
from hscc_search.compression.plan import LayerPlan
from hscc_search.config import StudyConfig
from hscc_search.errors import StorageError, StudyError
from hscc_search.pareto import hypervolume
from hscc_search.pareto.confidence import Confidence, Truth, confidence
from hscc_search.pareto.front import front
from hscc_search.pareto.objectives import Objective, objectives_of, title
from hscc_search.pareto.points import Measured, Point
from hscc_search.pareto.rules import Rule
from hscc_search.pareto.selection import Choice, choose, ranked, why_none_is_feasible
from hscc_search.storage import storage_to_read
from hscc_search.storage_faults import in_one_line, undamaged
from hscc_search.study.outcomes import Ended, Outcome, ended_trials, outcomes
from hscc_search.study.record import (
    DIVIDED,
    FORMAT,
    PLAN,
    STUDY,
    StudyRecord,
    divided_from_stored,
    plan_from_stored,
)


@dataclass(frozen=True)
class Study:
    """A study as it stands in its storage.

    Attributes:
        record: what was stored when it was created.
        points: the finished trials, by number.
        failures: by trial number the reason why it failed.
        plan_of: reads the plan of each layer in one finished trial, by its number.
        divided_of: reads its layers that have more than one region or cluster; none of a trial of version 0.1.0.
    """

    record: StudyRecord
    points: tuple[Point, ...]
    failures: dict[int, str]
    plan_of: Callable[[int], tuple[LayerPlan, ...]] = field(compare=False, repr=False)
    divided_of: Callable[[int], tuple[DividedLayer, ...]] = field(compare=False, repr=False)

    @property
    def config(self) -> StudyConfig:
        """The study file with all defaults, as it was when the study was last run."""
        return self.record.config

    @property
    def dense(self) -> Measured:
        """The dense network."""
        return self.record.dense.measured

    @property
    def searched(self) -> "Study":
        """The same study without the trials of its second stage, which measures some again, refined."""
        return replace(self, points=tuple(point for point in self.points if point.refines is None))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, in the order of the study file."""
        return objectives_of(self.config)

    @cached_property
    def front(self) -> list[Point]:
        """The feasible trials that no other feasible trial beats, ascending by the first objective."""
        return front(self.points, self.objectives)

    @cached_property
    def truth(self) -> Truth:
        """What the answers to the validation images are compared with."""
        record = self.record
        return Truth(record.labels, record.classes, record.groups)

    @cached_property
    def confidence(self) -> Confidence:
        """The front over bootstrap draws of the validation images, or of their groups."""
        return confidence(
            self.points,
            self.objectives,
            self.truth,
            self.config.seed,
            most_parameters=self.dense["parameters"],
        )

    @cached_property
    def close(self) -> list[Point]:
        """The trials beside the front that cannot be told apart from it, by number."""
        members = {point.trial for point in self.front}
        return [point for point in self.points if point.trial in self.confidence.close - members]

    def choose(self, rule: Rule | str) -> Choice:
        """Choose a trial by a rule, see :func:`hscc_search.pareto.selection.select`, and say why it is that one.

        Raises:
            ConfigError: the text is not a rule, or the rule is of several trials.
            StudyError: no trial fits the rule.
        """
        return choose(rule, self.points, self.objectives, lambda: self.confidence, self.dense)

    def ranked(self) -> list[Choice]:
        """Rank the front, see :func:`hscc_search.pareto.selection.ranked`.

        Raises:
            StudyError: it is empty.
        """
        if not self.front and self.points:
            raise StudyError(why_none_is_feasible(self.points))
        return ranked(self.front, self.confidence)

    @property
    def reference(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The reference point of the hypervolume and the ideal point, each with a value per objective."""
        return hypervolume.reference_point(self.dense, self.objectives, self.record.labels)

    @cached_property
    def hypervolume(self) -> float:
        """The normalised hypervolume: the share of the box from reference to ideal point that the front dominates."""
        return hypervolume.hypervolume(self.points, self.objectives, *self.reference)

    def hypervolumes(self) -> list[float]:
        """Measure the hypervolume after each finished trial."""
        return hypervolume.hypervolume_history(self.points, self.objectives, *self.reference)


def read_study(storage: str | BaseStorage, name: str) -> Study:
    """Read a study from its storage, given by URL or already open.

    Raises:
        StorageError: the storage cannot be reached or holds no such study.
        StudyError: the study was not made by hscc-search, or by a version whose format this one does not read.
    """
    opened = storage_to_read(storage) if isinstance(storage, str) else storage
    with in_one_line(opened), undamaged(opened):
        return study_as_it_stands(known_study(opened, name), opened)


def study_as_it_stands(study: optuna.Study, storage: BaseStorage) -> Study:
    """Read a study as it is now from Optuna's study in ``storage``.

    Raises:
        StorageError: the study was not started yet.
        StudyError: as :func:`read_study`.
    """
    return StudyReader(storage).as_it_stands(study)


class StudyReader:
    """Read a study of an open storage again and again, what is new in it alone. Safe for several threads.

    What is stored of an ended trial changes no more, so it is kept in memory, and nowhere else: another reader, in
    whatever process, reads the same. While nothing is new, the same object is returned, with what was computed of it.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._stored: Any = None
        self._outcomes: dict[Ended, Outcome] = {}
        self._last: Study | None = None

    def read(self, name: str) -> Study:
        """Read the study of a name, always the same one.

        Raises:
            StorageError, StudyError: as :func:`read_study`.
        """
        with self._lock, in_one_line(self._storage), undamaged(self._storage):
            return self.as_it_stands(known_study(self._storage, name))

    def as_it_stands(self, study: optuna.Study) -> Study:
        """Do the work of :func:`study_as_it_stands`."""
        with undamaged(self._storage):
            stored = study.user_attrs.get(STUDY)
        record = self._last.record if self._last and stored == self._stored else read_record(study)
        if record is None:
            raise StorageError(f"study {study.study_name!r} was not started yet: start it with `hscc-search run`")
        with undamaged(self._storage):
            ended = ended_trials(self._storage, study._study_id)
            if self._last and self._last.record is record and [*self._outcomes] == ended:
                return self._last
            new = [trial for trial in ended if trial not in self._outcomes]
            with_scores = any(objective.on_scores for objective in objectives_of(record.config))
            read = outcomes(self._storage, study._study_id, new, with_scores)
        self._outcomes = {trial: self._outcomes.get(trial) or read[trial] for trial in ended}
        points = tuple(outcome.point for outcome in self._outcomes.values() if outcome.point is not None)
        failures = {
            trial.number: outcome.failure for trial, outcome in self._outcomes.items() if outcome.failure is not None
        }
        self._stored = stored
        plan_of = partial(_plan, self._storage, study._study_id)
        divided_of = partial(_divided, self._storage, study._study_id)
        self._last = Study(record, points, failures, plan_of, divided_of)
        return self._last


def known_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Load a study as Optuna has it.

    Raises:
        StorageError: there is none of that name; the error names those that exist.
    """
    study = find_study(storage, name)
    if study is None:
        known = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none"
        raise StorageError(f"no study {name!r} in this storage: it holds {known}")
    return study


def find_study(storage: BaseStorage, name: str) -> optuna.Study | None:
    """Load a study as Optuna has it; None where there is none of that name."""
    if name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=name, storage=storage)


def read_record(study: optuna.Study) -> StudyRecord | None:
    """Read the record of a study; None where the process that created the study ended before writing it.

    Raises:
        StudyError: as :func:`read_study`.
    """
    with undamaged(study._storage):
        stored = study.user_attrs.get(STUDY)
        if stored is not None:
            return StudyRecord.from_stored(stored)
    if study.get_trials(deepcopy=False):
        raise StudyError(
            f"study {study.study_name!r} in this storage was not made by hscc-search: choose another name or storage"
        )
    return None


def write_record(study: optuna.Study, record: StudyRecord) -> None:
    """Store a study's record, and the names of its objectives for Optuna and its dashboard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([title(objective.metric) for objective in objectives_of(record.config)])
    study.set_user_attr(STUDY, record.stored())


def upgrade_record(study: optuna.Study) -> None:
    """Store a study's record in today's format, before trials of this format join those of the format before.

    A version that reads only the format before then refuses the study, and does not stumble over the trials.
    """
    stored = study.user_attrs.get(STUDY)
    if stored is not None and stored["version"] != FORMAT:
        write_record(study, StudyRecord.from_stored(stored))


def get_trial(storage: BaseStorage, study_id: int, number: int) -> FrozenTrial:
    """Read one trial by its number."""
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, number))


def _plan(storage: BaseStorage, study_id: int, number: int) -> tuple[LayerPlan, ...]:
    with in_one_line(storage), undamaged(storage):
        return plan_from_stored(get_trial(storage, study_id, number).user_attrs[PLAN])


def _divided(storage: BaseStorage, study_id: int, number: int) -> tuple[DividedLayer, ...]:
    with in_one_line(storage), undamaged(storage):
        return divided_from_stored(get_trial(storage, study_id, number).user_attrs.get(DIVIDED, []))
