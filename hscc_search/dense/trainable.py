"""The weights of a network that can be trained."""

from torch import nn


def make_trainable(network: nn.Module) -> list[nn.Parameter]:
    """Let all weights of a network have gradients, in place, but for tables of integers, which cannot; return these."""
    weights = [parameter for parameter in network.parameters() if parameter.is_floating_point()]
    for weight in weights:
        weight.requires_grad_(True)
    return weights
