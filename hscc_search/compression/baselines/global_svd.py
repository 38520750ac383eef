"""Low rank in the weights, with one energy for the whole network."""

import torch
from torch import nn

from hscc_search.compression.baselines.ladder import Ladder, ladder
from hscc_search.compression.baselines.low_rank import spectrum
from hscc_search.compression.baselines.targets import Target
from hscc_search.compression.baselines.truncation import truncate_weights
from hscc_search.compression.calibration.calibrate import Calibration


@torch.no_grad()
def compress_global_svd(network: nn.Module, calibration: Calibration, budget: float) -> nn.Module:
    """Truncate the singular value decomposition of each layer's weights, Cout x (Cin * height * width).

    All layers keep the same share of their weights' energy, the sum of squared singular values; the share is what
    the budget allows. A layer becomes a convolution to its rank, then a 1 x 1 convolution.

    Source: Denton et al. 2014, "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation"
    (arXiv 1404.0736) for the factors; the shared energy is the "Global SVD" that HSCC (arXiv 2604.23375) compares with.

    Args:
        network: the dense network.
        calibration: of it; only its costs are used.
        budget: dense over compressed multiply-adds, 1 or more.

    Raises:
        CompressionError: the budget is out of reach.
    """
    return truncate_weights("global-svd", network, calibration, budget, energy_ladder)


def energy_ladder(target: Target) -> Ladder:
    """The ranks of one layer; the error of each is the share of the weights' energy that it loses."""
    energies = spectrum(target.weight)
    # Summed from the smallest, so that small shares are not lost in rounding.
    tails = energies.flip(0).cumsum(0).flip(0)
    lost = [*(tails[1:] / tails[0]).nan_to_num(0).tolist(), 0.0]
    return ladder(
        ((rank * target.macs_per_rank, error, (rank,)) for rank, error in enumerate(lost, start=1)), target.macs
    )
