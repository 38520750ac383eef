"""Factors of one layer, fitted to what the dense network answered from what the layers before it deliver.

The basis filters come first, and from the dense responses: they answer along the leading axes of each cluster
(:class:`hscc_search.compression.division.partition.Block`). They are run on what is delivered, as the compressed layer will do
anyway, and the recombination is fitted to what they answer: least squares towards the dense responses
(:func:`hscc_search.compression.factors.refit`), then steps that know of the activation behind the layer
(:func:`hscc_search.compression.factors.refine`). The same answers, recombined, are the layer's output. So a fit costs
little more than the compressed layer's own forward pass, and never one of the dense layer.

A fully connected layer has one sample per image, and its first axes are fitted to what is delivered as well: a few
more than its rank are looked at, and the rank goes to those of which most can be said
(:func:`hscc_search.compression.factors.fit_predictor`).
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.division.partition import Block
from hscc_search.compression.factors import balanced, factorise, fit_predictor, refine, refit
from hscc_search.compression.form import Piece
from hscc_search.compression.input_axes import input_axes, input_covariance, input_metric
from hscc_search.compression.layers import GroupedRegionConv2d, Patch, RegionConv2d, build, parts, stages_of
from hscc_search.compression.ranks.choice import Allotment, Ranks

_BATCH = 64
# So many more axes than its rank are looked at in a fully connected layer.
_MORE_AXES = 100
# So many images tell how the channels of an input vary together.
_COVARIANCE_IMAGES = 160


def fit_layer(
    calibration: Calibration, name: str, allotment: Allotment, x: torch.Tensor, step: int = 1
) -> tuple[nn.Module, torch.Tensor]:
    """Compress one layer.

    Args:
        calibration: of the dense network.
        name: of the layer, Conv2d or Linear.
        allotment: where it is divided, and the ranks.
        x: its input in the partly compressed network, for every ``step``-th calibration image: float (images, Cin,
            height, width), (images, features) or (images, height, width, features).
        step: see above.

    Returns:
        The module that takes the layer's place, and what it answers to ``x``.
    """
    layer, record = calibration.network.get_submodule(name), calibration.record(name)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    module = build(layer, allotment.blueprint).to(device=x.device, dtype=layer.weight.dtype).eval()
    if isinstance(layer, nn.Linear) and x.dim() == 2:
        block, ranks = allotment.partition.blocks[0][0], allotment.ranks[0][0]
        if ranks is None:
            return module, _fit_dense_vectors(layer, x, record, block, step, module)
        filters = calibration.remember(("filters", name), lambda: _axis_filters(layer, block))
        return module, _fit_vectors(x, record, block, ranks, step, filters, module)
    groups = list(module.groups) if isinstance(module, GroupedRegionConv2d) else [module]
    shares = x.chunk(record.groups, dim=1) if record.groups > 1 else [x]
    everything = zip(groups, shares, allotment.partition.blocks, allotment.ranks, strict=True)
    answers = [_fit_maps(layer, record, allotment.blueprint.pieces, step, *group) for group in everything]
    return module, answers[0] if len(answers) == 1 else torch.cat(answers, dim=1)


def _axis_filters(layer: nn.Linear, block: Block) -> torch.Tensor:
    """What answers along each axis of a layer's dense responses, float (axes, Cin), without a bias."""
    axes = block.axes[0].to(layer.weight) * _relative(block, layer.weight)[:, None]
    return axes.T @ layer.weight.detach()


def _fit_dense_vectors(
    layer: nn.Linear, x: torch.Tensor, record: LayerRecord, block: Block, step: int, module: nn.Module
) -> torch.Tensor:
    """Make up for the layers before in a fully connected layer that stays dense, and answer what it is given."""
    effects = _relative(block, x)
    dense = _dense(record, block, block.positions, step, effects)
    weight = layer.weight.detach()
    there = (x @ weight.T) * effects
    if len(dense) < len(weight):  # too few samples to learn more from them than the mean
        offset = (dense - there).mean(dim=0)
        _set(module, weight, offset / effects)
        return (there + offset) / effects
    recombination, offset = refit(dense, there, torch.eye(len(weight)).to(weight))
    _set(module, recombination @ (weight * effects[:, None]) / effects[:, None], offset / effects)
    return torch.addmm(offset, there, recombination.T) / effects


