"""The ranks that a budget pays for: a multiple-choice knapsack, solved exactly.

Each region of each layer is a class with options: a rank costs so much and loses so much, the dense filters cost the
most and lose nothing. The classes of one layer form a group. A group may have variants, such as how many channels all
its regions see, which say what options its classes have. One variant of each group, and one option of each class in
it, is taken so that the losses add up to the least that the limit on costs allows.

1. The Lagrangian relaxation gives a lower bound, a multiplier and the variants that are best at it; in these, the
   convex hulls of the classes, taken by slope and going on with whatever still fits, give a first solution (Sinha and
   Zoltners 1979).
2. An option whose reduced cost alone lifts the bound above the first solution is in no better one, and is dropped.
3. The few that are left are combined class by class within each variant, then group by group, and a partial choice that
   is dominated or whose bound is too high is forgotten (Nemhauser and Ullmann 1969; Pisinger 1995 for the order of
   these steps).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Partial choices that are followed at once. Beyond, the most promising ones are: the gap to the bound is then some
# millionths of the loss.
_ALIVE = 50_000
# And so many pairs are looked at when they are extended: that is a hundred megabytes.
_PAIRS = 5_000_000


@dataclass(frozen=True)
class Options:
    """What one region of one layer may cost.

    Attributes:
        costs: int64 (options,), ascending.
        losses: float64 (options,), not negative.
    """

    costs: np.ndarray
    losses: np.ndarray


# Variants, each with a class for each region of a layer.
Group = Sequence[Sequence[Options]]
# The variant that is taken, and the position of the option that is taken for each of its classes.
Choice = tuple[int, tuple[int, ...]]


def solve(groups: Sequence[Group], limit: int) -> list[Choice]:
    """Choose one variant of each group and one option of each of its classes, with the least sum of losses.

    Args:
        groups: at least one, each with at least one variant of at least one class.
        limit: of the sum of costs, not below that of the cheapest options.

    Returns:
        The choice for each group.

    Raises:
        ValueError: even the cheapest options cost more than ``limit``.
    """
    if cheapest(groups) > limit:
        raise ValueError(f"the cheapest options cost {cheapest(groups)}, more than {limit}")
    best, multiplier = _relaxed(groups, limit)
    loss_of_best = sum(_loss(group[variant], taken) for group, (variant, taken) in zip(groups, best, strict=True))
    floors = [min(_floor(classes, multiplier) for classes in group) for group in groups]
    gap = loss_of_best - (sum(floors) - multiplier * limit)
    # Far below what a loss is known to, and above the rounding of sums.
    gap -= 1e-12 * (abs(loss_of_best) + abs(multiplier) * limit)
    combined = [_combined(group, multiplier, floor, gap) for group, floor in zip(groups, floors, strict=True)]
    if any(len(one.states.costs) == 0 for one in combined):
        return best
    order = sorted(range(len(groups)), key=lambda index: len(combined[index].states.costs))
    still = sum(int(one.states.costs.min()) for one in combined)
    states, trail = _START, []
    for index in order:
        own = combined[index].states
        still -= int(own.costs.min())
        states, parents, chosen = _extended(states, own, gap, limit - still)
        if len(states.costs) == 0:
            return best  # nothing better than the first solution
        trail.append((parents, chosen))
    state = int(states.losses.argmin())
    if states.losses[state] >= loss_of_best:
        return best
    found = dict(zip(reversed(order), _traced(trail, state), strict=True))
    return [one.choice(found[index]) for index, one in enumerate(combined)]


def price_at(groups: Sequence[Group], limit: int) -> float:
    """What one unit of cost is worth in loss at the limit: the multiplier of the Lagrangian relaxation."""
    return _variants_at(groups, limit)[2]


def cheapest(groups: Sequence[Group]) -> int:
    """The least that a choice can cost."""
    return sum(min(sum(int(options.costs[0]) for options in classes) for classes in group) for group in groups)


@dataclass(frozen=True)
class _States:
    """Partial choices.

    Attributes:
        costs: int64, ascending.
        excesses: by how much each lifts the bound.
        losses: falling.
    """

    costs: np.ndarray
    excesses: np.ndarray
    losses: np.ndarray


_START = _States(np.zeros(1, np.int64), np.zeros(1), np.zeros(1))
_Trail = list[tuple[np.ndarray, np.ndarray]]  # for each class the states before, and the options taken


@dataclass(frozen=True)
class _Combined:
    """What may become of one group in a choice that is better than the first solution.

    Attributes:
        states: every whole choice within the group.
        variants: of each.
        origins: its position among the states of its variant.
        trails: by variant.
    """

    states: _States
    variants: np.ndarray
    origins: np.ndarray
    trails: dict[int, _Trail]

    def choice(self, state: int) -> Choice:
        variant = int(self.variants[state])
        taken = _traced(self.trails[variant], int(self.origins[state]))
        return variant, tuple(reversed(taken))


def _combined(group: Group, multiplier: float, floor: float, gap: float) -> _Combined:
    """The choices within one group that lift the bound by less than a gap.

    Args:
        group: its variants.
        multiplier: of the costs.
        floor: the least sum of losses and multiplied costs in any variant.
        gap: see above.
    """
    trails: dict[int, _Trail] = {}
    found = []
    for variant, classes in enumerate(group):
        base = _floor(classes, multiplier) - floor
        if base >= gap:
            continue
        states, trail = _States(np.zeros(1, np.int64), np.array([base]), np.zeros(1)), []
        for options in classes:
            lifted = options.losses + multiplier * options.costs
            left = np.flatnonzero(lifted - lifted.min() < gap - base)
            own = _States(options.costs[left], lifted[left] - lifted.min(), options.losses[left])
            states, parents, chosen = _extended(states, own, gap)
            trail.append((parents, left[chosen]))
        trails[variant] = trail
        found.append((variant, states))
    if not found:
        none = np.zeros(0)
        return _Combined(_States(none.astype(np.int64), none, none), none, none, {})
    costs, excesses, losses = (
        np.concatenate([getattr(states, name) for _, states in found]) for name in ("costs", "excesses", "losses")
    )
    variants = np.concatenate([np.full(len(states.costs), variant) for variant, states in found])
    origins = np.concatenate([np.arange(len(states.costs)) for _, states in found])
    kept = _undominated(costs, losses)
    return _Combined(_States(costs[kept], excesses[kept], losses[kept]), variants[kept], origins[kept], trails)


def _extended(
    states: _States, own: _States, gap: float, limit: int | None = None
) -> tuple[_States, np.ndarray, np.ndarray]:
    """Partial choices with one more class (or group) in them, those that may still become better than the first.

    Returns:
        The states; for each the position of the one that it came from, and of what was added.
    """
    added = np.arange(len(own.costs))
    if len(states.costs) * len(added) > _PAIRS:
        added = np.sort(np.argsort(own.excesses, kind="stable")[: max(1, _PAIRS // len(states.costs))])
    costs = (states.costs[:, None] + own.costs[added]).ravel()
    excesses = (states.excesses[:, None] + own.excesses[added]).ravel()
    losses = (states.losses[:, None] + own.losses[added]).ravel()
    promising = excesses < gap
    if limit is not None:
        promising &= costs <= limit
    alive = np.flatnonzero(promising)
    alive = alive[_undominated(costs[alive], losses[alive])]
    if len(alive) > _ALIVE:
        alive = alive[np.sort(np.argsort(excesses[alive], kind="stable")[:_ALIVE])]
    return _States(costs[alive], excesses[alive], losses[alive]), alive // len(added), added[alive % len(added)]


def _undominated(costs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Positions, by cost, of what loses less than all that costs no more."""
    order = np.lexsort((losses, costs))
    lowest = np.minimum.accumulate(losses[order])
    return order[np.r_[True, losses[order][1:] < lowest[:-1]]] if len(order) else order


