"""HSCC, hierarchical spatio-channel clustering (arXiv 2604.23375): calibrate once, compress many times.

One forward pass over the calibration images compresses a network: each layer, when its turn comes, sees the input
that the layers compressed before it deliver, is replaced by its factors, and passes on what these answer. So the
order of execution, branches and skip connections take care of themselves, and only the activations of the current
layer are held in memory.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_search.compression.allotment import Allotment, allot
from hscc_search.compression.calibration import Calibration
from hscc_search.compression.factors import balanced, factorise, fit_predictor, refine, refit
from hscc_search.compression.folding import Fold, apply_folds
from hscc_search.compression.input_axes import input_axes, input_covariance, input_metric
from hscc_search.compression.lattice import answers_at, responses_on
from hscc_search.compression.layers import Blueprint, build, parts
from hscc_search.compression.partition import Block, Partition
from hscc_search.compression.records import LayerRecord
from hscc_search.compression.setting import Setting

_BATCH = 64
# So many samples per output channel, in the smallest region, and so many images are enough to fit a layer.
_SAMPLES, _IMAGES = 64, 512
# A low rank needs so many more of the axes that the dense responses of a fully connected layer span.
_MORE_AXES = 300


@dataclass(frozen=True)
class LayerPlan:
    """What became of one layer.

    Attributes:
        name: the layer's path in the network.
        macs_dense: its multiply-adds per image before.
        macs: and after, by the formula P_r * K_r * (D + Cout) per factored region; D counts the channels that are left
            where the input is brought to fewer, which costs its positions times both numbers of channels.
        regions: number of regions, 0 where the layer was left alone.
        ranks: for each region (of each group, where the convolution is grouped) the rank of each cluster; empty for
            a region that stays dense.
        input_ranks: for each of them to how many channels its input is brought first, or None for no such step.
        left_dense: why the layer was left alone, or None.
    """

    name: str
    macs_dense: int
    macs: int
    regions: int
    ranks: tuple[tuple[int, ...], ...]
    input_ranks: tuple[int | None, ...]
    left_dense: str | None = None

    @property
    def summary(self) -> str:
        """What became of the layer, in a few words."""
        if self.left_dense is not None:
            return f"left dense: {self.left_dense}"
        ranks = ", ".join(
            (f"{sum(ranks)} of {count} inputs" if count else str(sum(ranks))) if ranks else "dense"
            for ranks, count in zip(self.ranks, self.input_ranks, strict=True)
        )
        return f"total rank per region: {ranks}"

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "LayerPlan":
        """Undo :meth:`stored`."""
        lists = {"ranks": tuple(tuple(ranks) for ranks in tree["ranks"]), "input_ranks": tuple(tree["input_ranks"])}
        return cls(**{**tree, **lists})


@dataclass(frozen=True)
class Form:
    """All of a compressed network but its weights, see :func:`rebuild`.

    Attributes:
        input_size: height and width of the images that it takes: regions belong to maps of one size.
        folds: the batch norms that were folded.
        layers: the form of each compressed layer by its path.
    """

    input_size: tuple[int, int]
    folds: tuple[Fold, ...]
    layers: dict[str, Blueprint]

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "Form":
        """Undo :meth:`stored`."""
        return cls(
            (tree["input_size"][0], tree["input_size"][1]),
            tuple(Fold(**fold) for fold in tree["folds"]),
            {name: Blueprint.from_stored(stored) for name, stored in tree["layers"].items()},
        )


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    Attributes:
        network: an ordinary module in evaluation mode, for the input size it was calibrated at.
        plan: every convolution and fully connected layer, those that can be compressed first, in execution order.
        form: what it takes to build the network again.
    """

    network: nn.Module
    plan: tuple[LayerPlan, ...]
    form: Form

    @property
    def macs(self) -> int:
        """Multiply-adds per image of all convolutions and fully connected layers, by the formula."""
        return sum(layer.macs for layer in self.plan)


class _Pending(nn.Module):
    """Stands in a network for a layer that is compressed when the calibration images arrive."""

    def __init__(self, layer: nn.Module, record: LayerRecord, allotment: Allotment) -> None:
        super().__init__()
        self.layer, self.record, self.allotment = layer, record, allotment
        self.compressed: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.compressed = fit_layer(self.layer, x, self.record, self.allotment)
        return torch.cat([self.compressed(part) for part in _batches(x)])


