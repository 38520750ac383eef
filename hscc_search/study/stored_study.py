"""A study as it stands in its storage. Needs no torch."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic_core import from_json
from sqlalchemy import text

from hscc_search.compression.divided import DividedLayer
from hscc_search.compression.plan import LayerPlan
from hscc_search.config import StudyConfig
from hscc_search.errors import StorageError, StudyError
from hscc_search.evaluation.own import own_metrics
from hscc_search.pareto import hypervolume
from hscc_search.pareto.confidence import Confidence, Truth, confidence
from hscc_search.pareto.front import front
from hscc_search.pareto.objectives import Objective, objectives_of, title
from hscc_search.pareto.points import Measured, Point
from hscc_search.pareto.rules import Rule
from hscc_search.pareto.selection import Choice, choose, ranked, why_none_is_feasible
from hscc_search.storage import storage_to_read
from hscc_search.storage_faults import in_one_line, undamaged
from hscc_search.study.record import (
    DIVIDED,
    FAILURE,
    FORMAT,
    MEASURED,
    PLAN,
    SCORES,
    STUDY,
    StudyRecord,
    divided_from_stored,
    plan_from_stored,
    point_from_stored,
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
        wanted = record.labels.ndim == 1 and set(self.config.objectives) & self.config.metrics.keys()
        own = own_metrics(self.config) if wanted else {}
        return Truth(record.labels, record.classes, record.groups, own)

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

    @property
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
    record = read_record(study)
    if record is None:
        raise StorageError(f"study {study.study_name!r} was not started yet: start it with `hscc-search run`")
    points, failures = [], {}
    with undamaged(storage):
        of_scores = any(objective.on_scores for objective in objectives_of(record.config))
        scores = _scores(study, storage) if of_scores else {}
        for outcome in _outcomes(study, storage):
            if outcome.state == TrialState.FAIL:
                failures[outcome.trial] = outcome.failure or "its process ended"
            elif outcome.state == TrialState.COMPLETE and outcome.measured is not None:
                point = point_from_stored(outcome.trial, outcome.measured, scores.get(outcome.trial))
                # One that refining made no better is the network that it refines, and would be on the front twice.
                if point.refines is None or point.refined["best_epoch"]:
                    points.append(point)
    plan_of, divided_of = partial(_plan, storage, study._study_id), partial(_divided, storage, study._study_id)
    return Study(record, tuple(points), failures, plan_of, divided_of)


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


class _Outcome(NamedTuple):
    """The stored outcome of one trial, see :mod:`hscc_search.study.record`."""

    trial: int
    state: TrialState
    measured: dict[str, Any] | None
    failure: str | None


def _outcomes(study: optuna.Study, storage: BaseStorage) -> Iterator[_Outcome]:
    """Read the outcome of each trial, by number.

    A database is read by one query, ten times as fast for ten thousand trials as Optuna, which builds an object for
    every value.
    """
    if not isinstance(storage, RDBStorage):
        for trial in study.get_trials(deepcopy=False):
            attributes = trial.user_attrs
            yield _Outcome(trial.number, trial.state, attributes.get(MEASURED), attributes.get(FAILURE))
        return
    query = text(
        "SELECT trials.number, trials.state, measured.value_json, failure.value_json FROM trials "
        "LEFT JOIN trial_user_attributes AS measured "
        "ON measured.trial_id = trials.trial_id AND measured.key = :measured "
        "LEFT JOIN trial_user_attributes AS failure "
        "ON failure.trial_id = trials.trial_id AND failure.key = :failure "
        "WHERE trials.study_id = :study ORDER BY trials.number"
    )
    values = {"study": study._study_id, "measured": MEASURED, "failure": FAILURE}
    with storage.engine.connect() as connection:
        for number, state, measured, failure in connection.execute(query, values):
            yield _Outcome(number, TrialState[state], from_json(measured or "null"), from_json(failure or "null"))


def _scores(study: optuna.Study, storage: BaseStorage) -> dict[int, dict[str, Any]]:
    """Read the pieces of the scores of all trials, by the number of the trial and by key."""
    scores: dict[int, dict[str, Any]] = {}
    if not isinstance(storage, RDBStorage):
        for trial in study.get_trials(deepcopy=False):
            pieces = {key: value for key, value in trial.user_attrs.items() if key.startswith(SCORES)}
            scores |= {trial.number: pieces} if pieces else {}
        return scores
    query = text(
        "SELECT trials.number, piece.key, piece.value_json FROM trials "
        "JOIN trial_user_attributes AS piece ON piece.trial_id = trials.trial_id "
        "WHERE trials.study_id = :study AND piece.key LIKE :scores"
    )
    with storage.engine.connect() as connection:
        for number, key, value in connection.execute(query, {"study": study._study_id, "scores": f"{SCORES}%"}):
            scores.setdefault(number, {})[key] = from_json(value)
    return scores


def _plan(storage: BaseStorage, study_id: int, number: int) -> tuple[LayerPlan, ...]:
    with in_one_line(storage), undamaged(storage):
        return plan_from_stored(get_trial(storage, study_id, number).user_attrs[PLAN])


def _divided(storage: BaseStorage, study_id: int, number: int) -> tuple[DividedLayer, ...]:
    with in_one_line(storage), undamaged(storage):
        return divided_from_stored(get_trial(storage, study_id, number).user_attrs.get(DIVIDED, []))
