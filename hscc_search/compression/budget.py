"""The ranks that a budget pays for: a multiple-choice knapsack, solved exactly.

Each region of each layer is a class with options: a rank costs so much and loses so much, the dense filters cost the
most and lose nothing. One option of each class is taken so that the losses add up to the least that the limit on
costs allows.

1. The Lagrangian relaxation (the convex hulls of the classes, taken by slope until the limit is reached) gives a lower
   bound, a multiplier and, going on with whatever still fits, a first solution (Sinha and Zoltners 1979).
2. An option whose reduced cost alone lifts the bound above the first solution is in no better one, and is dropped.
3. The few that are left are combined class by class, and a partial choice that is dominated or whose bound is too high
   is forgotten (Nemhauser and Ullmann 1969; Pisinger 1995 for the order of these steps).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Partial choices that are followed at once. Beyond, the most promising ones are: the gap to the bound is then some
# millionths of the loss.
_ALIVE = 50_000


@dataclass(frozen=True)
class Options:
    """What one region of one layer may cost.

    Attributes:
        costs: int64 (options,), ascending.
        losses: float64 (options,), not negative.
    """

    costs: np.ndarray
    losses: np.ndarray


def solve(classes: Sequence[Options], limit: int) -> list[int]:
    """Choose one option of each class with the least sum of losses and a sum of costs up to ``limit``.

    Args:
        classes: at least one, each with at least one option.
        limit: not below the sum of the classes' cheapest options.

    Returns:
        The position of the chosen option for each class.

    Raises:
        ValueError: even the cheapest options cost more than ``limit``.
    """
    cheapest = sum(int(options.costs[0]) for options in classes)
    if cheapest > limit:
        raise ValueError(f"the cheapest options cost {cheapest}, more than {limit}")
    best, multiplier = _relaxed(classes, limit)
    loss_of_best = _loss(classes, best)
    lagrangian = [options.losses + multiplier * options.costs for options in classes]
    floors = np.array([values.min() for values in lagrangian])
    gap = loss_of_best - (floors.sum() - multiplier * limit)
    # Far below what a loss is known to, and above the rounding of sums.
    tolerance = 1e-12 * (abs(loss_of_best) + abs(multiplier) * limit)
    left = [np.flatnonzero(values - floor < gap - tolerance) for values, floor in zip(lagrangian, floors, strict=True)]
    if any(len(options) == 0 for options in left):
        return best
    order = sorted(range(len(classes)), key=lambda index: len(left[index]))
    still = sum(int(classes[index].costs[left[index]].min()) for index in order)
    costs, excesses, losses = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    trail = []
    for index in order:
        options, chosen = classes[index], left[index]
        still -= int(options.costs[chosen].min())
        new_costs = (costs[:, None] + options.costs[chosen]).ravel()
        new_excesses = (excesses[:, None] + (lagrangian[index][chosen] - floors[index])).ravel()
        new_losses = (losses[:, None] + options.losses[chosen]).ravel()
        alive = np.flatnonzero((new_costs + still <= limit) & (new_excesses < gap - tolerance))
        alive = alive[np.lexsort((new_losses[alive], new_costs[alive]))]
        lowest = np.minimum.accumulate(new_losses[alive])
        alive = alive[np.r_[True, new_losses[alive][1:] < lowest[:-1]]] if len(alive) else alive
        if len(alive) > _ALIVE:
            alive = alive[np.sort(np.argsort(new_excesses[alive], kind="stable")[:_ALIVE])]
        if len(alive) == 0:
            return best  # nothing better than the first solution
        trail.append((alive // len(chosen), chosen[alive % len(chosen)]))
        costs, excesses, losses = new_costs[alive], new_excesses[alive], new_losses[alive]
    state = int(losses.argmin())
    if losses[state] >= loss_of_best:
        return best
    result = [0] * len(classes)
    for index, (parents, options_taken) in zip(reversed(order), reversed(trail), strict=True):
        result[index] = int(options_taken[state])
        state = int(parents[state])
    return result


def price_at(classes: Sequence[Options], limit: int) -> float:
    """What one unit of cost is worth in loss at the limit: the multiplier of the Lagrangian relaxation."""
    return _relaxed(classes, limit)[1]


def _relaxed(classes: Sequence[Options], limit: int) -> tuple[list[int], float]:
    """A first solution, and the multiplier of the Lagrangian relaxation: loss per cost at the limit."""
    hulls = [_hull(options) for options in classes]
    taken = [0] * len(classes)
    steps = [
        ((options.losses[a] - options.losses[b]) / (options.costs[b] - options.costs[a]), index, position + 1)
        for index, (options, hull) in enumerate(zip(classes, hulls, strict=True))
        for position, (a, b) in enumerate(itertools.pairwise(hull))
    ]
    steps.sort(key=lambda step: (-step[0], step[1], step[2]))
    room = limit - sum(int(options.costs[hull[0]]) for options, hull in zip(classes, hulls, strict=True))
    multiplier = 0.0
    for slope, index, position in steps:
        if position != taken[index] + 1:
            continue  # the step before it did not fit
        costs, hull = classes[index].costs, hulls[index]
        price = int(costs[hull[position]] - costs[hull[position - 1]])
        if price <= room:
            room -= price
            taken[index] = position
        elif multiplier == 0.0:
            multiplier = float(slope)
    return [hull[position] for hull, position in zip(hulls, taken, strict=True)], multiplier


def _hull(options: Options) -> list[int]:
    """Positions on the lower convex hull from the cheapest option to the least lossy one."""
    hull: list[int] = []
    for position in np.lexsort((options.losses, options.costs)).tolist():
        cost, loss = int(options.costs[position]), float(options.losses[position])
        if hull and (loss >= options.losses[hull[-1]] or cost == options.costs[hull[-1]]):
            continue
        while len(hull) > 1:
            (c0, l0), (c1, l1) = ((int(options.costs[p]), float(options.losses[p])) for p in hull[-2:])
            if (l0 - l1) * (cost - c1) > (l1 - loss) * (c1 - c0):
                break
            hull.pop()
        hull.append(position)
    return hull


def _loss(classes: Sequence[Options], chosen: list[int]) -> float:
    return float(sum(options.losses[position] for options, position in zip(classes, chosen, strict=True)))