@torch.no_grad()
def compress(calibration: Calibration, setting: Setting) -> Compressed:
    """Compress the network of a calibration with one setting. That network itself is not changed.

    Raises:
        CompressionError: the budget is out of reach, or the setting's strategies do not fit.
    """
    network = calibration.network
    allotments = allot(calibration, setting)
    # A layer that is replaced is not copied: the copy finds its stand-in.
    pending = {
        name: _Pending(network.get_submodule(name), calibration.record(name), allotment)
        for name, allotment in allotments.items()
    }
    result = copy.deepcopy(network, {id(place.layer): place for place in pending.values()})
    result(calibration.images)
    for name, place in pending.items():
        assert place.compressed is not None
        result.set_submodule(name, place.compressed)
    plan = [
        LayerPlan(
            record.name,
            record.macs,
            allotments[record.name].macs,
            len(allotments[record.name].partition.blocks[0]),
            tuple(ranks.clusters if ranks else () for row in allotments[record.name].ranks for ranks in row),
            tuple(ranks.inputs if ranks else None for row in allotments[record.name].ranks for ranks in row),
        )
        if record.name in allotments
        else LayerPlan(record.name, record.macs, record.macs, 0, (), (), "tiny")
        for record in calibration.records
    ]
    plan += [LayerPlan(name, macs, macs, 0, (), (), reason) for name, (macs, reason) in calibration.left_dense.items()]
    return Compressed(
        result,
        tuple(plan),
        Form(
            (calibration.images.shape[2], calibration.images.shape[3]),
            calibration.folds,
            {name: allotment.blueprint for name, allotment in allotments.items()},
        ),
    )


def rebuild(network: nn.Module, form: Form) -> None:
    """Give a dense network the form of a compressed one, in place; the weights are then loaded by name."""
    apply_folds(network, form.folds)
    for name, blueprint in form.layers.items():
        network.set_submodule(name, build(network.get_submodule(name), blueprint))


def fit_layer(layer: nn.Module, x: torch.Tensor, record: LayerRecord, allotment: Allotment) -> nn.Module:
    """Factors of one layer that approximate the dense response from the input that is delivered.

    Args:
        layer: the dense layer, Conv2d or Linear.
        x: its input in the partly compressed network, for all calibration images.
        record: the dense network's responses.
        allotment: where the layer is divided, and the ranks.

    Returns:
        The module that takes the layer's place.
    """
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    module = build(layer, allotment.blueprint).to(device=x.device, dtype=layer.weight.dtype)
    if record.wide:
        _fit_wide(layer, record, x, allotment, module)
        return module.eval()
    stride = _stride(len(x), allotment.partition)
    x, responses = x[::stride], record.responses[:, ::stride]
    delivered = torch.cat([responses_on(layer, part, record.lattice) for part in _batches(x)], dim=1)
    weight, bias = _weights(layer)
    everything = zip(allotment.partition.blocks, allotment.ranks, parts(module), strict=True)
    for group, (row, ranks_of_row, targets) in enumerate(everything):
        share = x.chunk(record.groups, dim=1)[group] if record.groups > 1 else x
        covariance = input_covariance(share) if any(ranks and ranks.inputs for ranks in ranks_of_row) else None
        for block, ranks, target in zip(row, ranks_of_row, targets, strict=True):
            effects = _relative(block).to(x.device)
            scale = effects.to(delivered.dtype)
            positions = block.positions.to(x.device)
            dense = responses[block.positions][:, :, block.channels].to(x.device).flatten(0, 1) * scale
            there = delivered[positions][:, :, block.channels].flatten(0, 1) * scale
            predictor = fit_predictor(dense, there)
            own, own_bias = weight[block.channels], bias[block.channels].double() * effects
            if ranks is None:
                filters = predictor.apply(own.double() * effects[:, None])
                mean = there.mean(dim=0).double() - own_bias
                offset = dense.mean(dim=0).double() - predictor.apply(mean[:, None])[:, 0]
                _set(target, filters / effects[:, None], offset / effects)
                continue
            factors = factorise(predictor, block.clusters, ranks.clusters)
            # In the weights' own precision: a fully connected layer in float64 would fill hundreds of megabytes.
            basis = (factors.basis * effects).to(weight.dtype) @ own
            recombination = factors.recombination
            if ranks.inputs is None:
                coordinates = there @ factors.basis.T.to(there.dtype) - (factors.basis @ own_bias).to(there.dtype)
                offset = _offset(dense, coordinates, recombination)
            else:
                assert isinstance(target, nn.Sequential)
                assert isinstance(target[0], nn.Sequential)
                assert isinstance(layer, nn.Conv2d)
                assert covariance is not None
                encoder = target[0][0]
                basis = _encode(encoder, layer, basis, recombination, covariance, record)
                answers = [
                    answers_at(layer, part, record.lattice, block.positions, encoder, basis) for part in _batches(share)
                ]
                coordinates = torch.cat(answers, dim=1).flatten(0, 1)
                recombination, offset = refit(dense, coordinates, recombination)
            _set_factors(target, record, basis, recombination, offset, effects, dense, coordinates)
    return module.eval()


