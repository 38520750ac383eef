"""Which tensors of a network training changes: its weights, and not its tables of integers."""

import torch
from torch import nn


def of_numbers(tensor: torch.Tensor) -> bool:
    """Tell tensors of real or complex numbers, which have gradients and averages, from those of integers or truths."""
    return tensor.is_floating_point() or tensor.is_complex()


def make_trainable(network: nn.Module) -> None:
    """Let all weights of a network have gradients, in place, but for tables of integers, which cannot."""
    for parameter in network.parameters():
        if of_numbers(parameter):
            parameter.requires_grad_(True)