def _fit_vectors(
    x: torch.Tensor,
    record: LayerRecord,
    block: Block,
    ranks: Ranks,
    step: int,
    filters: torch.Tensor,
    module: nn.Module,
) -> torch.Tensor:
    """Fit a fully connected layer, and answer what it is given, (images, features)."""
    effects = _relative(block, x)
    dense = _dense(record, block, block.positions, step, effects)
    filters = filters[: ranks.total + _MORE_AXES]
    axes = block.axes[0][:, : len(filters)].to(x)
    there = x @ filters.T
    factors = factorise(fit_predictor(dense @ axes, there), ranks.total)
    basis = factors.basis.to(x.dtype)
    coordinates = there @ basis.T
    recombination, offset = refit(dense, coordinates, axes @ factors.recombination.to(x.dtype))
    if record.bounds is not None:
        recombination, offset = refine(dense, coordinates, recombination, offset, *_bounds(record, effects))
    recombination, offset = recombination / effects[:, None], offset / effects
    assert isinstance(module, nn.Sequential)
    _set_balanced(module[0], module[1], basis @ filters, recombination, offset)
    return torch.addmm(offset, coordinates, recombination.T)


@dataclass
class _Stages:
    """Where one region is in being fitted.

    Attributes:
        target: what the compressed layer holds for the region.
        filters: the basis filters; a region that stays dense has its own filters for a basis.
        last: the recombination with its bias.
        basis: what the filters compute where they see all channels, float (K, D).
        axes: the recombination before it is fitted, float (C, K), of weighted responses.
        effects: weights of the responses, float (C,).
    """

    target: nn.Module
    filters: nn.Conv2d | nn.Linear
    last: nn.Conv2d | nn.Linear
    basis: torch.Tensor
    axes: torch.Tensor
    effects: torch.Tensor


