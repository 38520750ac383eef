"""Choose a trial by a rule."""

import math
from collections.abc import Sequence

import numpy as np

from hscc_search.errors import ConfigError, StudyError
from hscc_search.pareto.confidence import confidence
from hscc_search.pareto.front import _number, front
from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Point, name_of


def select(
    rule: str,
    points: Sequence[Point],
    objectives: Sequence[Objective],
    labels: np.ndarray,
    classes: tuple[str, ...],
    seed: int = 0,
) -> Point:
    """Choose a trial.

    Args:
        rule: ``knee`` (the knee of most bootstrap draws, see :func:`hscc_search.pareto.confidence.confidence`),
            ``trial:N``, ``min-accuracy:X`` (fewest FLOPs with accuracy X or more) or ``max-flops:X`` (most accurate
            with at most X FLOPs). All but ``trial:N`` take only trials that keep the constraints.
        points: all finished trials.
        objectives: of the study.
        labels: int64, shape (images,), true classes of the validation images.
        classes: class names.
        seed: of the bootstrap.

    Raises:
        ConfigError: there is no such rule.
        StudyError: no trial fits it.
    """
    kind, _, text = rule.partition(":")
    if kind == "trial" and text.isdecimal():
        found = [point for point in points if point.trial == int(text)]
        if not found:
            members = ", ".join(str(point.trial) for point in front(points, objectives)) or "none"
            raise StudyError(f"no finished trial {text}: the front holds {members}")
        return found[0]
    if rule == "knee":
        _some_feasible(points)
        chosen = confidence(points, objectives, labels, classes, seed).knee
        return next(point for point in points if point.trial == chosen)
    if kind in ("min-accuracy", "max-flops"):
        try:
            bound = float(text)
        except ValueError:
            bound = math.nan
        if kind == "min-accuracy" and 0 <= bound <= 1:
            kept = _some_feasible(points)
            fitting = [point for point in kept if point["accuracy"] >= bound]
            if not fitting:
                best = max(point["accuracy"] for point in kept)
                raise StudyError(f"no trial has an accuracy of {bound:g} or more: the highest is {best:.4f}")
            return min(fitting, key=lambda point: (point["flops"], -point["accuracy"], _number(point)))
        if kind == "max-flops" and bound > 0:
            kept = _some_feasible(points)
            fitting = [point for point in kept if point["flops"] <= bound]
            if not fitting:
                fewest = min(point["flops"] for point in kept)
                raise StudyError(f"no trial has {bound:g} FLOPs or fewer: the fewest are {fewest:.0f}")
            return min(fitting, key=lambda point: (-point["accuracy"], point["flops"], _number(point)))
    raise ConfigError(
        f"cannot select {rule!r}: use knee, trial:N, min-accuracy:X with X from 0 to 1, or max-flops:X with X above 0"
    )


def _some_feasible(points: Sequence[Point]) -> list[Point]:
    """The feasible points; raises StudyError where there is none."""
    if not points:
        raise StudyError("the front is empty: run the study first")
    kept = [point for point in points if point.feasible]
    if not kept:
        worst = [(*max((size, name) for name, size in point.constraints.items()), point) for point in points]
        size, name, nearest = min(worst, key=lambda entry: (entry[0], _number(entry[2])))
        raise StudyError(
            f"no trial keeps the constraints: {name_of(nearest)} comes nearest, it violates {name} by {size:g}"
        )
    return kept
