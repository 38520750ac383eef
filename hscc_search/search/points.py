"""Finished trials as points in the space of a study's objectives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hscc_search.errors import StudyError


@dataclass(frozen=True)
class Objective:
    """What a study searches for.

    Attributes:
        metric: ``flops``, ``macs``, ``parameters``, ``megabytes``, ``latency``, ``accuracy``, ``macro_f1`` or
            ``recall:CLASS``.
        maximise: whether more is better.
    """

    metric: str
    maximise: bool

    @property
    def on_images(self) -> bool:
        """Whether other validation images would give another value; the costs of a network would stay."""
        return self.metric in ("accuracy", "macro_f1") or self.metric.startswith("recall:")


@dataclass(frozen=True)
class Point:
    """A finished trial, or the dense network, with all that was measured of it.

    Attributes:
        trial: its number; None for the dense network.
        settings: sampled values by name; empty for the dense network.
        metrics: by name as in :class:`Objective`: counts per image, megabytes, seconds, shares from 0 to 1.
        errors: bootstrap standard errors of those metrics that depend on the images.
        predictions: class predicted for each validation image, little-endian uint16.
        constraints: by the constraint's name how far it is violated; 0 or less is kept.
    """

    trial: int | None
    settings: dict[str, Any]
    metrics: dict[str, float]
    errors: dict[str, float]
    predictions: bytes
    constraints: dict[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether all constraints are kept."""
        return all(violation <= 0 for violation in self.constraints.values())

    def __getitem__(self, metric: str) -> float:
        """The value of one metric.

        Raises:
            StudyError: it was not measured.
        """
        try:
            return self.metrics[metric]
        except KeyError:
            raise StudyError(f"{name_of(self)} has no {metric}: measured are {', '.join(self.metrics)}") from None

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values without the predictions; the dense network has no trial and no settings."""
        named = {} if self.trial is None else {"trial": self.trial, "settings": dict(self.settings)}
        measured = {"metrics": self.metrics, "errors": self.errors, "constraints": self.constraints}
        return named | {key: dict(values) for key, values in measured.items()}


def predictions_of(points: Sequence[Point]) -> np.ndarray:
    """Classes predicted by all points: uint16, shape (points, images); without points (0, 0).

    Raises:
        StudyError: the points have predictions for different numbers of images.
    """
    for point in points:
        if len(point.predictions) != len(points[0].predictions):
            raise StudyError(
                f"{name_of(point)} has predictions for {len(point.predictions) // 2} images, "
                f"{name_of(points[0])} for {len(points[0].predictions) // 2}: they cannot be compared"
            )
    images = len(points[0].predictions) // 2 if points else 0
    joined = b"".join(point.predictions for point in points)
    return np.frombuffer(joined, "<u2").astype(np.uint16, copy=False).reshape(len(points), images)


def oriented(points: Sequence[Point], objectives: Sequence[Objective]) -> np.ndarray:
    """Values in which lower is always better: what is maximised changes its sign.

    Returns:
        float64, shape (points, objectives), in the units of the metrics.

    Raises:
        StudyError: a point lacks a metric.
    """
    values = np.empty((len(points), len(objectives)))
    for column, objective in enumerate(objectives):
        values[:, column] = [point[objective.metric] for point in points]
        if objective.maximise:
            values[:, column] *= -1
    return values


def name_of(point: Point) -> str:
    """A point in words."""
    return "the dense network" if point.trial is None else f"trial {point.trial}"
