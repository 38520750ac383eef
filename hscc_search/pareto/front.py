"""The Pareto front of a study, and its knee."""

from collections.abc import Sequence

import moocore
import numpy as np

from hscc_search.errors import StudyError
from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Point, oriented


def front(points: Sequence[Point], objectives: Sequence[Objective]) -> list[Point]:
    """List the feasible points that no other feasible point dominates.

    One point dominates another when it is at least as good in every objective and better in one. The front is found
    by the sweeps of Kung, Luccio and Preparata (1975).

    Args:
        points: in any order.
        objectives: two to four.

    Returns:
        By ascending value of the first objective; of points equal in all objectives the first trial.

    Raises:
        StudyError: a point lacks a metric.
    """
    # Of equal points moocore takes the first, so trials are put in order.
    feasible = sorted((point for point in points if point.feasible), key=lambda point: point.trial)
    values = oriented(feasible, objectives)
    members = np.flatnonzero(moocore.is_nondominated(values))
    first = values[members, 0] * objectives[0].sign
    order = np.lexsort((*values[members].T[::-1], first))
    return [feasible[position] for position in members[order].tolist()]


def knee(members: Sequence[Point], objectives: Sequence[Objective]) -> Point:
    """Choose the point of a front that is the best compromise between the objectives.

    Each objective is scaled over the front to goodness from 0 to 1, and the largest sum wins. With two objectives
    that is the point furthest beyond the straight line between the ends (Das 1999). A front of one or two points has
    no bend: the best by the last objective is taken. It is the knee as measured; commands and pages mark the knee of
    most bootstrap draws, :attr:`hscc_search.pareto.confidence.Confidence.knee`.

    Raises:
        StudyError: the front is empty.
    """
    if not members:
        raise StudyError("the front is empty: run the study first")
    values = oriented(members, objectives)
    if len(members) < 3:
        return members[int(values[:, -1].argmin())]
    worst, best = values.max(axis=0), values.min(axis=0)
    # An objective in which all points are equal adds nothing.
    span = np.where(worst > best, worst - best, 1)
    return members[int(((worst - values) / span).sum(axis=1).argmax())]
