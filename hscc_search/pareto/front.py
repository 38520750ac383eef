"""Who is Pareto-optimal, and which of them to take."""

from collections.abc import Sequence

import moocore
import numpy as np

from hscc_search.errors import StudyError
from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Point, oriented


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


def _number(point: Point) -> int:
    return -1 if point.trial is None else point.trial
