"""A budget of multiply-adds, shared among the layers of a network."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hscc_search.errors import CompressionError

# The ranks of one compressed layer, whose meaning depends on the method; None for a layer that stays dense.
LayerRanks = tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Ladder:
    """The ranks of one layer that are worth choosing from: each step costs more and errs less than the one before.

    Attributes:
        macs: int64 (steps,), multiply-adds per image, strictly ascending.
        errors: float64 (steps,), strictly descending to 0.
        ranks: the ranks of each step.
        dense: multiply-adds per image of the dense layer.
    """

    macs: npt.NDArray[np.int64]
    errors: npt.NDArray[np.float64]
    ranks: tuple[LayerRanks, ...]
    dense: int

    def cheapest_within(self, error: float) -> int:
        """Index of the cheapest step that errs by no more than ``error``, 0 or more."""
        return int(np.searchsorted(-self.errors, -error, side="left"))


def ladder(candidates: Iterable[tuple[int, float, LayerRanks]], dense: int) -> Ladder:
    """Build the ladder of one layer.

    Args:
        candidates: multiply-adds per image, error of 0 or more, and ranks, in any order.
        dense: multiply-adds per image of the dense layer, which errs by 0 and is one of the steps.
    """
    steps: list[tuple[int, float, LayerRanks]] = []
    # Of candidates with equal costs and errors the dense layer comes first, then the lower ranks.
    for macs, error, ranks in sorted([*candidates, (dense, 0.0, None)], key=lambda step: (*step[:2], step[2] or ())):
        if not steps or error < steps[-1][1]:
            steps.append((macs, error, ranks))
    all_macs, errors, all_ranks = zip(*steps, strict=True)
    return Ladder(np.array(all_macs, np.int64), np.array(errors, np.float64), all_ranks, dense)


def allowance(dense: int, budget: float) -> int:
    """Multiply-adds per image that a budget allows a whole network.

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
    """Check that a method can meet a budget.

    Args:
        method: its name, for the message.
        dense: multiply-adds per image of the whole dense network.
        least: multiply-adds per image of the cheapest network that the method makes.
        budget: dense over compressed multiply-adds.

    Raises:
        CompressionError: the budget is out of reach, or no ratio of 1 or more.
    """
    if least > allowance(dense, budget):
        reachable = math.floor(100 * dense / least) / 100
        raise CompressionError(f"{method} reaches a budget of {reachable} on this network at most, not {budget:g}")


def allocate(method: str, dense: int, budget: float, ladders: Mapping[str, Ladder]) -> dict[str, tuple[int, ...]]:
    """Choose the ranks of each layer so that the largest error of all layers is as small as the budget allows.

    What is left over is then spent on single layers, see :func:`_spend`.

    Args:
        method: its name, for the message.
        dense: multiply-adds per image of the whole dense network.
        budget: dense over compressed multiply-adds.
        ladders: by name of the layer; layers that are not among them stay dense.

    Returns:
        The ranks by name of the layer, without the layers that stay dense.

    Raises:
        CompressionError: the budget is out of reach.
    """
    all_ladders = list(ladders.values())
    fixed = dense - sum(layer.dense for layer in all_ladders)
    check_reach(method, dense, fixed + sum(int(layer.macs[0]) for layer in all_ladders), budget)
    room = allowance(dense, budget) - fixed
    error = _smallest_common_error(all_ladders, room)
    steps = [layer.cheapest_within(error) for layer in all_ladders]
    steps = _spend(all_ladders, steps, room - _macs_within(all_ladders, error))
    ranks = {name: layer.ranks[step] for (name, layer), step in zip(ladders.items(), steps, strict=True)}
    return {name: chosen for name, chosen in ranks.items() if chosen is not None}


def _smallest_common_error(ladders: Sequence[Ladder], room: int) -> float:
    """The smallest error for which all layers together, each as cheap as it may be, fit into the room."""
    errors = np.unique(np.concatenate([ladder.errors for ladder in ladders])) if ladders else np.zeros(1)
    low, high = 0, len(errors) - 1
    while low < high:
        middle = (low + high) // 2
        if _macs_within(ladders, errors[middle]) <= room:
            high = middle
        else:
            low = middle + 1
    return float(errors[high])


def _macs_within(ladders: Sequence[Ladder], error: float) -> int:
    return sum(int(ladder.macs[ladder.cheapest_within(error)]) for ladder in ladders)


def _spend(ladders: Sequence[Ladder], steps: Sequence[int], room: int) -> list[int]:
    """Spend the multiply-adds that are left over on further steps; steps that lessen the largest errors come first.

    Args:
        ladders: of each layer.
        steps: the step chosen so far for each layer.
        room: multiply-adds per image that are left over.

    Returns:
        The step of each layer, the chosen one or a further one.
    """
    chosen = list(steps)
    further = sorted(
        (-ladder.errors[step - 1], layer, step)
        for layer, ladder in enumerate(ladders)
        for step in range(chosen[layer] + 1, len(ladder.macs))
    )
    for _, layer, step in further:
        more = int(ladders[layer].macs[step] - ladders[layer].macs[chosen[layer]])
        if more <= room:
            chosen[layer] = step
            room -= more
    return chosen
