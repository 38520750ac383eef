"""What rank each part of each layer gets, before anything is fitted."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord, region_effects
from hscc_search.compression.division.partition import Block, Division, Partition, divide
from hscc_search.compression.division.regions import pieces
from hscc_search.compression.form import LayerForm
from hscc_search.compression.input_axes import input_metric
from hscc_search.compression.ranks.costs import _Place
from hscc_search.compression.ranks.energy import largest_first, rank_for_energy
from hscc_search.compression.ranks.knapsack import Group, Options, cheapest, price_at, solve
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
    blueprint: LayerForm
    macs: int


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
        blueprint = LayerForm(
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
    return [[_Place(record, block, channels, taps, input_area, of) for block in row] for row in divided.blocks]


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
    menus = {record.name: _menus(calibration, setting, record, partitions[record.name]) for record in records}
    least = cheapest(_groups(menus))
    if least > limit:
        raise CompressionError(
            f"a budget of {setting.budget:g}x fewer {setting.budget_of} is out of reach: "
            f"the lowest rank everywhere gives {total / (fixed + least):.3g}x"
        )
    kept = dict(partitions)
    divided = [record for record in records if len(partitions[record.name].blocks[0]) > 1 and setting.region_gain > 0]
    price = price_at(_groups(menus), limit) if divided else 0.0
    for record in divided:
        undivided = replace(setting.of(record.name).division, region_strategy="none", regions=1)
        whole = _partition(calibration, record, undivided)
        menus_of_whole = _menus(calibration, setting, record, whole)
        if _priced(menus[record.name], price) > (1 - setting.region_gain) * _priced(menus_of_whole, price):
            kept[record.name], menus[record.name] = whole, menus_of_whole
    choices = iter(solve(_groups(menus), limit))
    taken = {name: [(variants, *next(choices)) for variants in layer] for name, layer in menus.items()}
    return kept, {
        name: [
            [menu.form(position) for menu, position in zip(variants[variant], positions, strict=True)]
            for variants, variant, positions in layer
        ]
        for name, layer in taken.items()
    }


@dataclass(frozen=True)
class _Menu:
    """What one block may become.

    Attributes:
        block: the block.
        ranks: for each option the total rank, 0 where it stays dense.
        inputs: the input rank, 0 for all channels.
        options: what it costs and loses.
    """

    block: Block
    ranks: np.ndarray
    inputs: int
    options: Options

    def form(self, position: int) -> _Form:
        """One of the options."""
        if self.ranks[position] == 0:
            return None, 0
        eigenvalues = self.block.eigenvalues
        clusters = largest_first(eigenvalues, [0] * len(eigenvalues), int(self.ranks[position]))
        return Ranks(clusters), self.inputs


# For each group of a layer its variants: regions have an input rank in common. Each holds a menu for each block.
_Menus = list[list[list[_Menu]]]


def _groups(menus: Mapping[str, _Menus]) -> list[Group]:
    return [
        [[menu.options for menu in variant] for variant in variants] for layer in menus.values() for variants in layer
    ]


def _menus(calibration: Calibration, setting: Setting, record: LayerRecord, divided: Partition) -> _Menus:
    """What may become of a layer."""
    found = []
    for row in _places(calibration, record, divided, setting.budget_of):
        tables = [(place, *_losses(calibration, place, setting.rank_multiple)) for place in row]
        variants = []
        for column, count in enumerate(tables[0][2].tolist()):
            # The first block pays for bringing the input to fewer channels, which serves all of them.
            extra = int(row[0].encoder(count))
            variants.append(
                [
                    _menu(place, ranks, count, losses[:, column], 0 if at else extra)
                    for at, (place, ranks, _, losses) in enumerate(tables)
                ]
            )
        found.append(variants)
    return found


def _menu(place: _Place, ranks: np.ndarray, inputs: int, losses: np.ndarray, extra: int) -> _Menu:
    """The forms of one block at one input rank; dense filters lose nothing, and see all channels."""
    costs, dense = place.filters(ranks, inputs), int(place.filters(0, 0))
    count = max(1, int(np.searchsorted(costs, dense)))  # what costs more than the dense filters is of no use
    ranks, costs, losses = ranks[:count], costs[:count], losses[:count]
    if inputs == 0:
        first = slice(0 if costs[0] < dense else 1, None)
        ranks, costs, losses = (
            np.r_[values, last][first] for values, last in ((ranks, 0), (costs, dense), (losses, 0.0))
        )
    return _Menu(place.block, ranks, inputs, Options((costs + extra).astype(np.int64), losses))


def _priced(layer: _Menus, price: float) -> float:
    """The least sum of losses and paid costs, when each block takes what suits it best."""

    def of(variant: list[_Menu]) -> float:
        return sum(float((menu.options.losses + price * menu.options.costs).min()) for menu in variant)

    return sum(min(map(of, variants)) for variants in layer)


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
