"""What rank each part of each layer gets, before anything is fitted."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_search.compression.budget import Options, price_at, solve
from hscc_search.compression.calibration import Calibration
from hscc_search.compression.input_axes import input_metric
from hscc_search.compression.layers import Blueprint, input_positions
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

# Input ranks that are tried for one block, evenly spaced; multiples as total ranks are.
_INPUT_RANKS = 16
# What dropping input directions loses counts this much more: the fit behind makes up for less of it.
_INPUT_WEIGHT = 2.0


@dataclass(frozen=True)
class Ranks:
    """The ranks of one factored block.

    Attributes:
        clusters: of each cluster.
        inputs: of the input channels, or None where the basis filters see all of them.
    """

    clusters: tuple[int, ...]
    inputs: int | None = None

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
        channels: input channels of the filters.
        taps: of one filter and channel; D = channels * taps.
        area: output positions.
        input_area: input positions.
    """

    record: LayerRecord
    block: Block
    channels: int
    taps: int
    input_area: int

    @property
    def outputs(self) -> int:
        return len(self.block.clusters)

    def weights(self, ranks: "_Pair | None") -> tuple[np.ndarray, np.ndarray]:
        """Weights that are applied at each input position, and at each output position."""
        if ranks is None:
            return np.array(0), np.array(self.channels * self.taps * self.outputs)
        rank, inputs = (np.asarray(values) for values in ranks)
        # An input rank of 0 stands for all channels.
        at_inputs = inputs * self.channels
        seen = np.where(inputs > 0, inputs, self.channels)
        return at_inputs, rank * (seen * self.taps + self.outputs)

    def macs(self, ranks: "_Pair | None") -> np.ndarray:
        at_inputs, at_outputs = self.weights(ranks)
        macs: np.ndarray = self.input_area * at_inputs + self.block.area * at_outputs
        return macs

    def parameters(self, ranks: "_Pair | None") -> np.ndarray:
        at_inputs, at_outputs = self.weights(ranks)
        parameters: np.ndarray = at_inputs + at_outputs + self.outputs  # the bias
        return parameters


_Pair = tuple[Any, Any]  # total rank and input rank, numbers or arrays of them


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
                _by_share(place, setting.of(record.name))
                for place in _places(calibration, record, partitions[record.name])
            ]
            for record in records
        }
    result = {}
    for record in records:
        divided = partitions[record.name]
        count = len(divided.blocks[0])
        here = chosen[record.name]
        rows = tuple(tuple(here[start : start + count]) for start in range(0, len(here), count))
        if all(ranks is None for ranks in here) and count > 1:
            # Dense filters of its own for each region would cost time and gain little.
            divided = _partition(calibration, record, _WHOLE)
            rows = tuple((None,) for _ in divided.blocks)
        places_here = _places(calibration, record, divided)
        ranks_here = [ranks for row in rows for ranks in row]
        macs = sum(
            int(place.macs(None if ranks is None else (ranks.total, ranks.inputs or 0)))
            for place, ranks in zip(places_here, ranks_here, strict=True)
        )
        blueprint = Blueprint(
            (record.lattice.height, record.lattice.width),
            tuple(tuple(None if ranks is None else ranks.total for ranks in row) for row in rows),
            pieces(divided.labels),
            tuple(tuple(None if ranks is None else ranks.inputs for ranks in row) for row in rows),
        )
        result[record.name] = Allotment(divided, rows, blueprint, macs)
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