def _traced(trail: _Trail, state: int) -> list[int]:
    """What was taken of each class, the last one first."""
    taken = []
    for parents, chosen in reversed(trail):
        taken.append(int(chosen[state]))
        state = int(parents[state])
    return taken


def _relaxed(groups: Sequence[Group], limit: int) -> tuple[list[Choice], float]:
    """A first solution, and the multiplier of the Lagrangian relaxation: loss per cost at the limit."""
    below, above, multiplier = _variants_at(groups, limit)
    found = []
    for variants in (below, above):
        classes = [options for group, variant in zip(groups, variants, strict=True) for options in group[variant]]
        if sum(int(options.costs[0]) for options in classes) <= limit:
            found.append((variants, classes, _greedy(classes, limit)))
    variants, _, flat = min(found, key=lambda one: _loss(*one[1:]))
    taken = iter(flat)
    return [
        (variant, tuple(next(taken) for _ in group[variant])) for group, variant in zip(groups, variants, strict=True)
    ], multiplier


def _variants_at(groups: Sequence[Group], limit: int) -> tuple[list[int], list[int], float]:
    """The variants of the relaxed choices that cost up to the limit and above it, and the multiplier in between.

    The bound is concave in the multiplier. Two multipliers on either side of its top stand for two lines, and the one
    where these cross is tried next, until nothing lies below the lines.
    """
    tables = [_table(group) for group in groups]

    def at(multiplier: float, count: float = 1.0) -> tuple[list[int], float, float]:
        """Variants, cost and loss that are best for ``count`` times the loss and so many times the cost."""
        variants, cost, loss = [], 0.0, 0.0
        for costs, losses, inside in tables:
            values = np.where(inside, count * losses + multiplier * costs, np.inf)
            values[~inside.any(axis=2)] = 0.0  # a variant of fewer classes
            positions = values.argmin(axis=2)
            variant = int(values.min(axis=2).sum(axis=1).argmin())
            rows = np.arange(costs.shape[1])
            variants.append(variant)
            cost += float(costs[variant, rows, positions[variant]].sum())
            loss += float(losses[variant, rows, positions[variant]].sum())
        return variants, cost, loss

    free, cost_above, loss_above = at(0.0)
    if cost_above <= limit:
        return free, free, 0.0
    above = free
    below, cost_below, loss_below = at(1.0, count=0.0)
    while True:
        multiplier = (loss_below - loss_above) / (cost_above - cost_below)
        variants, cost, loss = at(multiplier)
        if not cost_below < cost < cost_above:  # as what lies below the line would
            return below, above, multiplier
        if cost <= limit:
            below, cost_below, loss_below = variants, cost, loss
        else:
            above, cost_above, loss_above = variants, cost, loss