def _fit_wide(
    layer: nn.Conv2d | nn.Linear, record: LayerRecord, x: torch.Tensor, allotment: Allotment, module: nn.Module
) -> None:
    """The same for a fully connected layer with fewer calibration images than outputs.

    The dense responses to them span few axes, and a low rank needs the first of these only. What the layer answers
    along those is a fraction of the work of all that it answers, and takes the place of its channels here.
    """
    block, ranks, target = allotment.partition.blocks[0][0], allotment.ranks[0][0], parts(module)[0][0]
    weight, _ = _weights(layer)
    effects = _relative(block).to(x.device)
    dense = record.responses[0].to(x.device) * effects.to(x.dtype)
    count = None if ranks is None else ranks.total + _MORE_AXES
    axes, filters = record.axes[:, :count].to(x), record.filters[:count].to(x)
    there = x @ filters.T
    predictor = fit_predictor(dense @ axes, there)
    if ranks is None:
        better = weight * effects[:, None] + axes.double() @ (predictor.apply(filters.double()) - filters)
        offset = dense.mean(dim=0).double() - better @ x.mean(dim=0).double()
        _set(target, better / effects[:, None], offset / effects)
        return
    factors = factorise(predictor, np.zeros(len(filters), np.int64), ranks.clusters)
    to_basis = factors.basis.to(x.dtype)
    recombination, coordinates = axes.double() @ factors.recombination, there @ to_basis.T
    offset = _offset(dense, coordinates, recombination)
    _set_factors(target, record, to_basis @ filters, recombination, offset, effects, dense, coordinates)


def _weights(layer: nn.Conv2d | nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    weight = layer.weight.detach().flatten(1)
    return weight, torch.zeros_like(weight[:, 0]) if layer.bias is None else layer.bias.detach()


def _relative(block: Block) -> torch.Tensor:
    """A block's effects relative to their mean, so that weights keep the size that training is used to."""
    return block.effects / block.effects.mean()


def _offset(dense: torch.Tensor, coordinates: torch.Tensor, recombination: torch.Tensor) -> torch.Tensor:
    """The bias with which a recombination of coordinates has the mean of the dense responses."""
    return dense.mean(dim=0).double() - recombination @ coordinates.mean(dim=0).double()


def _set_factors(
    target: nn.Module,
    record: LayerRecord,
    basis: torch.Tensor,
    recombination: torch.Tensor,
    offset: torch.Tensor,
    effects: torch.Tensor,
    dense: torch.Tensor,
    coordinates: torch.Tensor,
) -> None:
    """Refine a region's factors for the activation behind the layer, and set them.

    Args:
        target: holds the basis filters (behind an encoder, which is set) and the recombination.
        record: of the layer.
        basis: filters, (K, ...).
        recombination: of weighted responses, float64 (C, K).
        offset: its bias, float64 (C,).
        effects: weights of the responses, (C,).
        dense: weighted, (n, C).
        coordinates: what the basis filters answer, (n, K).
    """
    assert isinstance(target, nn.Sequential)
    first, last = target
    if isinstance(first, nn.Sequential):
        _, first = first
    if record.bounds is not None:
        low, high = (bound * effects.to(dense.dtype) for bound in record.bounds)
        recombination, offset = refine(dense, coordinates, recombination, offset, low, high)
    filters, recombination = balanced(basis.flatten(1), recombination / effects[:, None])
    _set(first, filters)
    _set(last, recombination, offset / effects)


def _stride(images: int, partition: Partition) -> int:
    """Every how many-th calibration image is enough to fit a layer."""
    samples = min(len(block.positions) / len(block.clusters) for row in partition.blocks for block in row) * images
    return max(1, min(int(samples / _SAMPLES), images // _IMAGES))


def _batches(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Maps in parts, for the sake of memory; vectors at once, since each part would read all weights anew."""
    return x.split(_BATCH if x.dim() == 4 else len(x))  # type: ignore[no-any-return]


def _encode(
    encoder: nn.Module,
    layer: nn.Module,
    basis: torch.Tensor,
    recombination: torch.Tensor,
    covariance: torch.Tensor,
    record: LayerRecord,
) -> torch.Tensor:
    """Set the convolution that brings a region's input to fewer channels.

    Args:
        encoder: that convolution.
        layer: the dense layer.
        basis: the basis filters that see all channels, float (K, D).
        recombination: behind them, float64 (C, K), of weighted responses.
        covariance: of the channels that are delivered.
        record: of the layer.

    Returns:
        The basis filters behind the encoder, float (K, r, height, width).
    """
    assert isinstance(encoder, nn.Conv2d)
    assert isinstance(layer, nn.Conv2d)
    assert record.inputs is not None
    filters = basis.view(-1, *layer.weight.shape[1:]).double()
    fitted = torch.einsum("ok,kchw->ochw", recombination, filters)
    metric = input_metric(fitted, torch.ones_like(fitted[:, 0, 0, 0]), record.inputs.correlation)
    axes, back = input_axes(metric, covariance, encoder.out_channels)
    core = torch.einsum("kchw,cr->rkhw", filters, back)
    axes, flat = balanced(axes, core.flatten(1).T)
    _set(encoder, axes)
    return flat.T.reshape(core.shape).transpose(0, 1).to(basis.dtype)


def _set(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    layer.weight.copy_(weight.view_as(layer.weight))
    if bias is not None:
        assert layer.bias is not None
        layer.bias.copy_(bias)
