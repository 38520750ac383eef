"""Sharing a budget of multiply-adds among the layers of a network."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hscc_search.errors import CompressionError

Form = tuple[int, ...]
"""The ranks of one compressed layer, in an order of the method's own; empty for a layer that stays dense."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """The forms of one layer that are worth choosing from: whatever costs more, errs less.

    Attributes:
        macs: int64 (forms,), multiply-adds per image, strictly ascending.
        errors: float64 (forms,), strictly descending to 0.
        forms: the forms themselves.
        dense: multiply-adds per image of the dense layer.
    """

    macs: npt.NDArray[np.int64]
    errors: npt.NDArray[np.float64]
    forms: tuple[Form, ...]
    dense: int

    def cheapest_within(self, error: float) -> int:
        """Index of the cheapest form that errs by no more than ``error``, 0 or more."""
        return int(np.searchsorted(-self.errors, -error, side="left"))


def ladder(candidates: Iterable[tuple[int, float, Form]], dense: int) -> Ladder:
    """The ladder of one layer.

    Args:
        candidates: multiply-adds, error of 0 or more, and form, in any order.
        dense: multiply-adds of the dense layer, which errs by 0 and is one of the forms.
    """
    kept: list[tuple[int, float, Form]] = []
    for macs, error, form in sorted([*candidates, (dense, 0.0, ())]):
        if not kept or error < kept[-1][1]:
            kept.append((macs, error, form))
    macs_kept, errors, forms = zip(*kept, strict=True)
    return Ladder(np.array(macs_kept, np.int64), np.array(errors, np.float64), forms, dense)


def allowance(dense: int, budget: float) -> int:
    """Multiply-adds per image that a whole network may need.

    Args:
        dense: multiply-adds per image of the dense network.
        budget: dense over compressed multiply-adds.

    Raises:
        CompressionError: the budget is no ratio of 1 or more.
    """
    if not (math.isfinite(budget) and budget >= 1):
        raise CompressionError(f"a budget is dense over compressed multiply-adds, 1 or more, not {budget}")
    return math.floor(dense / budget)


def check_reach(method: str, dense: int, least: int, budget: float) -> None:
    """Raise CompressionError if a method needs ``least`` multiply-adds per image of ``dense``, and that is too many."""
    if least > allowance(dense, budget):
        reachable = math.floor(100 * dense / least) / 100
        raise CompressionError(f"{method} reaches a budget of {reachable} on this network at most, not {budget:g}")


def allocate(method: str, dense: int, budget: float, ladders: Mapping[str, Ladder]) -> dict[str, Form]:
    """Choose a form for each layer by one error that all may make, the smallest that the budget has room for.

    This minimises the largest error. What is left over then goes, one by one, to the largest errors whose improvement
    still fits.

    Args:
        method: its name, for the message.
        dense: multiply-adds per image of the whole dense network.
        budget: dense over compressed multiply-adds.
        ladders: by name of the layer; what is not among them stays dense.

    Returns:
        The forms by name, without those of layers that stay dense.

    Raises:
        CompressionError: the budget is out of reach.
    """
    names, steps = list(ladders), list(ladders.values())
    fixed = dense - sum(each.dense for each in steps)
    check_reach(method, dense, fixed + sum(int(each.macs[0]) for each in steps), budget)
    room = allowance(dense, budget) - fixed

    def needed(error: float) -> int:
        return sum(int(each.macs[each.cheapest_within(error)]) for each in steps)

    errors = np.unique(np.concatenate([each.errors for each in steps])) if steps else np.zeros(1)
    low, high = 0, len(errors) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if needed(errors[middle]) <= room else (middle + 1, high)
    chosen = [each.cheapest_within(errors[high]) for each in steps]
    room -= needed(errors[high])
    better = sorted(
        (-each.errors[index - 1], layer, index)
        for layer, each in enumerate(steps)
        for index in range(chosen[layer] + 1, len(each.macs))
    )
    for _, layer, index in better:
        more = int(steps[layer].macs[index] - steps[layer].macs[chosen[layer]])
        if more <= room:
            chosen[layer], room = index, room - more
    forms = {name: each.forms[index] for name, each, index in zip(names, steps, chosen, strict=True)}
    return {name: form for name, form in forms.items() if form}
