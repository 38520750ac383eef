"""Who is Pareto-optimal, and which of them to take."""

import math
from collections.abc import Sequence

import moocore
import numpy as np

from hscc_search.errors import ConfigError, StudyError
from hscc_search.search.confidence import confidence
from hscc_search.search.points import Objective, Point, name_of, oriented


def front(points: Sequence[Point], objectives: Sequence[Objective]) -> list[Point]:
    """The feasible points that no other feasible point beats.

    One beats another when it is at least as good in every objective and better in one. Two objectives are swept in
    ascending order of the first, three and more go through moocore's sweeps (Kung, Luccio and Preparata 1975).

    Args:
        points: in any order.
        objectives: two to four.

    Returns:
        By ascending value of the first objective; of points equal in all objectives the first trial.

    Raises:
        StudyError: a point lacks a metric.
    """
    # The order of trials decides between equals, whatever order they come in.
    kept = sorted((point for point in points if point.feasible), key=_number)
    if not kept:
        return []
    values = oriented(kept, objectives)
    if len(objectives) == 2:
        rows = np.lexsort((values[:, 1], values[:, 0]))  # stable: of equals the first trial comes first
        second = values[rows, 1]
        rows = rows[second < np.append(np.inf, np.minimum.accumulate(second)[:-1])]
    else:
        rows = np.flatnonzero(moocore.is_nondominated(values))
    return [kept[row] for row in sorted(rows.tolist(), key=lambda row: (kept[row][objectives[0].metric], *values[row]))]


def knee(members: Sequence[Point], objectives: Sequence[Objective]) -> Point:
    """The point of a front that gives most of everything.

    Goodness is scaled to 0..1 over the front in each objective, and the largest sum wins. With two objectives that
    is the point furthest beyond the straight line between the ends (Das 1999). A front of one or two points has no
    bend: the best by the last objective is taken.

    Raises:
        StudyError: the front is empty.
    """
    if not members:
        raise StudyError("the front is empty: run the study first")
    values = oriented(members, objectives)
    if len(members) < 3:
        return members[int(values[:, -1].argmin())]
    worst, best = values.max(axis=0), values.min(axis=0)
    # Where all are equal, the objective has no say.
    span = np.where(worst > best, worst - best, 1)
    return members[int(((worst - values) / span).sum(axis=1).argmax())]


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
        rule: ``knee`` (the knee of most bootstrap draws, see :func:`hscc_search.search.confidence.confidence`),
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


def _number(point: Point) -> int:
    return -1 if point.trial is None else point.trial
