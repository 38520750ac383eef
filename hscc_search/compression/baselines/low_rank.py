"""A layer as two thinner ones: a few basis filters, then their recombination."""

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import skip_init

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
    values = torch.linalg.eigvalsh((small @ small.T).double()).flip(0)
    return torch.where(values > _ROUNDING * values[0], values, 0)


def leading_axes(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The first left singular vectors.

    Args:
        matrix: float (rows, columns).
        rank: how many.

    Returns:
        float64 (rows, rank); columns of zeros where the matrix is of a lower rank.
    """
    rows, columns = matrix.shape
    if rows <= columns:
        axes = torch.linalg.eigh((matrix @ matrix.T).double())[1].flip(1)[:, :rank]
    else:
        # The smaller product has the same non-zero eigenvalues, and is the cheaper one to decompose.
        values, right = torch.linalg.eigh((matrix.T @ matrix).double())
        values, right = values.flip(0)[:rank], right.flip(1)[:, :rank]
        kept = values > _ROUNDING * values[0]
        axes = matrix.double() @ right[:, kept] / values[kept].sqrt()
    padded = torch.zeros(rows, rank, dtype=axes.dtype, device=axes.device)
    padded[:, : axes.shape[1]] = axes
    return padded


def input_channels(layer: nn.Conv2d | nn.Linear) -> int:
    """Channels, or features, that a layer takes."""
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def layer_at(network: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    """The convolution or fully connected layer at a path."""
    layer = network.get_submodule(name)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    return layer


def matrix_of(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    """A layer's weights as float64 (Cout, Cin * height * width)."""
    return layer.weight.detach().flatten(1).double()


def low_rank_pair(
    layer: nn.Conv2d | nn.Linear,
    basis: torch.Tensor,
    recombination: torch.Tensor,
    bias: torch.Tensor | None,
    groups: int = 1,
) -> nn.Sequential:
    """Modules that compute ``recombination @ (basis @ patch) + bias`` where ``layer`` computed ``W @ patch + b``.

    Args:
        layer: the dense layer, of one group.
        basis: (rank, Cin / groups * height * width), the filters of the first group first.
        recombination: (Cout, rank).
        bias: (Cout,) or None.
        groups: into which the input channels are split; filters of one group see its channels alone.
    """
    rank = len(basis)
    kind = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    first: nn.Conv2d | nn.Linear
    last: nn.Conv2d | nn.Linear
    # Without initialisation, which takes time and would draw from the caller's random numbers.
    if isinstance(layer, nn.Conv2d):
        first = skip_init(
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
        pair = nn.Sequential(first, last)
    else:
        last = skip_init(nn.Linear, rank, layer.out_features, bias=bias is not None, **kind)
        if groups == 1:
            first = skip_init(nn.Linear, layer.in_features, rank, bias=False, **kind)
            pair = nn.Sequential(first, last)
        else:
            first = skip_init(nn.Conv2d, layer.in_features, rank, 1, groups=groups, bias=False, **kind)
            pair = nn.Sequential(nn.Unflatten(1, (layer.in_features, 1, 1)), first, nn.Flatten(), last)
    with torch.no_grad():
        first.weight.copy_(basis.view_as(first.weight))
        last.weight.copy_(recombination.view_as(last.weight))
        if last.bias is not None and bias is not None:
            last.bias.copy_(bias)
    return pair


def truncated_pair(layer: nn.Conv2d | nn.Linear, rank: int) -> nn.Sequential:
    """The pair of the given rank whose weights come nearest to the layer's in the Frobenius norm."""
    weight = matrix_of(layer)
    axes = leading_axes(weight, rank)
    return low_rank_pair(layer, axes.T @ weight, axes, layer.bias)


def with_layers(network: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a network, in evaluation mode, with other modules at the given paths."""
    result = copy.deepcopy(network)
    for name, layer in layers.items():
        result.set_submodule(name, layer)
    return result.eval()
