"""Low rank in the weights, with one energy for the whole network."""

import torch
from torch import nn

from hscc_search.compression.baselines.budget import Form, Ladder, allocate, ladder
from hscc_search.compression.baselines.low_rank import layer_at, matrix_of, spectrum, truncated_pair, with_layers
from hscc_search.compression.calibration import Calibration


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
    ladders = []
    for record in calibration.records:
        weight = matrix_of(layer_at(network, record.name))
        ladders.append(svd_ladder(spectrum(weight), record.macs // weight.numel() * sum(weight.shape), record.macs))
    forms = allocate("global-svd", calibration, budget, ladders)
    return with_layers(network, truncated_layers(network, calibration, forms))


def svd_ladder(energies: torch.Tensor, macs_per_rank: int, dense_macs: int) -> Ladder:
    """The ranks of one layer, with the share of the energy that each loses as its error.

    Args:
        energies: squared singular values, float64 (ranks,), descending.
        macs_per_rank: multiply-adds per image that each rank costs.
        dense_macs: and those of the dense layer.
    """
    lost = energies.flip(0).cumsum(0).flip(0) / energies.sum().clamp(min=torch.finfo(energies.dtype).tiny)
    errors = [*lost[1:].tolist(), 0.0]
    return ladder(
        [(rank * macs_per_rank, error, (rank,)) for rank, error in enumerate(errors, start=1)],
        dense_macs,
    )


def truncated_layers(network: nn.Module, calibration: Calibration, forms: list[Form]) -> dict[str, nn.Module]:
    """The layers that do not stay dense, each truncated to the one rank of its form."""
    return {
        record.name: truncated_pair(layer_at(network, record.name), *form)
        for record, form in zip(calibration.records, forms, strict=True)
        if form
    }
