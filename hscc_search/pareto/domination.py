"""Fronts and knees of many draws at once.

Values of trials on draws stand in one array per objective, oriented so that less is better: float, shape
(trials, draws), or (trials, 1) for costs, which are the same on all draws.
"""

import moocore
import numpy as np


def dominates(winners: list[np.ndarray], losers: list[np.ndarray]) -> np.ndarray:
    """Count the draws in which each winner dominates its loser, shape (trials,)."""
    as_good, better = np.ones((1, 1), dtype=np.bool_), np.zeros((1, 1), dtype=np.bool_)
    for winner, loser in zip(winners, losers, strict=True):
        as_good = as_good & (winner <= loser)
        better = better | (winner < loser)
    draws: np.ndarray = np.count_nonzero(as_good & better, axis=1)
    return draws


def nondominated(drawn: list[np.ndarray]) -> np.ndarray:
    """Which trials are on the front of each draw: bool, shape (trials, draws)."""
    if len(drawn) == 2 and sorted(column.shape[1] > 1 for column in drawn) == [False, True]:
        cost, noisy = sorted(drawn, key=lambda column: column.shape[1])
        return _nondominated_in_plane(cost[:, 0], noisy)
    values = np.stack(np.broadcast_arrays(*drawn), axis=-1)
    return np.stack(
        [moocore.is_nondominated(values[:, draw], keep_weakly=True) for draw in range(values.shape[1])], axis=1
    )


def _nondominated_in_plane(cost: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """Sweep all draws at once where only one of two objectives depends on images: shapes (trials,), (trials, draws)."""
    order = np.argsort(cost, kind="stable")
    cost, noisy = cost[order], noisy[order]
    # Row n: the least noisy value among the n cheapest trials.
    least = np.vstack([np.full(noisy.shape[1], np.inf), np.minimum.accumulate(noisy, axis=0)])
    cheaper, not_dearer = np.searchsorted(cost, cost, "left"), np.searchsorted(cost, cost, "right")
    on = np.empty(noisy.shape, dtype=np.bool_)
    on[order] = (noisy < least[cheaper]) & (noisy == least[not_dearer])
    return on


def knees(drawn: list[np.ndarray], on: np.ndarray) -> np.ndarray:
    """The row of the knee of each draw's front, by the rule of :func:`hscc_search.pareto.front.knee`."""
    rows = np.flatnonzero(on.any(axis=1))
    on = on[rows]
    goodness = np.zeros(on.shape)
    for column in drawn:
        values = np.broadcast_to(column[rows].astype(np.float64), on.shape)
        best, worst = values.min(axis=0, where=on, initial=np.inf), values.max(axis=0, where=on, initial=-np.inf)
        goodness += (worst - values) / np.where(worst > best, worst - best, 1)
    few = on.sum(axis=0) < 3
    goodness[:, few] = -values[:, few]  # of the last objective
    found: np.ndarray = rows[np.where(on, goodness, -np.inf).argmax(axis=0)]
    return found