def _table(group: Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs, losses and which of them there are, (variants, classes, options)."""
    shape = (
        len(group),
        max(len(classes) for classes in group),
        max(len(options.costs) for classes in group for options in classes),
    )
    costs, losses, inside = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    for variant, classes in enumerate(group):
        for at, options in enumerate(classes):
            here = (variant, at, slice(len(options.costs)))
            costs[here], losses[here], inside[here] = options.costs, options.losses, True
    return costs, losses, inside


def _greedy(classes: Sequence[Options], limit: int) -> list[int]:
    """A solution from the convex hulls of the classes, taken by slope as far as they fit."""
    hulls = [_hull(options) for options in classes]
    taken = [0] * len(classes)
    steps = [
        ((options.losses[a] - options.losses[b]) / (options.costs[b] - options.costs[a]), index, position + 1)
        for index, (options, hull) in enumerate(zip(classes, hulls, strict=True))
        for position, (a, b) in enumerate(itertools.pairwise(hull))
    ]
    steps.sort(key=lambda step: (-step[0], step[1], step[2]))
    room = limit - sum(int(options.costs[hull[0]]) for options, hull in zip(classes, hulls, strict=True))
    for _, index, position in steps:
        if position != taken[index] + 1:
            continue  # the step before it did not fit
        costs, hull = classes[index].costs, hulls[index]
        price = int(costs[hull[position]] - costs[hull[position - 1]])
        if price <= room:
            room -= price
            taken[index] = position
    return [hull[position] for hull, position in zip(hulls, taken, strict=True)]


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


def _floor(classes: Sequence[Options], multiplier: float) -> float:
    return sum(float((options.losses + multiplier * options.costs).min()) for options in classes)


def _loss(classes: Sequence[Options], taken: Sequence[int]) -> float:
    return float(sum(options.losses[position] for options, position in zip(classes, taken, strict=True)))
