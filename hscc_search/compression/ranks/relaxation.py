"""The Lagrangian relaxation of a knapsack: a bound, the price of a unit of cost, and a first solution.

Where each unit of cost has a price, every class takes its best option by itself: the one with the least sum of loss and
priced cost. The sum over all classes, less the price of the limit, is a lower bound on the loss within the limit. It is
concave in the price.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hscc_search.compression.ranks.options import Choice, Classes, Group, Options, least_cost, loss_of


@dataclass(frozen=True)
class Relaxation:
    """The relaxation at the price that gives the highest bound.

    Attributes:
        price: loss per unit of cost at the limit, 0 where the limit does not bind.
        below: variant of each group in a choice that is best at this price and within the limit.
        above: variant of each group in a choice that is best at this price and costs more than the limit; the same as
            ``below`` where the limit does not bind.
    """

    price: float
    below: list[int]
    above: list[int]


def relax(groups: Sequence[Group], limit: int) -> Relaxation:
    """Find the price at which the bound is highest.

    A choice is a line over the price: its loss plus its priced cost. Of two choices, one above the limit and one within
    it, the price where their lines cross is tried next, until no choice lies below the crossing.
    """
    tables = [_table(group) for group in groups]
    above = _best_at(tables, 0.0)
    if above.cost <= limit:
        return Relaxation(0.0, above.variants, above.variants)
    below = _cheapest(tables)
    while True:
        price = (below.loss - above.loss) / (above.cost - below.cost)
        between = _best_at(tables, price)
        if not below.cost < between.cost < above.cost:  # a choice below the crossing would cost something in between
            return Relaxation(price, below.variants, above.variants)
        if between.cost <= limit:
            below = between
        else:
            above = between


def first_solution(groups: Sequence[Group], relaxation: Relaxation, limit: int) -> list[Choice]:
    """Choose options greedily within the variants below and above the limit, and take the better of both choices."""
    solutions = []
    for variants in (relaxation.below, relaxation.above):
        classes = [options for group, variant in zip(groups, variants, strict=True) for options in group[variant]]
        if least_cost(classes) <= limit:
            positions = _greedy(classes, limit)
            solutions.append((loss_of(classes, positions), variants, positions))
    _, variants, positions = min(solutions, key=lambda solution: solution[0])
    choices = []
    for group, variant in zip(groups, variants, strict=True):
        count = len(group[variant])
        choices.append((variant, tuple(positions[:count])))
        positions = positions[count:]
    return choices


@dataclass(frozen=True)
class _Table:
    """The options of a group, padded to one shape (variants, classes, options).

    Attributes:
        costs: float64.
        losses: float64.
        exists: bool, False in the padding.
    """

    costs: np.ndarray
    losses: np.ndarray
    exists: np.ndarray


def _table(group: Group) -> _Table:
    shape = (
        len(group),
        max(len(classes) for classes in group),
        max(len(options.costs) for classes in group for options in classes),
    )
    table = _Table(np.zeros(shape), np.zeros(shape), np.zeros(shape, bool))
    for variant, classes in enumerate(group):
        for number, options in enumerate(classes):
            cells = (variant, number, slice(len(options.costs)))
            table.costs[cells], table.losses[cells], table.exists[cells] = options.costs, options.losses, True
    return table


@dataclass(frozen=True)
class _Relaxed:
    """One choice, with the best option of each class at some price.

    Attributes:
        variants: of each group.
        cost: of the whole choice.
        loss: of the whole choice.
    """

    variants: list[int]
    cost: float
    loss: float


def _best_at(tables: list[_Table], price: float) -> _Relaxed:
    """The choice with the least sum of losses and priced costs."""
    return _least(tables, [table.losses + price * table.costs for table in tables])


def _cheapest(tables: list[_Table]) -> _Relaxed:
    """The choice with the least cost, whatever its loss."""
    return _least(tables, [table.costs for table in tables])


def _least(tables: list[_Table], values_of_tables: list[np.ndarray]) -> _Relaxed:
    """The choice with the least sum of the given values, which have the shapes of the tables."""
    variants, cost, loss = [], 0.0, 0.0
    for table, values in zip(tables, values_of_tables, strict=True):
        values = np.where(table.exists, values, np.inf)
        values[~table.exists.any(axis=2)] = 0.0  # the variant has fewer classes than another
        positions = values.argmin(axis=2)
        variant = int(values.min(axis=2).sum(axis=1).argmin())
        taken = (variant, np.arange(table.costs.shape[1]), positions[variant])
        variants.append(variant)
        cost += float(table.costs[taken].sum())
        loss += float(table.losses[taken].sum())
    return _Relaxed(variants, cost, loss)


def _greedy(classes: Classes, limit: int) -> list[int]:
    """Climb the convex hulls of all classes, steepest steps first, as far as the limit allows.

    Returns:
        The position of the chosen option of each class.
    """
    hulls = [_hull(options) for options in classes]
    steps = []
    for number, (options, hull) in enumerate(zip(classes, hulls, strict=True)):
        for step, (lower, upper) in enumerate(itertools.pairwise(hull), 1):
            gain = options.losses[lower] - options.losses[upper]
            steps.append((gain / (options.costs[upper] - options.costs[lower]), number, step))
    steps.sort(key=lambda step: (-step[0], step[1], step[2]))
    reached = [0] * len(classes)
    room = limit - sum(int(options.costs[hull[0]]) for options, hull in zip(classes, hulls, strict=True))
    for _, number, step in steps:
        if step != reached[number] + 1:
            continue  # the step before it did not fit
        costs, hull = classes[number].costs, hulls[number]
        extra = int(costs[hull[step]] - costs[hull[step - 1]])
        if extra <= room:
            room -= extra
            reached[number] = step
    return [hull[step] for hull, step in zip(hulls, reached, strict=True)]


def _hull(options: Options) -> list[int]:
    """Positions on the lower convex hull from the cheapest option to the least lossy one."""
    hull: list[int] = []
    points = list(zip(options.costs.tolist(), options.losses.tolist(), strict=True))
    for position in np.lexsort((options.losses, options.costs)).tolist():
        cost, loss = points[position]
        if hull and (loss >= points[hull[-1]][1] or cost == points[hull[-1]][0]):
            continue
        while len(hull) > 1:
            (cost_before, loss_before), (cost_last, loss_last) = points[hull[-2]], points[hull[-1]]
            if (loss_before - loss_last) * (cost - cost_last) > (loss_last - loss) * (cost_last - cost_before):
                break
            hull.pop()
        hull.append(position)
    return hull