def _fit_maps(
    layer: nn.Conv2d | nn.Linear,
    record: LayerRecord,
    pieces: tuple[Piece, ...],
    step: int,
    module: nn.Module,
    x: torch.Tensor,
    row: tuple[Block, ...],
    ranks_of_row: tuple[Ranks | None, ...],
) -> torch.Tensor:
    """Fit one group of a layer that answers with maps, or all of it, and answer what it is given."""
    stages = [
        _begin(layer, block, ranks, target)
        for block, ranks, target in zip(row, ranks_of_row, parts(module)[0], strict=True)
    ]
    divided = module if isinstance(module, RegionConv2d) else None
    if divided is not None and isinstance(divided.encoder, nn.Conv2d):
        _encode(divided.encoder, stages, row, record, x[:: max(1, len(x) // _COVARIANCE_IMAGES)])
    else:
        for stage in stages:
            _set(stage.filters, stage.basis)
    answers = []
    for batch in x.split(_BATCH):
        given = divided.cut(divided.encoder(batch)) if divided else [Patch(batch)]
        answers.append(
            [patch.filtered(stages[piece.region].filters) for piece, patch in zip(pieces, given, strict=True)]
        )
    for region, (block, stage) in enumerate(zip(row, stages, strict=True)):
        own = [at for at, piece in enumerate(pieces) if piece.region == region]
        positions = torch.cat([record.lattice.within(pieces[at]) for at in own])
        if len(positions):
            there = [
                torch.cat([record.lattice.taken(_maps(layer, batch[at]), pieces[at]) for batch in answers], dim=1)
                for at in own
            ]
            dense = _dense(record, block, positions, step, stage.effects)
            coordinates = torch.cat(there).flatten(0, 1)
        else:  # the region lies between the lattice's positions: as if nothing had been compressed before
            dense = _dense(record, block, block.positions, step, stage.effects)
            bias = _bias(layer)[block.channels] * stage.effects
            coordinates = (dense - bias) @ stage.axes
        recombination, offset = refit(dense, coordinates, stage.axes)
        if isinstance(stage.target, nn.Sequential) and record.bounds is not None:
            recombination, offset = refine(dense, coordinates, recombination, offset, *_bounds(record, stage.effects))
        _set(stage.last, recombination / stage.effects[:, None], offset / stage.effects)
    joined = []
    for batch in answers:
        answered = [stages[piece.region].last(part) for piece, part in zip(pieces, batch, strict=True)]
        batch.clear()  # the maps of all images are large
        joined.append(divided.join(answered) if divided else answered[0])
    for stage in stages:
        _finish(stage)
    return torch.cat(joined)


def _begin(layer: nn.Conv2d | nn.Linear, block: Block, ranks: Ranks | None, target: nn.Module) -> _Stages:
    """What a region's filters shall compute; they are still to be set."""
    effects = _relative(block, layer.weight)
    own = layer.weight.detach().flatten(1)[block.channels] * effects[:, None]
    filters, last = stages_of(target if ranks else copy.deepcopy(target))
    assert isinstance(filters, (nn.Conv2d, nn.Linear))
    if ranks:
        axes = block.basis(ranks.clusters).to(own)
    else:
        filters.bias = None
        count = len(own)
        square = nn.Conv2d(count, count, 1) if isinstance(layer, nn.Conv2d) else nn.Linear(count, count)
        last, axes = square.to(own), torch.eye(count).to(own)
    assert isinstance(last, (nn.Conv2d, nn.Linear))
    return _Stages(target, filters, last, axes.T @ own, axes, effects)


def _finish(stage: _Stages) -> None:
    """Make both factors one where the region stays dense, and give them weights of the same size where not."""
    filters, last = stage.filters.weight.flatten(1), stage.last.weight.flatten(1)
    assert stage.last.bias is not None
    if isinstance(stage.target, nn.Sequential):
        _set_balanced(stage.filters, stage.last, filters, last, stage.last.bias)
    else:
        _set(stage.target, last.double() @ filters.double(), stage.last.bias)


def _bounds(record: LayerRecord, effects: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the responses times ``effects``, each (C,)."""
    assert record.bounds is not None
    low, high = record.bounds
    return low * effects, high * effects


def _encode(
    encoder: nn.Conv2d, stages: list[_Stages], row: tuple[Block, ...], record: LayerRecord, x: torch.Tensor
) -> None:
    """Set the convolution that brings the input to fewer channels, and the basis filters of all regions behind it.

    Args:
        encoder: that convolution.
        stages: of the regions.
        row: their blocks.
        record: of the layer.
        x: some of the input that is delivered, float (images, Cin, height, width).
    """
    assert record.inputs is not None
    covariance = input_covariance(x)
    metric = torch.zeros_like(covariance)
    bases = []
    for block, stage in zip(row, stages, strict=True):
        assert isinstance(stage.filters, nn.Conv2d)
        basis = stage.basis.view(len(stage.basis), x.shape[1], *stage.filters.kernel_size).double()
        bases.append(basis)
        fitted = torch.einsum("ok,kchw->ochw", stage.axes.double(), basis)
        size = block.effects.mean() * block.area**0.5  # what relative effects leave out
        metric += input_metric(fitted, size.expand(len(fitted)), record.inputs.correlation)
    kept, back = input_axes(metric, covariance, encoder.out_channels)
    behind = [torch.einsum("kchw,cr->rkhw", basis, back) for basis in bases]
    kept, flat = balanced(kept, torch.cat([filters.flatten(1) for filters in behind], dim=1).T)
    _set(encoder, kept)
    shares = flat.T.split([filters[0].numel() for filters in behind], dim=1)
    for stage, filters, own in zip(stages, behind, shares, strict=True):
        _set(stage.filters, own.reshape(filters.shape).transpose(0, 1))


def _dense(
    record: LayerRecord, block: Block, positions: torch.Tensor, step: int, effects: torch.Tensor
) -> torch.Tensor:
    """Responses of the dense network at some positions to every ``step``-th image, times ``effects``, (n, C)."""
    found = record.responses[:, ::step][positions][:, :, block.channels].flatten(0, 1)
    return found.to(effects.device).mul_(effects)


def _maps(layer: nn.Module, answers: torch.Tensor) -> torch.Tensor:
    """Answers as (images, channels, height, width): a fully connected layer on maps has the channels last."""
    return answers if isinstance(layer, nn.Conv2d) else answers.movedim(-1, 1)


def _bias(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    return torch.zeros_like(layer.weight[:, 0].flatten(1)[:, 0]) if layer.bias is None else layer.bias.detach()


def _relative(block: Block, like: torch.Tensor) -> torch.Tensor:
    """A block's effects relative to their mean, so that weights keep the size that training is used to."""
    return (block.effects / block.effects.mean()).to(like)


def _set_balanced(
    first: nn.Module, last: nn.Module, filters: torch.Tensor, recombination: torch.Tensor, bias: torch.Tensor
) -> None:
    filters, recombination = balanced(filters, recombination)
    _set(first, filters)
    _set(last, recombination, bias)


def _set(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if bias is not None:
        assert layer.bias is not None
        layer.bias.copy_(bias)
