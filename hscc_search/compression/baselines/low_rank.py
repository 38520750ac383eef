"""A layer as two thinner ones: a few basis filters, then their recombination."""

import copy
from collections.abc import Mapping

import torch
from scipy.linalg import eigh
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init

from hscc_search.compression.factors import balanced

# Eigenvalues below this share of the largest are rounding errors.
_ROUNDING = 1e-13


def spectrum(matrix: torch.Tensor) -> torch.Tensor:
    """Squared singular values, descending.

    Args:
        matrix: float (rows, columns).

    Returns:
        float64 (min(rows, columns),); what is zero but for rounding errors is 0.
    """
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values: torch.Tensor = torch.linalg.eigvalsh((small @ small.T).double()).flip(0)
    return values * (values > _ROUNDING * values[0])


def leading_axes(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The first left singular vectors.

    Args:
        matrix: float64 (rows, columns).
        rank: how many.

    Returns:
        float64 (rows, rank); columns of zeros where the matrix has fewer.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    size, count = len(gram), min(rank, len(gram))
    if gram.is_cuda:
        values, vectors = (found[..., size - count :] for found in torch.linalg.eigh(gram))
    else:
        # torch has none that stops after the first eigenvectors, which on the CPU is three times as fast at 4096 rows.
        values, vectors = (
            torch.from_numpy(found.copy()).to(gram)
            for found in eigh(gram.numpy(), subset_by_index=[size - count, size - 1])
        )
    values, axes = values.flip(0), vectors.flip(1)
    if not wide:
        kept = values > _ROUNDING * values[0]
        axes = matrix @ axes[:, kept] / values[kept].sqrt()
    return functional.pad(axes, (0, rank - axes.shape[1]))


class GroupedLinear(nn.Module):
    """A fully connected layer whose outputs come in groups, each of which sees its group of inputs alone.

    Takes float (..., inputs) and returns (..., outputs).
    """

    def __init__(self, layer: nn.Linear, outputs: int, groups: int) -> None:
        super().__init__()
        kind = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.filters = skip_init(nn.Conv2d, layer.in_features, outputs, 1, groups=groups, bias=False, **kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the filters to the last dimension."""
        rows = x.flatten(0, -2)[:, :, None, None]
        return self.filters(rows).view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


def low_rank_pair(
    layer: nn.Conv2d | nn.Linear,
    basis: torch.Tensor,
    recombination: torch.Tensor,
    bias: torch.Tensor | None,
    groups: int = 1,
) -> nn.Sequential:
    """Modules that compute ``recombination @ (basis @ patch) + bias`` where ``layer`` computed ``W @ patch + b``.

    The weights of both are made as large as each other, as HSCC's are: further training needs that.

    Args:
        layer: the dense layer, of one group.
        basis: (rank, D / groups), the filters of the first group first.
        recombination: (Cout, rank).
        bias: (Cout,) or None.
        groups: into which the input channels are split; filters of one group see its channels alone.
    """
    rank = len(basis)
    basis, recombination = balanced(basis, recombination)
    kind = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    first: nn.Module
    filters: nn.Conv2d | nn.Linear
    last: nn.Conv2d | nn.Linear
    # Without initialisation, which takes time and would draw from the caller's random numbers.
    if isinstance(layer, nn.Conv2d):
        first = filters = skip_init(
            nn.Conv2d,
            layer.in_channels,
            rank,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            groups,
            bias=False,
            **kind,
        )
        last = skip_init(nn.Conv2d, rank, layer.out_channels, 1, bias=bias is not None, **kind)
    else:
        if groups == 1:
            first = filters = skip_init(nn.Linear, layer.in_features, rank, bias=False, **kind)
        else:
            first = GroupedLinear(layer, rank, groups)
            filters = first.filters
        last = skip_init(nn.Linear, rank, layer.out_features, bias=bias is not None, **kind)
    with torch.no_grad():
        filters.weight.copy_(basis.view_as(filters.weight))
        last.weight.copy_(recombination.view_as(last.weight))
        if last.bias is not None and bias is not None:
            last.bias.copy_(bias)
    return nn.Sequential(first, last)


def truncated_pair(layer: nn.Conv2d | nn.Linear, rank: int, groups: int = 1) -> nn.Sequential:
    """The pair whose weights come nearest to the layer's in the Frobenius norm.

    Args:
        layer: the dense layer, of one group.
        rank: of the weights that belong to one group.
        groups: of input channels.
    """
    blocks = layer.weight.detach().flatten(1).double().chunk(groups, dim=1)
    axes = [leading_axes(block, rank) for block in blocks]
    basis = torch.cat([axis.T @ block for axis, block in zip(axes, blocks, strict=True)])
    return low_rank_pair(layer, basis, torch.cat(axes, dim=1), layer.bias, groups)


def with_layers(network: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a network, in evaluation mode, with other modules at the given paths."""
    # A layer that is replaced is not copied: the copy finds the one that takes its place.
    return copy.deepcopy(network, {id(network.get_submodule(name)): layer for name, layer in layers.items()}).eval()
