"""Fitted weights, put into modules."""

import torch
from torch import nn

from hscc_search.compression.factors import balanced


def set_weights(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Copy a weight of any shape with the right number of values, and a bias, into a convolution or linear layer."""
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if bias is not None:
        assert layer.bias is not None
        layer.bias.copy_(bias)


def set_balanced_factors(
    factored: nn.Sequential, basis: torch.Tensor, recombination: torch.Tensor, bias: torch.Tensor
) -> None:
    """Set basis filters, float (K, D), recombination, float (C, K), and bias, with weights of the same size."""
    first, last = factored
    basis, recombination = balanced(basis, recombination)
    set_weights(first, basis)
    set_weights(last, recombination, bias)
