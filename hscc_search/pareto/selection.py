"""Choose a trial by a rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hscc_search.errors import ConfigError, StudyError
from hscc_search.pareto.confidence import confidence
from hscc_search.pareto.front import front
from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Point


@dataclass(frozen=True)
class Knee:
    """The knee of most bootstrap draws, see :func:`hscc_search.pareto.confidence.confidence`."""


@dataclass(frozen=True)
class ByTrial:
    """The trial of a number, whether it is feasible or not."""

    trial: int


@dataclass(frozen=True)
class MinAccuracy:
    """The feasible trial of fewest FLOPs with at least this validation accuracy, 0 to 1."""

    accuracy: float


@dataclass(frozen=True)
class MaxFlops:
    """The most accurate feasible trial with at most these FLOPs per image, above 0."""

    flops: float


Rule = Knee | ByTrial | MinAccuracy | MaxFlops


def parse_rule(text: str) -> Rule:
    """Read a rule: ``knee``, ``trial:N``, ``min-accuracy:X`` with X from 0 to 1, or ``max-flops:X`` with X above 0.

    Raises:
        ConfigError: the text is none of these.
    """
    kind, _, value = text.partition(":")
    if text == "knee":
        return Knee()
    if kind == "trial" and value.isdecimal():
        return ByTrial(int(value))
    bound = _number(value)
    if kind == "min-accuracy" and 0 <= bound <= 1:
        return MinAccuracy(bound)
    if kind == "max-flops" and bound > 0:
        return MaxFlops(bound)
    raise ConfigError(
        f"cannot select {text!r}: use knee, trial:N, min-accuracy:X with X from 0 to 1, or max-flops:X with X above 0"
    )


def select(
    rule: Rule | str,
    points: Sequence[Point],
    objectives: Sequence[Objective],
    labels: np.ndarray,
    classes: tuple[str, ...],
    seed: int = 0,
    most_parameters: float | None = None,
) -> Point:
    """Choose a trial by a rule.

    Args:
        rule: a text that :func:`parse_rule` reads, or what it read.
        points: all finished trials.
        objectives: of the study.
        labels: integers, shape (images,), true classes of the validation images.
        classes: class names.
        seed: of the bootstrap.
        most_parameters: parameters of the dense network: the knee has no more, where any trial has no more.

    Raises:
        ConfigError: the text is not a rule.
        StudyError: no trial fits the rule.
    """
    match rule if isinstance(rule, Rule) else parse_rule(str(rule)):
        case ByTrial(trial):
            return _numbered(trial, points, objectives)
        case Knee():
            _require_feasible(points)
            surely = confidence(points, objectives, labels, classes, seed, most_parameters=most_parameters)
            return _numbered(surely.knee, points, objectives)
        case MinAccuracy(accuracy):
            return _cheapest(accuracy, points)
        case MaxFlops(flops):
            return _most_accurate(flops, points)


def why_none_is_feasible(points: Sequence[Point]) -> str:
    """Name the trial that comes nearest to keeping its constraints, for a study in which no trial keeps them."""
    nearest = min(points, key=lambda point: (max(point.violations.values()), point.trial))
    size, name = max((size, name) for name, size in nearest.violations.items())
    return f"no trial is feasible: {nearest.name} comes nearest, it violates {name} by {size:g}"


def _number(text: str) -> float:
    """Read a number; NaN where the text is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _numbered(trial: int | None, points: Sequence[Point], objectives: Sequence[Objective]) -> Point:
    for point in points:
        if point.trial == trial:
            return point
    members = ", ".join(str(point.trial) for point in front(points, objectives)) or "none"
    raise StudyError(f"no finished trial {trial}: the front holds {members}")


def _cheapest(accuracy: float, points: Sequence[Point]) -> Point:
    feasible = _require_feasible(points)
    fitting = [point for point in feasible if point["accuracy"] >= accuracy]
    if not fitting:
        best = max(point["accuracy"] for point in feasible)
        raise StudyError(f"no trial has an accuracy of {accuracy:g} or more: the highest is {best:.4f}")
    return min(fitting, key=lambda point: (point["flops"], -point["accuracy"], point.trial))


def _most_accurate(flops: float, points: Sequence[Point]) -> Point:
    feasible = _require_feasible(points)
    fitting = [point for point in feasible if point["flops"] <= flops]
    if not fitting:
        fewest = min(point["flops"] for point in feasible)
        raise StudyError(f"no trial has {flops:g} FLOPs or fewer: the fewest are {fewest:.0f}")
    return min(fitting, key=lambda point: (-point["accuracy"], point["flops"], point.trial))


def _require_feasible(points: Sequence[Point]) -> list[Point]:
    """List the feasible points.

    Raises:
        StudyError: there is none.
    """
    if not points:
        raise StudyError("the front is empty: run the study first")
    feasible = [point for point in points if point.feasible]
    if not feasible:
        raise StudyError(why_none_is_feasible(points))
    return feasible
