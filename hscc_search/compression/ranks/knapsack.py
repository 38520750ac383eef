"""The ranks that a budget pays for: a multiple-choice knapsack, solved exactly.

Each region of each layer is a class of options: a rank has a cost and a loss, and the dense filters cost most and lose
nothing. The regions of one group of a layer form a group of classes. A group has variants, one for each number of
input channels that its regions may share, and each variant has options of its own for the classes. The solution takes
one variant of each group and one option of each class in it, with the least sum of losses that the limit on costs
allows.

1. The Lagrangian relaxation gives a lower bound and a price of cost, and, in the variants that are best at that price,
   a greedy first solution: the convex hulls of the classes, taken by slope and going on with whatever still fits (Sinha
   and Zoltners 1979).
2. The excess of an option is the amount by which taking it lifts the bound. An option that lifts the bound above the
   first solution is part of no better solution, and is dropped.
3. The few options that are left are combined class by class within each variant, then group by group. A partial choice
   is dropped where it is dominated or its bound is too high (Nemhauser and Ullmann 1969; Pisinger 1995 for the order of
   these steps).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hscc_search.compression.ranks.options import Choice, Classes, Group, Options, cheapest, least_priced, loss_of
from hscc_search.compression.ranks.relaxation import first_solution, relax

# Most partial choices that are followed at once. Where there are more, the most promising ones are followed, and the
# solution is some millionths of the loss above the bound.
MOST_CHOICES = 50_000
# Most pairs that are formed when partial choices are extended: a hundred megabytes.
MOST_PAIRS = 5_000_000


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
    relaxation = relax(groups, limit)
    first = first_solution(groups, relaxation, limit)
    loss = sum(loss_of(group[variant], positions) for group, (variant, positions) in zip(groups, first, strict=True))
    return _improved(groups, limit, relaxation.price, loss) or first


def _improved(groups: Sequence[Group], limit: int, price: float, loss: float) -> list[Choice] | None:
    """Find the best choice that loses less than a first solution; None if there is no such choice.

    Args:
        groups: see :func:`solve`.
        limit: see :func:`solve`.
        price: of a unit of cost, at which the bound is highest.
        loss: of the first solution.
    """
    least = [min(least_priced(classes, price) for classes in group) for group in groups]
    gap = loss - (sum(least) - price * limit)
    # A gain this small is far below the precision of a loss, and above the rounding of sums.
    gap -= 1e-12 * (abs(loss) + abs(price) * limit)
    choices = [
        _choices_of_group(group, price, least_of_group, gap)
        for group, least_of_group in zip(groups, least, strict=True)
    ]
    if any(len(group_choices.states) == 0 for group_choices in choices):
        return None
    order = sorted(range(len(groups)), key=lambda number: len(choices[number].states))
    reserved = sum(int(group_choices.states.costs.min()) for group_choices in choices)
    states, steps = _nothing_taken(0.0), []
    for number in order:
        added = choices[number].states
        reserved -= int(added.costs.min())  # what the groups that follow cost at least
        states, step = _extended(states, added, gap, limit - reserved)
        if len(states) == 0:
            return None
        steps.append(step)
    best = int(states.losses.argmin())
    if states.losses[best] >= loss:
        return None
    taken = dict(zip(order, _taken(steps, best), strict=True))
    return [group_choices.choice(taken[number]) for number, group_choices in enumerate(choices)]


@dataclass(frozen=True)
class _States:
    """Partial choices, in the order of their costs.

    Attributes:
        costs: int64 (states,), ascending.
        excesses: float64 (states,), the amount by which each lifts the bound.
        losses: float64 (states,), descending.
    """

    costs: np.ndarray
    excesses: np.ndarray
    losses: np.ndarray

    def __len__(self) -> int:
        return len(self.costs)

    def at(self, positions: np.ndarray) -> "_States":
        """The partial choices at some positions."""
        return _States(self.costs[positions], self.excesses[positions], self.losses[positions])


def _nothing_taken(excess: float) -> _States:
    """The empty partial choice, with the excess of the variant that it begins."""
    return _States(np.zeros(1, np.int64), np.array([excess]), np.zeros(1))


@dataclass(frozen=True)
class _Step:
    """The origins of partial choices that extend earlier ones.

    Attributes:
        parents: position of the earlier partial choice that each extends.
        added: position of the option, or of the group's choice, that was added to it.
    """

    parents: np.ndarray
    added: np.ndarray


@dataclass(frozen=True)
class _GroupChoices:
    """The choices within one group that may be part of a better solution than the first one.

    Attributes:
        states: the choices, each complete within the group.
        variants: variant of each choice.
        origins: position of each choice among those of its variant.
        steps: by variant, a step for each class.
    """

    states: _States
    variants: np.ndarray
    origins: np.ndarray
    steps: dict[int, list[_Step]]

    def choice(self, state: int) -> Choice:
        """The choice that is at a position of the states."""
        variant = int(self.variants[state])
        return variant, tuple(_taken(self.steps[variant], int(self.origins[state])))


def _choices_of_group(group: Group, price: float, least: float, gap: float) -> _GroupChoices:
    """The choices within one group that lift the bound by less than a gap.

    Args:
        group: its variants.
        price: of a unit of cost.
        least: least sum of losses and priced costs over all variants.
        gap: between the bound and the loss of the first solution.
    """
    states_of_variants, steps = [_States(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))], {}
    variants, origins = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for variant, classes in enumerate(group):
        excess = least_priced(classes, price) - least
        if excess < gap:
            states, steps[variant] = _choices_of_variant(classes, price, excess, gap)
            states_of_variants.append(states)
            variants.append(np.full(len(states), variant))
            origins.append(np.arange(len(states)))
    every = _States(
        np.concatenate([states.costs for states in states_of_variants]),
        np.concatenate([states.excesses for states in states_of_variants]),
        np.concatenate([states.losses for states in states_of_variants]),
    )
    best = _undominated(every.costs, every.losses)
    return _GroupChoices(every.at(best), np.concatenate(variants)[best], np.concatenate(origins)[best], steps)


def _choices_of_variant(classes: Classes, price: float, excess: float, gap: float) -> tuple[_States, list[_Step]]:
    """The choices within one variant, whose best options lift the bound by ``excess``."""
    states, steps = _nothing_taken(excess), []
    for options in classes:
        positions, promising = _promising(options, price, gap - excess)
        states, step = _extended(states, promising, gap)
        steps.append(_Step(step.parents, positions[step.added]))
    return states, steps


def _promising(options: Options, price: float, gap: float) -> tuple[np.ndarray, _States]:
    """The options that alone lift the bound by less than a gap: their positions, and themselves as partial choices."""
    priced = options.losses + price * options.costs
    excesses = priced - priced.min()
    positions = np.flatnonzero(excesses < gap)
    return positions, _States(options.costs[positions], excesses[positions], options.losses[positions])


def _extended(states: _States, options: _States, gap: float, limit: int | None = None) -> tuple[_States, _Step]:
    """Add each option of one more class (or group) to partial choices, and drop what cannot lead to a better choice.

    Args:
        states: the partial choices.
        options: of the class or group.
        gap: excess from which on a choice is no better than the first solution.
        limit: of the costs, None within a group.
    """
    added = np.arange(len(options))
    if len(states) * len(added) > MOST_PAIRS:
        added = _least_excess(options.excesses, max(1, MOST_PAIRS // len(states)))
    pairs = _States(
        (states.costs[:, None] + options.costs[added]).ravel(),
        (states.excesses[:, None] + options.excesses[added]).ravel(),
        (states.losses[:, None] + options.losses[added]).ravel(),
    )
    promising = pairs.excesses < gap
    if limit is not None:
        promising &= pairs.costs <= limit
    alive = np.flatnonzero(promising)
    alive = alive[_undominated(pairs.costs[alive], pairs.losses[alive])]
    if len(alive) > MOST_CHOICES:
        alive = alive[_least_excess(pairs.excesses[alive], MOST_CHOICES)]
    return pairs.at(alive), _Step(alive // len(added), added[alive % len(added)])


def _least_excess(excesses: np.ndarray, count: int) -> np.ndarray:
    """Positions of the smallest excesses, ascending."""
    return np.sort(np.argsort(excesses, kind="stable")[:count])


def _undominated(costs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Positions, by ascending cost, of the choices that lose less than every choice that costs no more."""
    order = np.lexsort((losses, costs))
    if len(order) == 0:
        return order
    losses = losses[order]
    lowest = np.minimum.accumulate(losses)
    return order[np.r_[True, losses[1:] < lowest[:-1]]]


def _taken(steps: list[_Step], state: int) -> list[int]:
    """Positions of the options that were added, step by step, on the way to one partial choice."""
    taken = []
    for step in reversed(steps):
        taken.append(int(step.added[state]))
        state = int(step.parents[state])
    return taken[::-1]
