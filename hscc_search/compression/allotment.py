"""What rank each part of each layer gets, before anything is fitted."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_search.compression.budget import Options, price_at, solve
from hscc_search.compression.calibration import Calibration
from hscc_search.compression.input_axes import input_metric
from hscc_search.compression.layers import Blueprint
from hscc_search.compression.partition import Block, Division, Partition, divide
from hscc_search.compression.ranks import largest_first, rank_for_energy
from hscc_search.compression.records import LayerRecord, region_effects
from hscc_search.compression.regions import pieces
from hscc_search.compression.setting import Setting
from hscc_search.errors import CompressionError

# A layer below this share of the network's multiply-adds is not worth an approximation.
TINY_SHARE = 1e-4

_WHOLE = Division("none", 1, "none", 1, seed=0)

# Divided layers are remembered up to this size, the last used ones.
_MEGABYTES = 1000

# Input ranks that are tried, evenly spaced; multiples as total ranks are.
_INPUT_RANKS = 16
# What dropping input directions loses counts this much more: the fit behind makes up for less of it.
_INPUT_WEIGHT = 2.0

# At this price of a unit of cost no loss counts.
_DEAREST = 1e200


@dataclass(frozen=True)
class Ranks:
    """The ranks of one factored block.

    Attributes:
        clusters: of each cluster.
    """

    clusters: tuple[int, ...]

    @property
    def total(self) -> int:
        """Number of basis filters."""
        return sum(self.clusters)


@dataclass(frozen=True)
class Allotment:
    """What one layer is to become.

    Attributes:
        partition: where it is divided.
        ranks: for each group and region, None for a region that stays dense.
        blueprint: the form of the module.
        macs: its multiply-adds per image.
    """

    partition: Partition
    ranks: tuple[tuple[Ranks | None, ...], ...]
    blueprint: Blueprint
    macs: int


@dataclass(frozen=True)
class _Place:
    """One block and what its cost depends on.

    Attributes:
        share: of the output map that is its region's.
        channels: input channels of the filters.
        taps: of one filter and channel; D = channels * taps.
        input_area: input positions of the layer.
        of: what costs, a key of :data:`hscc_search.compression.setting.COSTS`.
    """

    record: LayerRecord
    block: Block
    share: float
    channels: int
    taps: int
    input_area: int
    of: str

    @property
    def outputs(self) -> int:
        return len(self.block.clusters)

    def filters(self, ranks: Any, inputs: Any) -> Any:
        """Cost of basis filters and recombination.

        Args:
            ranks: total ranks, an int or an array of them; 0 stands for the dense filters.
            inputs: as many input ranks; 0 stands for all channels.
        """
        ranks, inputs = np.asarray(ranks), np.asarray(inputs)
        seen = np.where(inputs > 0, inputs, self.channels) * self.taps
        weights = np.where(ranks > 0, ranks * (seen + self.outputs), self.channels * self.taps * self.outputs)
        return weights * self.block.area if self.of == "flops" else weights + self.outputs  # the bias

    def encoder(self, inputs: Any) -> Any:
        """Cost of bringing the layer's input to so many channels, for all regions; 0 stands for all of them."""
        return np.asarray(inputs) * self.channels * (self.input_area if self.of == "flops" else 1)


def allot(calibration: Calibration, setting: Setting) -> dict[str, Allotment]:
    """Divide the layers and choose all ranks by the dense network's responses.

    Returns:
        By layer name, in execution order; layers that are too small to matter are left out.

    Raises:
        CompressionError: the budget is out of reach.
    """
    records = compressible(calibration)
    partitions = {record.name: _partition(calibration, record, setting.of(record.name).division) for record in records}
    if setting.budget is not None:
        partitions, chosen = _within_budget(calibration, setting, records, partitions)
    else:
        chosen = {
            record.name: [
                [(_by_share(place, setting.of(record.name)), 0) for place in row]
                for row in _places(calibration, record, partitions[record.name])
            ]
            for record in records
        }
    result = {}
    for record in records:
        divided, rows = partitions[record.name], chosen[record.name]
        if len(divided.blocks[0]) > 1 and all(ranks is None for row in rows for ranks, _ in row):
            # Dense filters of its own for each region would cost time and gain little.
            divided = _partition(calibration, record, _WHOLE)
            rows = [[(None, 0)] for _ in divided.blocks]
        macs = 0
        for places, row in zip(_places(calibration, record, divided), rows, strict=True):
            macs += int(places[0].encoder(row[0][1]))
            macs += sum(
                int(place.filters(ranks.total if ranks else 0, inputs))
                for place, (ranks, inputs) in zip(places, row, strict=True)
            )
        blueprint = Blueprint(
            (record.lattice.height, record.lattice.width),
            tuple(tuple(ranks.total if ranks else None for ranks, _ in row) for row in rows),
            pieces(divided.labels),
            tuple(row[0][1] or None for row in rows),
        )
        ranks_of = tuple(tuple(ranks for ranks, _ in row) for row in rows)
        result[record.name] = Allotment(divided, ranks_of, blueprint, macs)
    return result


