"""Fewer input channels in front of the basis filters.

A basis filter sees every input channel at every tap. Where many channels meet many taps, most of the cost is there, and
the channels hardly ever vary independently: a 1 x 1 convolution E brings them to r axes, and the basis filters work on
these. With the covariance G of the input channels, the axes are those along which the weighted responses vary most:
E = V^T G^(-1/2), and the filters are multiplied by G^(1/2) V, with V the first r eigenvectors of G^(1/2) N G^(1/2). N
sums the products of the filters' weights over taps and outputs, see :func:`input_metric`.
"""

import torch

from hscc_search.compression.calibration.lattice import choose_lattice

# Directions of the input below this share of the mean variance are as good as constant.
_FLOOR = 1e-6


def input_metric(weight: torch.Tensor, effects: torch.Tensor, correlation: float) -> torch.Tensor:
    """How much an error in the input channels moves the responses.

    Errors at the taps of one filter add up where neighbouring positions err alike: with correlation rho between them
    N = (1 - rho) * sum over taps w w^T + rho * (sum over taps w) (sum over taps w)^T.

    Args:
        weight: float (C, Cin, height, width).
        effects: float64 (C,), see :class:`hscc_search.compression.division.partition.Block`.
        correlation: of neighbouring positions, 0 to 1.

    Returns:
        N, float64 (Cin, Cin).
    """
    weighted = weight.flatten(2) * effects.to(weight)[:, None, None]
    apart = weighted.movedim(1, 0).flatten(1)
    together = weighted.sum(dim=2).T
    return (1 - correlation) * (apart @ apart.T).double() + correlation * (together @ together.T).double()


def input_covariance(x: torch.Tensor) -> torch.Tensor:
    """Covariance of input channels over images and about as many positions as a lattice has.

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
    """E and what undoes it.

    Args:
        metric: N, float64 (Cin, Cin).
        covariance: G, float64 (Cin, Cin), of what the layer is given now.
        rank: r, up to Cin.

    Returns:
        E, float64 (r, Cin), and its counterpart F, float64 (Cin, r): x is near F E x.
    """
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp(min=_FLOOR * float(values.clamp(min=0).mean()) + torch.finfo(values.dtype).tiny)
    root, inverse = (axes * values.sqrt()) @ axes.T, (axes / values.sqrt()) @ axes.T
    chosen = torch.linalg.eigh(root @ metric @ root)[1].flip(1)[:, :rank]
    return chosen.T @ inverse, root @ chosen
