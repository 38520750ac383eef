"""What rank each part of each layer gets, before anything is fitted."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hscc_search.compression.budget import Options, solve
from hscc_search.compression.calibration import Calibration, LayerRecord
from hscc_search.compression.layers import Blueprint
from hscc_search.compression.partition import Block, Division, Partition, divide
from hscc_search.compression.ranks import largest_first, rank_for_energy
from hscc_search.compression.regions import pieces
from hscc_search.compression.setting import Setting
from hscc_search.errors import CompressionError

# A layer below this share of the network's multiply-adds is not worth an approximation.
TINY_SHARE = 1e-4

Ranks = tuple[int, ...] | None


@dataclass(frozen=True)
class Allotment:
    """What one layer is to become.

    Attributes:
        partition: where it is divided.
        ranks: for each group and region the rank of each cluster, or None for a region that stays dense.
        blueprint: the form of the module.
        macs: its multiply-adds per image.
    """

    partition: Partition
    ranks: tuple[tuple[Ranks, ...], ...]
    blueprint: Blueprint
    macs: int


@dataclass(frozen=True)
class _Place:
    """One block with what its cost depends on: K (D + C) multiply-adds per position, or D C where it stays dense."""

    record: LayerRecord
    block: Block
    inputs: int

    @property
    def outputs(self) -> int:
        return len(self.block.clusters)

    @property
    def most(self) -> int:
        """The largest rank that is cheaper than the dense filters, or 0."""
        return min(self.outputs, (self.inputs * self.outputs - 1) // (self.inputs + self.outputs))

    def macs(self, rank: int | None) -> int:
        return self.block.area * self.weights(rank)

    def weights(self, rank: int | None) -> int:
        return self.inputs * self.outputs if rank is None else rank * (self.inputs + self.outputs)


def allot(calibration: Calibration, setting: Setting) -> dict[str, Allotment]:
    """Divide the layers and choose all ranks by the dense network's responses.

    Returns:
        By layer name, in execution order; layers that are too small to matter are left out.

    Raises:
        CompressionError: the budget is out of reach.
    """
    records = [record for record in calibration.records if record.macs >= TINY_SHARE * calibration.macs]
    partitions = {record.name: partition(calibration, record, setting.division) for record in records}
    places = [
        _Place(record, block, _inputs(record))
        for record in records
        for row in partitions[record.name].blocks
        for block in row
    ]
    if setting.budget is not None:
        chosen = _within_budget(calibration, setting, places)
    else:
        chosen = [_by_share(place, setting) for place in places]
    result = {}
    for record in records:
        divided = partitions[record.name]
        count = len(divided.blocks[0])
        here = [ranks for place, ranks in zip(places, chosen, strict=True) if place.record is record]
        rows = tuple(tuple(here[start : start + count]) for start in range(0, len(here), count))
        if all(ranks is None for ranks in here) and count > 1:
            # Dense filters of its own for each region would cost time and gain little.
            divided = partition(calibration, record, Division("none", 1, "none", 1, setting.seed))
            rows = tuple((None,) for _ in divided.blocks)
        result[record.name] = _allotment(record, divided, rows)
    return result


def partition(calibration: Calibration, record: LayerRecord, division: Division) -> Partition:
    """One divided layer, divided once per calibration."""
    return calibration.remember((record.name, division), lambda: divide(record, division))


def _allotment(record: LayerRecord, divided: Partition, rows: tuple[tuple[Ranks, ...], ...]) -> Allotment:
    totals = tuple(tuple(None if ranks is None else sum(ranks) for ranks in row) for row in rows)
    macs = sum(
        _Place(record, block, _inputs(record)).macs(total)
        for row, totals_of_row in zip(divided.blocks, totals, strict=True)
        for block, total in zip(row, totals_of_row, strict=True)
    )
    lattice = record.lattice
    blueprint = Blueprint((lattice.height, lattice.width), totals, pieces(divided.labels))
    return Allotment(divided, rows, blueprint, macs)


def _inputs(record: LayerRecord) -> int:
    positions = record.lattice.height * record.lattice.width
    return record.macs // (positions * len(record.profiles))


def _by_share(place: _Place, setting: Setting) -> Ranks:
    eigenvalues = place.block.eigenvalues
    if setting.energy is not None:
        energy = setting.energy
        ranks = [rank_for_energy(values, energy) for values in eigenvalues]
    else:
        assert setting.ratio is not None
        ratio = setting.ratio
        ranks = [max(1, round(ratio * len(values))) for values in eigenvalues]
    total = max(1, -(-sum(ranks) // setting.rank_multiple) * setting.rank_multiple)
    if total > place.most:
        return None
    return largest_first(eigenvalues, ranks, total)


def _within_budget(calibration: Calibration, setting: Setting, places: list[_Place]) -> list[Ranks]:
    """The ranks with the least loss whose cost, with what cannot be compressed, stays within the budget.

    What dropping directions of a response costs is taken as their variance, weighted by the effects and summed over
    positions: twice the rise of the loss to second order, if errors at different places are independent.
    """
    assert setting.budget is not None
    cost: Callable[[_Place, int | None], int]
    if setting.budget_of == "flops":
        cost, total = _Place.macs, calibration.macs
        fixed = total - sum(record.macs for record in {place.record.name: place.record for place in places}.values())
    else:
        cost, total = _Place.weights, _parameters(calibration.network)
        layers = {place.record.name for place in places}
        fixed = total - sum(_parameters(calibration.network.get_submodule(name)) for name in layers)
        fixed += sum(place.outputs for place in places)  # each region has a bias of its own
    classes, totals = [], []
    multiple = setting.rank_multiple
    for place in places:
        spectrum = torch.cat(place.block.eigenvalues).sort(descending=True).values.cpu().numpy()
        tails = np.maximum(spectrum.sum() - np.cumsum(spectrum), 0) * place.block.area
        # A rank beyond the last positive eigenvalue gains nothing.
        positive = max(1, int(np.count_nonzero(spectrum)))
        useful = min(place.most, -(-positive // multiple) * multiple)
        ranks = np.arange(multiple, useful + 1, multiple)
        unit = cost(place, 1)
        classes.append(
            Options(
                costs=np.r_[ranks * unit, cost(place, None)].astype(np.int64),
                losses=np.r_[tails[ranks - 1], 0.0],
            )
        )
        totals.append([*ranks.tolist(), None])
    limit = int(total / setting.budget) - fixed
    cheapest = sum(int(options.costs[0]) for options in classes)
    if cheapest > limit:
        raise CompressionError(
            f"a budget of {setting.budget:g}x fewer {setting.budget_of} is out of reach: "
            f"rank {setting.rank_multiple} everywhere gives {total / (fixed + cheapest):.3g}x"
        )
    return [
        None
        if (rank := options[position]) is None
        else largest_first(place.block.eigenvalues, [0] * len(place.block.eigenvalues), rank)
        for place, options, position in zip(places, totals, solve(classes, limit), strict=True)
    ]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
