"""Low rank in groups of input channels, with the smallest possible largest error."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from hscc_search.compression.baselines.ladder import Ladder, ladder
from hscc_search.compression.baselines.low_rank import spectrum
from hscc_search.compression.baselines.targets import Target
from hscc_search.compression.baselines.truncation import truncate_weights
from hscc_search.compression.calibration.calibrate import Calibration

# Numbers of groups to try, where they divide the number of input channels.
GROUPS = (1, 2, 3, 4, 5)


def compress_alds(calibration: Calibration, budget: float) -> nn.Module:
    """Split each layer's input channels into k groups and truncate each group's weights to the same rank j.

    A layer becomes a convolution of k groups with k * j filters, then a 1 x 1 convolution. Its relative error in the
    spectral norm is at most sqrt(k) * max over groups of sigma_{j+1}(group) / sigma_1(layer). The k and j of all
    layers are those with the smallest largest bound under the budget.

    Source: Liebenwein et al. 2021, "Compressing Neural Networks: Towards Determining the Optimal Layer-wise
    Decomposition" (arXiv 2107.11442), which seeks this minimum by alternating between j and k from random starts.
    Given one bound for all layers, the cheapest (k, j) of each layer comes from trying all of them, so bisecting the
    bound finds the minimum itself.

    Args:
        calibration: of the dense network; only its costs are used.
        budget: dense over compressed multiply-adds, 1 or more.

    Raises:
        CompressionError: the budget is out of reach.
    """
    return truncate_weights("alds", calibration, budget, group_ladder)


def group_ladder(target: Target) -> Ladder:
    """Build the ladder of (rank, groups) of one layer; the error of each is its bound on the relative error."""
    return ladder(_candidates(target), target.macs)


def _candidates(target: Target) -> Iterator[tuple[int, float, tuple[int, int]]]:
    """Yield multiply-adds per image, error bound, and (rank, groups) for all ranks and numbers of groups."""
    weight = target.weight
    outputs, inputs = weight.shape
    norm = float(spectrum(weight)[0].sqrt())
    for groups in GROUPS:
        if target.channels % groups:
            continue
        # Channels are the slowest index of a column, so that groups of channels are blocks of columns.
        largest = torch.stack([spectrum(block) for block in weight.chunk(groups, dim=1)]).amax(dim=0).sqrt()
        macs_per_rank = target.positions * (inputs + groups * outputs)
        for rank, value in enumerate([*largest[1:].tolist(), 0.0], start=1):
            bound = math.sqrt(groups) * value / norm if norm else 0.0
            yield rank * macs_per_rank, bound, (rank, groups)
