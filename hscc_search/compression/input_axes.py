"""Fewer input channels in front of the basis filters.

A basis filter sees every input channel at every tap. With many channels and many taps this is most of the cost, while
the channels hardly ever vary independently: a 1 x 1 convolution E brings them to r axes, and the basis filters work on
these. With the covariance G of the input channels, the axes are those along which the weighted responses vary most:
E = V^T G^(-1/2), and the filters are multiplied by G^(1/2) V, with V the first r eigenvectors of G^(1/2) N G^(1/2). N
sums the products of the filters' weights over taps and outputs, see :func:`input_metric`.
"""

import torch

from hscc_search.compression.calibration.lattice import choose_lattice

# Smallest variance along a direction of the input, relative to the mean: directions below it are as good as constant.
_FLOOR = 1e-6


def input_metric(weight: torch.Tensor, effects: torch.Tensor, correlation: float) -> torch.Tensor:
    """The metric of errors in the input channels: e^T N e is the weighted squared error that e makes in the responses.

    Errors at the taps of one filter add up where neighbouring positions have similar errors: with correlation rho
    between them N = (1 - rho) * sum over taps w w^T + rho * (sum over taps w) (sum over taps w)^T.

    Args:
        weight: float (C, Cin, height, width).
        effects: float64 (C,), see :class:`hscc_search.compression.division.partition.Block`.
        correlation: rho, of neighbouring positions, 0 to 1.

    Returns:
        N, float64 (Cin, Cin).
    """
    weighted = weight.flatten(2) * effects.to(weight)[:, None, None]
    taps = weighted.movedim(1, 0).flatten(1)
    sums = weighted.sum(dim=2).T
    return (1 - correlation) * (taps @ taps.T).double() + correlation * (sums @ sums.T).double()


def input_covariance(x: torch.Tensor) -> torch.Tensor:
    """The covariance of input channels over all images and the positions of a lattice.

    Args:
        x: float (images, Cin, height, width).

    Returns:
        float64 (Cin, Cin).
    """
    step = choose_lattice(*x.shape[2:]).step
    samples = x[:, :, ::step, ::step].movedim(1, -1).flatten(0, 2)
    centred = samples - samples.mean(dim=0)
    return (centred.T @ centred).double() / len(samples)


def input_axes(metric: torch.Tensor, covariance: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the axes that input channels are brought to.

    Args:
        metric: N, float64 (Cin, Cin).
        covariance: G, float64 (Cin, Cin), of the input that the compressed layers before it deliver.
        rank: r, up to Cin.

    Returns:
        E, float64 (r, Cin), and F, float64 (Cin, r), which brings channels back: F E x is near x.
    """
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp(min=_FLOOR * float(values.clamp(min=0).mean()) + torch.finfo(values.dtype).tiny)
    root, inverse = (axes * values.sqrt()) @ axes.T, (axes / values.sqrt()) @ axes.T
    leading = torch.linalg.eigh(root @ metric @ root)[1].flip(1)[:, :rank]
    return leading.T @ inverse, root @ leading