def _places(calibration: Calibration, record: LayerRecord, divided: Partition) -> list[_Place]:
    layer = calibration.network.get_submodule(record.name)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    channels = layer.weight.shape[1]
    taps = layer.weight[0, 0].numel()
    cut = pieces(divided.labels)
    return [
        _Place(
            record,
            block,
            channels,
            taps,
            input_positions(layer, cut, region, record.inputs.size)
            if isinstance(layer, nn.Conv2d) and record.inputs is not None
            else 0,
        )
        for row in divided.blocks
        for region, block in enumerate(row)
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
    if total > place.outputs or place.macs((total, 0)) >= place.macs(None):
        return None
    return Ranks(largest_first(eigenvalues, ranks, total))


def _within_budget(
    calibration: Calibration, setting: Setting, records: list[LayerRecord], partitions: dict[str, Partition]
) -> tuple[dict[str, Partition], dict[str, list[Ranks | None]]]:
    """The ranks with the least loss whose cost, with what cannot be compressed, stays within the budget.

    Returns:
        By layer the partitions, without the regions that do not pay, and the ranks of all their blocks in order.
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
    cheapest = sum(int(menu.options.costs[0]) for layer in menus.values() for menu in layer)
    if cheapest > limit:
        raise CompressionError(
            f"a budget of {setting.budget:g}x fewer {setting.budget_of} is out of reach: "
            f"the lowest rank everywhere gives {total / (fixed + cheapest):.3g}x"
        )
    price = price_at([menu.options for layer in menus.values() for menu in layer], limit)
    kept = dict(partitions)
    for record in records:
        if len(partitions[record.name].blocks[0]) == 1 or setting.region_gain == 0:
            continue
        undivided = replace(setting.of(record.name).division, region_strategy="none", regions=1)
        whole = _partition(calibration, record, undivided)
        menus_of_whole = _menus(calibration, setting, record, whole)
        if _priced(menus[record.name], price) > (1 - setting.region_gain) * _priced(menus_of_whole, price):
            kept[record.name], menus[record.name] = whole, menus_of_whole
    taken = iter(solve([menu.options for layer in menus.values() for menu in layer], limit))
    return kept, {name: [menu.ranks(next(taken)) for menu in layer] for name, layer in menus.items()}


@dataclass(frozen=True)
class _Menu:
    """What one block may become: for each option its total rank and input rank (0 for all channels), or None."""

    block: Block
    forms: list[tuple[int, int] | None]
    options: Options

    def ranks(self, position: int) -> Ranks | None:
        form = self.forms[position]
        if form is None:
            return None
        eigenvalues = self.block.eigenvalues
        return Ranks(largest_first(eigenvalues, [0] * len(eigenvalues), form[0]), form[1] or None)


def _menus(calibration: Calibration, setting: Setting, record: LayerRecord, divided: Partition) -> list[_Menu]:
    menus = []
    for place in _places(calibration, record, divided):
        cost = place.macs if setting.budget_of == "flops" else place.parameters
        ranks, inputs, losses = _losses(calibration, place, setting.rank_multiple)
        costs = np.r_[cost((ranks, inputs)), cost(None)].astype(np.int64)
        losses = np.r_[losses, 0.0]
        # Whatever costs more must lose less; nothing costs more than the dense filters.
        order = np.lexsort((losses, costs))
        least = np.r_[np.inf, np.minimum.accumulate(losses[order])[:-1]]
        order = order[(losses[order] < least) & (costs[order] <= costs[-1])]
        forms = [None if at == len(ranks) else (int(ranks[at]), int(inputs[at])) for at in order]
        menus.append(_Menu(place.block, forms, Options(costs[order], losses[order])))
    return menus


def _priced(menus: list[_Menu], price: float) -> float:
    """The least sum of losses and paid costs, when each block takes what suits it best."""
    return sum(float((menu.options.losses + price * menu.options.costs).min()) for menu in menus)


def _losses(calibration: Calibration, place: _Place, multiple: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The factored forms of a block: total ranks, input ranks (0 for all channels), and what each loses.

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
        return ranks, np.zeros_like(ranks), tails[ranks - 1]
    channels = place.block.channels
    input_spectrum = calibration.remember(
        ("input spectrum", place.record.name, channels.start), lambda: _input_spectrum(calibration, place)
    )
    input_spectrum = input_spectrum * float(place.block.effects.square().sum())
    input_tails = np.maximum(input_spectrum.sum() - np.cumsum(input_spectrum), 0) * area * _INPUT_WEIGHT
    step = -(-place.channels // (_INPUT_RANKS * multiple)) * multiple
    inputs = np.arange(step, place.channels, step)
    return (
        np.repeat(ranks, len(inputs) + 1),
        np.tile(np.r_[0, inputs], len(ranks)),
        (tails[ranks - 1][:, None] + np.r_[0, input_tails[inputs - 1]]).ravel(),
    )


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
