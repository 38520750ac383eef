"""Low rank in groups of input channels, with the smallest possible largest error."""

import math

import torch
from torch import nn

from hscc_search.compression.baselines.budget import Form, Ladder, allocate, ladder
from hscc_search.compression.baselines.low_rank import (
    input_channels,
    layer_at,
    leading_axes,
    low_rank_pair,
    matrix_of,
    spectrum,
    with_layers,
)
from hscc_search.compression.calibration import Calibration

# Numbers of groups that are tried, as far as they divide the input channels.
GROUPS = (1, 2, 3, 4, 5)


@torch.no_grad()
def compress_alds(network: nn.Module, calibration: Calibration, budget: float) -> nn.Module:
    """Split each layer's input channels into k groups and truncate each group's weights to the same rank j.

    A layer becomes a convolution of k groups with k * j filters, then a 1 x 1 convolution. Its relative error in the
    spectral norm is at most sqrt(k) * max over groups of sigma_{j+1}(group) / sigma_1(layer). k and j of all layers
    are those with the smallest largest bound under the budget.

    Source: Liebenwein et al. 2021, "Compressing Neural Networks: Towards Determining the Optimal Layer-wise
    Decomposition" (arXiv 2107.11442), whose ALDS seeks this minimum by alternating between j and k from random starts.
    Given one bound for all layers, the cheapest (k, j) of each layer is found by looking at all of them, so bisecting
    the bound finds the minimum itself, without random starts.

    Args:
        network: the dense network.
        calibration: of it; only its costs are used.
        budget: dense over compressed multiply-adds, 1 or more.

    Raises:
        CompressionError: the budget is out of reach.
    """
    ladders = [group_ladder(layer_at(network, record.name), record.macs) for record in calibration.records]
    forms = allocate("alds", calibration, budget, ladders)
    return with_layers(
        network,
        {
            record.name: grouped_pair(layer_at(network, record.name), *form)
            for record, form in zip(calibration.records, forms, strict=True)
            if form
        },
    )


def group_ladder(layer: nn.Conv2d | nn.Linear, dense_macs: int) -> Ladder:
    """The (groups, rank) of one layer, with their bounds on the relative error.

    Args:
        layer: the dense layer.
        dense_macs: its multiply-adds per image.
    """
    weight = matrix_of(layer)
    outputs, inputs = weight.shape
    positions = dense_macs // weight.numel()
    norm = float(spectrum(weight)[0].sqrt())
    candidates: list[tuple[int, float, Form]] = []
    for groups in GROUPS:
        if input_channels(layer) % groups:
            continue
        # The channels of a patch are its slowest dimension, so that groups of channels are blocks of columns.
        largest = torch.stack([spectrum(block) for block in weight.chunk(groups, dim=1)]).amax(dim=0).sqrt()
        bounds = [math.sqrt(groups) * value / norm if norm else 0.0 for value in (*largest[1:].tolist(), 0.0)]
        candidates += [
            (positions * rank * (inputs + groups * outputs), bound, (groups, rank))
            for rank, bound in enumerate(bounds, start=1)
        ]
    return ladder(candidates, dense_macs)


def grouped_pair(layer: nn.Conv2d | nn.Linear, groups: int, rank: int) -> nn.Sequential:
    """The layer with each group of input channels truncated to ``rank``."""
    blocks = matrix_of(layer).chunk(groups, dim=1)
    axes = [leading_axes(block, rank) for block in blocks]
    basis = torch.cat([axis.T @ block for axis, block in zip(axes, blocks, strict=True)])
    return low_rank_pair(layer, basis, torch.cat(axes, dim=1), layer.bias, groups)
