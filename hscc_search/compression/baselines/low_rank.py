"""A layer as two thinner ones: a few basis filters, then their recombination."""

from typing import Any

import torch
from scipy.linalg import eigh
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init

from hscc_search.compression.factors import balanced

# Eigenvalues below this share of the largest are rounding errors.
_ROUNDING = 1e-13


def spectrum(matrix: torch.Tensor) -> torch.Tensor:
    """The squared singular values of a matrix, descending.

    Args:
        matrix: float (rows, columns).

    Returns:
        float64 (min(rows, columns),); values that are zero but for rounding errors are exactly 0.
    """
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values: torch.Tensor = torch.linalg.eigvalsh((small @ small.T).double()).flip(0)
    return values * (values > _ROUNDING * values[0])


def leading_axes(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The first left singular vectors of a matrix.

    Args:
        matrix: float64 (rows, columns).
        rank: number of vectors.

    Returns:
        float64 (rows, rank); columns of zeros where the matrix has fewer.
    """
    if not matrix.shape[1]:
        return matrix.new_zeros(len(matrix), rank)
    wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    values, axes = _leading_eigenvectors(gram, min(rank, len(gram)))
    if not wide:
        nonzero = values > _ROUNDING * values[0]
        axes = matrix @ axes[:, nonzero] / values[nonzero].sqrt()
    return functional.pad(axes, (0, rank - axes.shape[1]))


def _leading_eigenvectors(gram: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest eigenvalues of a symmetric matrix, (count,) and descending, and their vectors (size, count)."""
    size = len(gram)
    if gram.is_cuda:
        values, vectors = (array[..., size - count :] for array in torch.linalg.eigh(gram))
    else:
        # scipy stops after the last eigenvectors, torch cannot: three times as fast on the CPU at 4096 rows.
        largest = eigh(gram.numpy(), subset_by_index=[size - count, size - 1])
        values, vectors = (torch.from_numpy(array.copy()).to(gram) for array in largest)
    return values.flip(0), vectors.flip(1)


class GroupedLinear(nn.Module):
    """A fully connected layer in groups: each group of outputs is computed from its own group of inputs.

    Takes float (..., inputs) and returns (..., outputs).

    Args:
        layer: the dense layer, which gives the number of inputs, the device and the dtype.
        outputs: number of outputs of all groups together.
        groups: number of groups.
    """

    def __init__(self, layer: nn.Linear, outputs: int, groups: int) -> None:
        super().__init__()
        self.filters = skip_init(
            nn.Conv2d, layer.in_features, outputs, 1, groups=groups, bias=False, **device_and_type(layer)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the filters to the last dimension."""
        pixels = x.flatten(0, -2)[:, :, None, None]
        return self.filters(pixels).view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


def low_rank_pair(
    layer: nn.Conv2d | nn.Linear,
    basis: torch.Tensor,
    recombination: torch.Tensor,
    bias: torch.Tensor | None,
    groups: int = 1,
) -> nn.Sequential:
    """Build modules that compute ``recombination @ (basis @ patch) + bias`` where ``layer`` computed ``W @ patch + b``.

    The weights of both are scaled to the same size, as HSCC's are: fine-tuning needs that.

    Args:
        layer: the dense layer, of one group.
        basis: (rank, D / groups), the filters of the first group first.
        recombination: (Cout, rank).
        bias: (Cout,) or None.
        groups: number of groups of input channels; the filters of one group see its channels alone.
    """
    basis, recombination = balanced(basis, recombination)
    # Without initialisation, which takes time and would draw from the caller's random numbers.
    first = _basis_module(layer, len(basis), groups)
    last = _recombination_module(layer, len(basis), bias is not None)
    filters = first.filters if isinstance(first, GroupedLinear) else first
    with torch.no_grad():
        filters.weight.copy_(basis.view_as(filters.weight))
        last.weight.copy_(recombination.view_as(last.weight))
        if last.bias is not None and bias is not None:
            last.bias.copy_(bias)
    return nn.Sequential(first, last)


def _basis_module(layer: nn.Conv2d | nn.Linear, rank: int, groups: int) -> nn.Conv2d | nn.Linear | GroupedLinear:
    """Build a layer like the dense one but with ``rank`` outputs, in groups and without a bias."""
    if isinstance(layer, nn.Linear) and groups > 1:
        return GroupedLinear(layer, rank, groups)
    module: nn.Conv2d | nn.Linear
    if isinstance(layer, nn.Linear):
        module = skip_init(nn.Linear, layer.in_features, rank, bias=False, **device_and_type(layer))
    else:
        module = skip_init(
            nn.Conv2d,
            layer.in_channels,
            rank,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            groups,
            bias=False,
            **device_and_type(layer),
        )
    return module


def _recombination_module(layer: nn.Conv2d | nn.Linear, rank: int, bias: bool) -> nn.Conv2d | nn.Linear:
    """Build a fully connected layer or a 1 x 1 convolution from ``rank`` to the dense layer's outputs."""
    module: nn.Conv2d | nn.Linear
    if isinstance(layer, nn.Linear):
        module = skip_init(nn.Linear, rank, layer.out_features, bias=bias, **device_and_type(layer))
    else:
        module = skip_init(nn.Conv2d, rank, layer.out_channels, 1, bias=bias, **device_and_type(layer))
    return module


def device_and_type(layer: nn.Conv2d | nn.Linear) -> dict[str, Any]:
    """Keyword arguments that give a new module the device and the dtype of a layer."""
    return {"device": layer.weight.device, "dtype": layer.weight.dtype}


def truncated_pair(layer: nn.Conv2d | nn.Linear, rank: int, groups: int = 1) -> nn.Sequential:
    """Build the pair whose weights come nearest to the layer's in the Frobenius norm.

    Args:
        layer: the dense layer, of one group.
        rank: rank of the weights of each group.
        groups: number of groups that the input channels are split into.
    """
    blocks = layer.weight.detach().flatten(1).double().chunk(groups, dim=1)
    axes = [leading_axes(block, rank) for block in blocks]
    basis = torch.cat([axis.T @ block for axis, block in zip(axes, blocks, strict=True)])
    return low_rank_pair(layer, basis, torch.cat(axes, dim=1), layer.bias, groups)
