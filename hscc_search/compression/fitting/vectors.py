"""The fit of a fully connected layer that answers one vector per image."""

import torch
from torch import nn

from hscc_search.compression.division.partition import Block
from hscc_search.compression.factors import factorise, fit_predictor, refit
from hscc_search.compression.fitting.target import FitTarget, relative_effects
from hscc_search.compression.fitting.weights import set_balanced_factors, set_weights

# Extra axes considered beyond the rank.
EXTRA_AXES = 100


def axis_filters(layer: nn.Conv2d | nn.Linear, block: Block) -> torch.Tensor:
    """The filters that answer along each axis of a fully connected layer's dense responses, without a bias.

    Returns:
        float (axes, Cin).
    """
    axes = block.axes[0].to(layer.weight) * relative_effects(block, layer.weight)[:, None]
    return axes.T @ layer.weight.detach()


def fit_factored_vectors(
    target: FitTarget, block: Block, rank: int, filters: torch.Tensor, module: nn.Module, x: torch.Tensor
) -> torch.Tensor:
    """Fit a fully connected layer of a given rank.

    Args:
        target: the dense layer and its responses.
        block: the whole layer as one block.
        rank: number of basis filters.
        filters: of the block, from :func:`axis_filters`.
        module: the compressed layer, whose weights are set.
        x: its input, float (images, Cin).

    Returns:
        Its output, float (images, Cout).
    """
    effects = relative_effects(block, x)
    dense = target.responses(block, block.positions, effects)
    filters = filters[: rank + EXTRA_AXES]
    axes = block.axes[0][:, : len(filters)].to(x)
    delivered = x @ filters.T
    factors = factorise(fit_predictor(dense @ axes, delivered), rank)
    basis = factors.basis.to(x.dtype)
    coordinates = delivered @ basis.T
    start = axes @ factors.recombination.to(x.dtype)
    recombination, bias = target.recombination(dense, coordinates, start, effects)
    recombination, bias = recombination / effects[:, None], bias / effects
    assert isinstance(module, nn.Sequential)
    set_balanced_factors(module, basis @ filters, recombination, bias)
    return torch.addmm(bias, coordinates, recombination.T)


def fit_dense_vectors(target: FitTarget, block: Block, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Fit a fully connected layer that stays dense, so that it makes up for errors of the layers before it.

    Args:
        target: the dense layer and its responses.
        block: the whole layer as one block.
        module: the compressed layer, whose weights are set.
        x: its input, float (images, Cin).

    Returns:
        Its output, float (images, Cout).
    """
    effects = relative_effects(block, x)
    dense = target.responses(block, block.positions, effects)
    weight = target.layer.weight.detach()
    delivered = (x @ weight.T) * effects
    if len(dense) < len(weight):
        # Too few samples to learn more from them than the mean.
        bias = (dense - delivered).mean(dim=0)
        set_weights(module, weight, bias / effects)
        return (delivered + bias) / effects
    recombination, bias = refit(dense, delivered, torch.eye(len(weight)).to(weight))
    set_weights(module, recombination @ (weight * effects[:, None]) / effects[:, None], bias / effects)
    return torch.addmm(bias, delivered, recombination.T) / effects
