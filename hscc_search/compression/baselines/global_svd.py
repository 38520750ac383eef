"""Low rank in the weights, with one energy for the whole network."""

from torch import nn

from hscc_search.compression.baselines.ladder import Ladder, ladder
from hscc_search.compression.baselines.low_rank import spectrum
from hscc_search.compression.baselines.targets import Target
from hscc_search.compression.baselines.truncation import truncate_weights
from hscc_search.compression.calibration.calibrate import Calibration


def compress_global_svd(calibration: Calibration, budget: float) -> nn.Module:
    """Truncate the singular value decomposition of each layer's weights, Cout x (Cin * height * width).

    All layers keep the same share of their weights' energy, the sum of squared singular values; the budget decides the
    share. A layer becomes a convolution to its rank, then a 1 x 1 convolution.

    Source: Denton et al. 2014, "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation"
    (arXiv 1404.0736) for the factors; the shared energy is the "Global SVD" that HSCC (arXiv 2604.23375) compares with.

    Args:
        calibration: of the dense network; only its costs are used.
        budget: dense over compressed multiply-adds, 1 or more.

    Raises:
        CompressionError: the budget is out of reach.
    """
    return truncate_weights("global-svd", calibration, budget, energy_ladder)


def energy_ladder(target: Target) -> Ladder:
    """Build the ladder of ranks of one layer; the error of each is the share of the weights' energy that it loses."""
    energies = spectrum(target.weight)
    # Summed from the smallest, so that small shares are not lost in rounding.
    tails = energies.flip(0).cumsum(0).flip(0)
    lost = [*(tails[1:] / tails[0]).nan_to_num(0).tolist(), 0.0]
    candidates = [(rank * target.macs_per_rank, error, (rank,)) for rank, error in enumerate(lost, start=1)]
    return ladder(candidates, target.macs)
