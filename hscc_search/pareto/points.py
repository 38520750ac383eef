"""Measurements of a network, and finished trials as points in the space of a study's objectives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hscc_search.errors import StudyError
from hscc_search.pareto.objectives import Objective


@dataclass(frozen=True)
class Measured:
    """The measurements of a network on the validation part: the dense network of a study, or a trial (:class:`Point`).

    Attributes:
        metrics: by name as in :class:`hscc_search.pareto.objectives.Objective`: counts per image, sizes in 10^6 bytes,
            latency in milliseconds per batch, shares from 0 to 1.
        errors: standard errors of those metrics that depend on the images.
        predictions: class predicted for each validation image, little-endian uint16; empty where answers are maps.
        scores: float16, shape (images, classes), see :func:`hscc_search.evaluation.scores.kept_scores`; None where they
            were not stored, or not read since no objective needs them.
        draws: by metric its value on each bootstrap draw of the validation images, float64, shape (draws,): of all
            metrics where answers are maps, else of the study's own.
    """

    metrics: Mapping[str, float]
    errors: Mapping[str, float]
    predictions: bytes = field(repr=False)
    scores: np.ndarray | None = field(default=None, repr=False, compare=False, kw_only=True)
    draws: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False, kw_only=True)

    @property
    def name(self) -> str:
        """The network as messages name it."""
        return "the dense network"

    def __getitem__(self, metric: str) -> float:
        """The value of one metric.

        Raises:
            StudyError: it was not measured.
        """
        try:
            return self.metrics[metric]
        except KeyError:
            raise StudyError(f"{self.name} has no {metric}: measured are {', '.join(self.metrics)}") from None


@dataclass(frozen=True)
class Point(Measured):
    """A finished trial.

    Attributes:
        trial: its number.
        sample: the values that the search drew for it, by name.
        violations: by constraint how far it is missed, 0 where it is kept.
        refined: how its network was refined, see :class:`hscc_search.compression.refining.Refined`; empty where it was
            not.
        int8: of a network in 8-bit integers: ``divergence`` and ``in_float`` as in
            :class:`hscc_search.runtime.int8.Int8`, the ``sha256`` of the file that was measured, and the number of
            ``threads`` of torch, with which the order of additions changes; empty of others.
        refines: number of the trial with the same sample that this one measures again, refined; None where it is not of
            a study's second stage.
    """

    trial: int
    sample: Mapping[str, Any]
    violations: Mapping[str, float] = field(default_factory=dict)
    refined: Mapping[str, float] = field(default_factory=dict)
    refines: int | None = None
    int8: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The trial as messages and figures name it."""
        return f"trial {self.trial}"

    @property
    def feasible(self) -> bool:
        """Tell whether all constraints are kept."""
        return not any(self.violations.values())


def predictions_of(points: Sequence[Measured]) -> np.ndarray:
    """Stack the classes that all points predicted: uint16, shape (points, images); (0, 0) without points.

    Raises:
        StudyError: the points have predictions for different numbers of images.
    """
    for point in points:
        if len(point.predictions) != len(points[0].predictions):
            raise StudyError(
                f"{point.name} has predictions for {len(point.predictions) // 2} images, "
                f"{points[0].name} for {len(points[0].predictions) // 2}: they cannot be compared"
            )
    images = len(points[0].predictions) // 2 if points else 0
    joined = b"".join(point.predictions for point in points)
    return np.frombuffer(joined, "<u2").astype(np.uint16, copy=False).reshape(len(points), images)


def scores_of(points: Sequence[Measured]) -> list[np.ndarray]:
    """List the scores of all points.

    Raises:
        StudyError: a point has none.
    """
    scores = []
    for point in points:
        if point.scores is None:
            raise StudyError(
                f"{point.name} was stored without the scores of its classes, as by hscc-search 0.1.0, so that it has "
                "no metric of scores: start a study of another name"
            )
        scores.append(point.scores)
    return scores


def answers_of(points: Sequence[Measured], on_scores: bool) -> list[bytes]:
    """List what each point answered, such that points with the same have the same metrics on every draw.

    Args:
        points: of one study.
        on_scores: whether metrics of scores are among its objectives.

    Raises:
        StudyError: scores are needed, and a point has none.
    """
    if any(point.draws and not point.predictions for point in points):  # of maps
        return [b"".join(values.tobytes() for _, values in sorted(point.draws.items())) for point in points]
    return [scores.tobytes() for scores in scores_of(points)] if on_scores else [point.predictions for point in points]


def oriented(points: Sequence[Measured], objectives: Sequence[Objective]) -> np.ndarray:
    """Tabulate the objectives so that lower is always better: what is maximised changes its sign.

    Returns:
        float64, shape (points, objectives), in the units of the metrics.

    Raises:
        StudyError: a point lacks a metric.
    """
    values = np.empty((len(points), len(objectives)))
    for column, objective in enumerate(objectives):
        try:
            values[:, column] = [point.metrics[objective.metric] for point in points]
        except KeyError:  # point[...] takes ten times as long, and names what is missing
            values[:, column] = [point[objective.metric] for point in points]
        values[:, column] *= objective.sign
    return values
