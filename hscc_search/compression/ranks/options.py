"""The options that a knapsack chooses from: classes of options, in groups with variants."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Options:
    """The options of one class, with the cost and the loss of each.

    Attributes:
        costs: int64 (options,), ascending.
        losses: float64 (options,), not negative.
    """

    costs: np.ndarray
    losses: np.ndarray


# The classes of one variant; a choice takes one option of each.
Classes = Sequence[Options]
# The variants of one group; a choice takes one.
Group = Sequence[Classes]
# The number of the variant that is taken of a group, and for each of its classes the position of the option taken.
Choice = tuple[int, tuple[int, ...]]


def cheapest(groups: Sequence[Group]) -> int:
    """The cost of the cheapest choice."""
    return sum(min(least_cost(classes) for classes in group) for group in groups)


def least_cost(classes: Classes) -> int:
    """The cost of the cheapest option of every class."""
    return sum(int(options.costs[0]) for options in classes)


def least_priced(classes: Classes, price: float) -> float:
    """The least sum of losses and priced costs, with the best option of each class."""
    return sum(float((options.losses + price * options.costs).min()) for options in classes)


def loss_of(classes: Classes, positions: Sequence[int]) -> float:
    """The loss of one option of each class."""
    return float(sum(options.losses[position] for options, position in zip(classes, positions, strict=True)))
