"""Sharing a budget of multiply-adds among the layers of a network."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hscc_search.compression.calibration import Calibration
from hscc_search.errors import CompressionError

Form = tuple[int, ...]
"""The ranks of one compressed layer, in an order of the method's own; empty for a layer that stays dense."""


@dataclass(frozen=True)
class Ladder:
    """The forms that are worth choosing from for one layer: whatever costs more, errs less.

    Attributes:
        macs: int64 (forms,), multiply-adds per image, strictly ascending.
        errors: float64 (forms,), strictly descending.
        forms: the forms themselves.
    """

    macs: npt.NDArray[np.int64]
    errors: npt.NDArray[np.float64]
    forms: tuple[Form, ...]

    def cheapest_within(self, error: float) -> int:
        """Index of the cheapest form that errs by no more than ``error``, which must be the last form's or more."""
        return int(np.searchsorted(-self.errors, -error, side="left"))


def ladder(candidates: Iterable[tuple[int, float, Form]], dense_macs: int) -> Ladder:
    """The ladder of one layer.

    Args:
        candidates: multiply-adds, error of 0 or more, and form, in any order.
        dense_macs: multiply-adds of the dense layer, which errs by 0 and is one of the forms.
    """
    kept: list[tuple[int, float, Form]] = []
    for macs, error, form in sorted([*candidates, (dense_macs, 0.0, ())]):
        if not kept or error < kept[-1][1]:
            kept.append((macs, error, form))
    macs_kept, errors, forms = zip(*kept, strict=True)
    return Ladder(np.array(macs_kept, np.int64), np.array(errors, np.float64), forms)


def dense_macs(calibration: Calibration) -> int:
    """Multiply-adds per image of all convolutions and fully connected layers of the dense network."""
    return sum(record.macs for record in calibration.records) + fixed_macs(calibration)


def fixed_macs(calibration: Calibration) -> int:
    """Multiply-adds per image of the layers that cannot be compressed."""
    return sum(macs for macs, _ in calibration.left_dense.values())


def allowance(dense: int, budget: float) -> int:
    """Multiply-adds per image that a whole network may need.

    Raises:
        CompressionError: the budget is no ratio of 1 or more.
    """
    if not (math.isfinite(budget) and budget >= 1):
        raise CompressionError(f"a budget is dense over compressed multiply-adds, 1 or more, not {budget}")
    return math.floor(dense / budget)


def out_of_reach(method: str, dense: int, least: int, budget: float) -> CompressionError:
    """What to raise where even ``least`` multiply-adds per image, of ``dense``, are too many."""
    reachable = math.floor(100 * dense / least) / 100
    return CompressionError(f"{method} reaches a budget of {reachable} on this network at most, not {budget:g}")


def allocate(method: str, calibration: Calibration, budget: float, ladders: list[Ladder]) -> list[Form]:
    """Choose a form for each layer by one error that all may make, the smallest that the budget has room for.

    This minimises the largest error. What is left over then goes, layer by layer, to the largest errors whose
    improvement still fits.

    Args:
        method: its name, for the message.
        calibration: names the layers and what they cost.
        budget: of the whole network.
        ladders: one for each of the calibration's records.

    Raises:
        CompressionError: the budget is out of reach.
    """
    dense = dense_macs(calibration)
    room = allowance(dense, budget) - fixed_macs(calibration)
    cheapest = sum(int(each.macs[0]) for each in ladders)
    if cheapest > room:
        raise out_of_reach(method, dense, cheapest + fixed_macs(calibration), budget)

    def needed(error: float) -> int:
        return sum(int(each.macs[each.cheapest_within(error)]) for each in ladders)

    # Below some ladder's last error there is nothing to choose from; that error is 0 unless rounding made it more.
    floor = max(each.errors[-1] for each in ladders)
    errors = np.unique(np.concatenate([each.errors for each in ladders]))
    errors = errors[errors >= floor]
    low, high = 0, len(errors) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if needed(errors[middle]) <= room else (middle + 1, high)
    chosen = [each.cheapest_within(errors[high]) for each in ladders]
    room -= sum(int(each.macs[index]) for each, index in zip(ladders, chosen, strict=True))
    better = sorted(
        (-each.errors[index - 1], layer, index)
        for layer, each in enumerate(ladders)
        for index in range(chosen[layer] + 1, len(each.macs))
    )
    for _, layer, index in better:
        more = int(ladders[layer].macs[index] - ladders[layer].macs[chosen[layer]])
        if more <= room:
            chosen[layer], room = index, room - more
    return [each.forms[index] for each, index in zip(ladders, chosen, strict=True)]
