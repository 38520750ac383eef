"""Spread evenly what passes between the factors of a compressed layer, for number formats with one range for all.

The coordinates z of a low-rank factorisation are free up to any invertible matrix: ``P z = (P T) (T^-1 z)``. As they
come, they differ in size by orders of magnitude, and rounding to 256 values in one range loses the small ones. Here T
is the one with which rounding z and P costs least: a stretch and a rotation, merged with the factors, so that they take
no time.

Rounding z errs by a share of its range, which P carries to the output, and rounding P by a share of its weights, which
z carries there. Where all coordinates are alike, both errors are in proportion to ``tr(T^-1 C T^-T) tr(T^T G T)``, with
C the second moments of z and G those of the columns of P. The least is where ``T T^T`` is the geometric mean of C and
the inverse of G (Bhatia 2007, "Positive Definite Matrices", chapter 4), which makes both alike; and a rotation
into which each direction enters evenly makes the coordinates alike (Ashkboos et al. 2024, "QuaRot", arXiv 2404.00456).
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.fft import dct
from scipy.linalg import hadamard
from torch import nn

from hscc_search.compression.layers import RegionConv2d

# Eigenvalues below this share of the largest count as this share.
_SMALLEST = 1e-6
# Images per batch, and those whose moments are summed at a time.
_BATCH, _SUMMED = 64, 8

# A factor, and those that read what it answers.
_Link = tuple[nn.Module, Sequence[nn.Module]]


@torch.no_grad()
def balance(network: nn.Module, images: torch.Tensor) -> None:
    """Change the factors of each compressed layer in place; the network computes the same as before.

    Args:
        network: a compressed one, in evaluation mode.
        images: its inputs, float32 (images, channels, height, width).
    """
    links = list(_links(network))
    sums: dict[nn.Module, torch.Tensor] = {}
    counts: Counter[nn.Module] = Counter()

    def watch(module: nn.Module, _: object, output: torch.Tensor) -> None:
        channels = -1 if isinstance(module, nn.Linear) else 1
        for some in output.split(_SUMMED):  # in float64 whole maps of many images are large
            values = some.transpose(0, channels).flatten(1).double()
            sums[module] = sums.get(module, 0) + values @ values.T
            counts[module] += values.shape[1]

    hooks = [first.register_forward_hook(watch) for first, _ in links]
    try:
        for batch in images.split(_BATCH):
            network(batch.clone())  # which a forward pass may change
    finally:
        for hook in hooks:
            hook.remove()
    for first, readers in links:
        if first in sums:
            _turn(first, readers, sums[first] / counts[first])


def _links(network: nn.Module) -> Iterator[_Link]:
    """List all factors whose answers nothing but other factors read, without an activation between."""
    for module in network.modules():
        if isinstance(module, RegionConv2d):
            regions = [filters if isinstance(filters, nn.Sequential) else [filters] for filters in module.regions]
            if module.encoder is not None:
                yield module.encoder, [stages[0] for stages in regions]
            yield from ((stages[0], [stages[1]]) for stages in regions if len(stages) > 1)
        elif isinstance(module, nn.Sequential) and isinstance(module, nn.Linear):  # a stand-in is both
            yield module[0], [module[1]]


def _turn(first: nn.Module, readers: Sequence[nn.Module], moments: torch.Tensor) -> None:
    """Merge the inverse of the best matrix with a factor, and the matrix with those that read it."""
    columns = [_weight(reader).double().transpose(0, 1).flatten(1) for reader in readers]
    together = torch.cat(columns, dim=1)
    of_columns = together @ together.T
    if not all(0 < float(matrix.trace()) < math.inf for matrix in (moments, of_columns)):
        return  # all zero, or not finite
    change, inverse = best_change(moments, of_columns)
    weight = _weight(first)
    weight.copy_((inverse @ weight.double().flatten(1)).view_as(weight))
    for reader, column in zip(readers, columns, strict=True):
        weight = _weight(reader).transpose(0, 1)
        weight.copy_((change.T @ column).view_as(weight))


def _weight(factor: nn.Module) -> torch.Tensor:
    assert isinstance(factor.weight, torch.Tensor)
    return factor.weight


def best_change(moments: torch.Tensor, of_columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix T of the module's text and its inverse, float64 (rank, rank).

    Args:
        moments: C, float64 (rank, rank).
        of_columns: G, likewise.
    """
    root, inverse_root = _roots(of_columns)
    middle, _ = _roots(root @ moments @ root)
    stretch, inverse_stretch = _roots(inverse_root @ middle @ inverse_root)
    _, axes = torch.linalg.eigh(inverse_stretch @ moments @ inverse_stretch)
    turned = axes.flip(1) @ even_rotation(len(axes)).to(axes)
    return stretch @ turned, turned.T @ inverse_stretch


def _roots(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The square root of a symmetric matrix without negative eigenvalues, and its inverse."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    roots = values.clamp(min=_SMALLEST * float(values[-1])).sqrt()
    return vectors * roots @ vectors.T, vectors / roots @ vectors.T


def even_rotation(size: int) -> torch.Tensor:
    """An orthogonal matrix, float64 (size, size).

    The squares of its entries are 1 / size where that is a power of two, and else at most twice that.
    """
    power = size & -size  # the largest power of two that divides it
    return torch.from_numpy(np.kron(hadamard(power) / power**0.5, dct(np.eye(size // power), norm="ortho")))