def compressible(calibration: Calibration) -> list[LayerRecord]:
    """The layers that are large enough to matter, in execution order."""
    return [record for record in calibration.records if record.macs >= TINY_SHARE * calibration.macs]


def _partition(calibration: Calibration, record: LayerRecord, division: Division) -> Partition:
    if record.fully_connected:  # all divisions come to the same there
        division = _WHOLE
    kept: OrderedDict[tuple[str, Division], Partition] = calibration.remember("partitions", OrderedDict)
    found = kept.pop((record.name, division), None) or divide(record, division)
    kept[record.name, division] = found
    while len(kept) > 1 and sum(partition.megabytes for partition in kept.values()) > _MEGABYTES:
        kept.popitem(last=False)
    return found


def _places(calibration: Calibration, record: LayerRecord, divided: Partition, of: str = "flops") -> list[list[_Place]]:
    """For each group of a layer its blocks."""
    layer = calibration.network.get_submodule(record.name)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    channels = layer.weight.shape[1]
    taps = layer.weight[0, 0].numel()
    input_area = math.prod(record.inputs.size) if record.inputs is not None else 0
    return [
        [_Place(record, block, block.area / divided.labels.size, channels, taps, input_area, of) for block in row]
        for row in divided.blocks
    ]


def _by_share(place: _Place, setting: Setting) -> Ranks | None:
    eigenvalues = place.block.eigenvalues
    if setting.energy is not None:
        energy = setting.energy
        ranks = [rank_for_energy(values, energy) for values in eigenvalues]
    else:
        assert setting.ratio is not None
        ratio = setting.ratio
        ranks = [max(1, round(ratio * len(values))) for values in eigenvalues]
    total = max(1, -(-sum(ranks) // setting.rank_multiple) * setting.rank_multiple)
    if total > place.outputs or place.filters(total, 0) >= place.filters(0, 0):
        return None
    return Ranks(largest_first(eigenvalues, ranks, total))


# The ranks of a block (None where it stays dense), and the input rank of its group (0 for all channels).
_Form = tuple[Ranks | None, int]


def _within_budget(
    calibration: Calibration, setting: Setting, records: list[LayerRecord], partitions: dict[str, Partition]
) -> tuple[dict[str, Partition], dict[str, list[list[_Form]]]]:
    """The ranks with the least loss whose cost, with what cannot be compressed, stays within the budget.

    Regions of one group share what their input is brought to: where there are several, that is what is best at the
    price that a unit of cost has at the limit. All ranks are then chosen at once.

    Returns:
        By layer the partitions, without the regions that do not pay, and for each group the forms of its blocks.
    """
    assert setting.budget is not None
    if setting.budget_of == "flops":
        total = calibration.macs
        fixed = total - sum(record.macs for record in records)
    else:
        total = _parameters(calibration.network)
        fixed = total - sum(_parameters(calibration.network.get_submodule(record.name)) for record in records)
    limit = int(total / setting.budget) - fixed
    tables = {record.name: _tables(calibration, setting, record, partitions[record.name]) for record in records}
    cheapest = _cheapest([_menus(layer, _DEAREST) for layer in tables.values()])
    if cheapest > limit:
        raise CompressionError(
            f"a budget of {setting.budget:g}x fewer {setting.budget_of} is out of reach: "
            f"the lowest rank everywhere gives {total / (fixed + cheapest):.3g}x"
        )
    alone = [table.menu(table.shared, slice(None)) for layer in tables.values() for row in layer for table in row]
    price = price_at([menu.options for menu in alone], limit)
    kept, menus = _divided(calibration, setting, records, partitions, tables, price)
    while _cheapest(menus.values()) > limit:  # what is best at this price leaves too little room
        price = min(max(4 * price, 1 / total), _DEAREST)
        kept, menus = _divided(calibration, setting, records, partitions, tables, price)
    taken = iter(solve([menu.options for layer in menus.values() for row in layer for menu in row], limit))
    return kept, {name: [[menu.form(next(taken)) for menu in row] for row in layer] for name, layer in menus.items()}


@dataclass(frozen=True)
class _Menu:
    """What one block may become.

    Attributes:
        block: the block.
        ranks: for each option the total rank, 0 where it stays dense.
        inputs: and the input rank, 0 for all channels.
        options: what it costs and loses.
    """

    block: Block
    ranks: np.ndarray
    inputs: np.ndarray
    options: Options

    def form(self, position: int) -> _Form:
        """One of the options."""
        if self.ranks[position] == 0:
            return None, 0
        eigenvalues = self.block.eigenvalues
        clusters = largest_first(eigenvalues, [0] * len(eigenvalues), int(self.ranks[position]))
        return Ranks(clusters), int(self.inputs[position])


_Menus = list[list[_Menu]]  # for each group of a layer those of its blocks


@dataclass(frozen=True)
class _Table:
    """Every form of one block: by total rank (rows; the last, 0, for the dense filters) and input rank (columns).

    Attributes:
        place: the block's.
        ranks: ascending, but for the last.
        inputs: ascending from 0, which stands for all channels.
        losses: float (ranks, inputs); infinite where a form costs more than the dense filters.
        filters: int (ranks, inputs), cost of the block's own filters.
        encoder: int (inputs,), cost of bringing the layer's input to fewer channels.
    """

    place: _Place
    ranks: np.ndarray
    inputs: np.ndarray
    losses: np.ndarray
    filters: np.ndarray
    encoder: np.ndarray

    @property
    def shared(self) -> np.ndarray:
        """Cost of each form where every region pays its share of what they have in common."""
        costs: np.ndarray = self.filters + _part(self.encoder, self.place.share)
        return costs

    def priced(self, price: float) -> np.ndarray:
        """By input rank the least sum of the loss and the paid cost of the block's own filters."""
        values: np.ndarray = (self.losses + price * self.filters).min(axis=0)
        return values

    def menu(self, costs: np.ndarray, columns: Any) -> _Menu:
        """The forms of some columns that no other one beats."""
        shape = self.losses[:, columns].shape
        ranks = np.broadcast_to(self.ranks[:, None], shape).ravel()
        inputs = np.broadcast_to(self.inputs[columns], shape).ravel()
        costs, losses = costs[:, columns].ravel(), self.losses[:, columns].ravel()
        # Whatever costs more must lose less.
        order = np.lexsort((losses, costs))
        least = np.r_[np.inf, np.minimum.accumulate(losses[order])[:-1]]
        order = order[losses[order] < least]
        return _Menu(
            self.place.block, ranks[order], inputs[order], Options(costs[order].astype(np.int64), losses[order])
        )


def _part(costs: np.ndarray, share: float) -> np.ndarray:
    part: np.ndarray = (costs * share).astype(np.int64)
    return part


def _tables(calibration: Calibration, setting: Setting, record: LayerRecord, divided: Partition) -> list[list[_Table]]:
    """For each group of a layer what its blocks may become."""
    rows = _places(calibration, record, divided, setting.budget_of)
    return [[_table(calibration, place, setting.rank_multiple) for place in row] for row in rows]


def _table(calibration: Calibration, place: _Place, multiple: int) -> _Table:
    ranks, inputs, losses = _losses(calibration, place, multiple)
    ranks = np.r_[ranks, 0]
    filters = place.filters(ranks[:, None], inputs)
    encoder = place.encoder(inputs)
    # Dense filters lose nothing, and see all channels.
    losses = np.r_[losses, [np.where(inputs > 0, np.inf, 0.0)]]
    losses = np.where(filters + _part(encoder, place.share) <= filters[-1, 0], losses, np.inf)
    return _Table(place, ranks, inputs, losses, filters, encoder)


def _menus(layer: list[list[_Table]], price: float) -> _Menus:
    """For each group of a layer the menus of its blocks, which have an input rank in common."""
    found = []
    for row in layer:
        if len(row) == 1:
            found.append([row[0].menu(row[0].shared, slice(None))])
            continue
        values = sum(table.priced(price) for table in row) + price * row[0].encoder
        best = [int(np.argmin(values))]
        # The first pays for all of them.
        found.append([table.menu(table.filters + (0 if at else table.encoder), best) for at, table in enumerate(row)])
    return found


def _divided(
    calibration: Calibration,
    setting: Setting,
    records: list[LayerRecord],
    partitions: dict[str, Partition],
    tables: dict[str, list[list[_Table]]],
    price: float,
) -> tuple[dict[str, Partition], dict[str, _Menus]]:
    """The partitions without the regions that do not pay at a price, and the menus of all layers."""
    kept = dict(partitions)
    menus = {name: _menus(layer, price) for name, layer in tables.items()}
    for record in records:
        if len(partitions[record.name].blocks[0]) == 1 or setting.region_gain == 0:
            continue
        undivided = replace(setting.of(record.name).division, region_strategy="none", regions=1)
        whole = _partition(calibration, record, undivided)
        menus_of_whole = _menus(_tables(calibration, setting, record, whole), price)
        if _priced(menus[record.name], price) > (1 - setting.region_gain) * _priced(menus_of_whole, price):
            kept[record.name], menus[record.name] = whole, menus_of_whole
    return kept, menus


def _priced(menus: _Menus, price: float) -> float:
    """The least sum of losses and paid costs, when each block takes what suits it best."""
    return sum(float((menu.options.losses + price * menu.options.costs).min()) for row in menus for menu in row)


def _cheapest(layers: Iterable[_Menus]) -> int:
    return sum(int(menu.options.costs[0]) for layer in layers for row in layer for menu in row)


def _losses(calibration: Calibration, place: _Place, multiple: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The factored forms of a block: total ranks, input ranks (0 for all channels), and what each pair loses.

    What dropping directions costs is taken as their variance, weighted by the effects and summed over positions: twice
    the rise of the loss to second order, if errors at different places are independent. Dropping directions of the
    response and of the input add up.
    """
    area = place.block.area
    spectrum = torch.cat(place.block.eigenvalues).sort(descending=True).values.cpu().numpy()
    tails = np.maximum(spectrum.sum() - np.cumsum(spectrum), 0) * area
    # A rank beyond the last positive eigenvalue gains nothing.
    positive = max(1, int(np.count_nonzero(spectrum)))
    ranks = np.arange(multiple, min(place.outputs, -(-positive // multiple) * multiple) + 1, multiple)
    if place.record.inputs is None or place.channels < 2:
        return ranks, np.zeros(1, np.int64), tails[ranks - 1][:, None]
    channels = place.block.channels
    input_spectrum = calibration.remember(
        ("input spectrum", place.record.name, channels.start), lambda: _input_spectrum(calibration, place)
    )
    input_spectrum = input_spectrum * float(place.block.effects.square().sum())
    input_tails = np.maximum(input_spectrum.sum() - np.cumsum(input_spectrum), 0) * area * _INPUT_WEIGHT
    step = -(-place.channels // (_INPUT_RANKS * multiple)) * multiple
    inputs = np.arange(step, place.channels, step)
    return ranks, np.r_[0, inputs], tails[ranks - 1][:, None] + np.r_[0, input_tails[inputs - 1]]


def _input_spectrum(calibration: Calibration, place: _Place) -> np.ndarray:
    """Weighted variance of the responses along each axis of the input channels, descending, (Cin,).

    By the effects of the whole map, with a sum of squares of 1: those of a region hardly change more than its size.
    """
    record, block = place.record, place.block
    assert record.inputs is not None
    layer = calibration.network.get_submodule(record.name)
    assert isinstance(layer, nn.Conv2d)
    effects = region_effects(record.effects, channels=block.channels)
    effects = effects / effects.norm()
    metric = input_metric(layer.weight.detach()[block.channels], effects, record.inputs.correlation)
    first = block.channels.start // place.outputs * place.channels
    root = _input_root(record, place.channels, first)
    found: np.ndarray = torch.linalg.eigvalsh(root.T @ metric @ root).flip(0).clamp(min=0).cpu().numpy()
    return found


def _input_root(record: LayerRecord, channels: int, first: int) -> torch.Tensor:
    """R with R R^T the covariance of one group's input channels, float64 (Cin, Cin)."""
    assert record.inputs is not None
    own = slice(first, first + channels)
    values, axes = torch.linalg.eigh(record.inputs.covariance[own, own])
    root: torch.Tensor = axes * values.clamp(min=0).sqrt()
    return root


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
