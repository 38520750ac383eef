"""The fit of one region of a layer."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from hscc_search.compression.division.partition import Block
from hscc_search.compression.fitting.target import relative_effects
from hscc_search.compression.fitting.weights import set_balanced_factors, set_weights
from hscc_search.compression.form import RegionRanks


@dataclass(frozen=True, eq=False)
class RegionFit:
    """The fit of one region as two stages, filters and recombination. A region that stays dense gets their product.

    Attributes:
        block: the region's channels, effects and axes.
        module: the region's filters in the compressed layer.
        filters: the first stage: basis filters, or a copy of the dense filters.
        recombination: the second stage, with a bias; square where the region stays dense.
        basis: weights of the first stage where there is no encoder, float (K, D).
        axes: weights of the second stage before it is fitted, for weighted responses, float (C, K).
        effects: weight of each channel's responses, float (C,).
    """

    block: Block
    module: nn.Module
    filters: nn.Conv2d | nn.Linear
    recombination: nn.Conv2d | nn.Linear
    basis: torch.Tensor
    axes: torch.Tensor
    effects: torch.Tensor

    @property
    def is_factored(self) -> bool:
        """Tell whether the region has basis filters and a recombination in the compressed layer."""
        return isinstance(self.module, nn.Sequential)

    def finish(self) -> None:
        """Put the fitted stages into the compressed layer, balanced; where the region stays dense, their product."""
        filters, recombination = self.filters.weight.flatten(1), self.recombination.weight.flatten(1)
        bias = self.recombination.bias
        assert bias is not None
        if isinstance(self.module, nn.Sequential):
            set_balanced_factors(self.module, filters, recombination, bias)
        else:
            set_weights(self.module, recombination.double() @ filters.double(), bias)


def begin_region(layer: nn.Conv2d | nn.Linear, block: Block, ranks: RegionRanks, module: nn.Module) -> RegionFit:
    """Prepare the fit of one region; the weights of both stages are still to be set.

    Args:
        layer: the dense layer.
        block: the region.
        ranks: ranks of its clusters, None where it stays dense.
        module: the region's filters in the compressed layer.
    """
    effects = relative_effects(block, layer.weight)
    weight = layer.weight.detach().flatten(1)[block.channels] * effects[:, None]
    filters: nn.Module
    recombination: nn.Module
    if ranks is None:
        filters = copy.deepcopy(module)
        assert isinstance(filters, (nn.Conv2d, nn.Linear))
        filters.bias = None
        channels = len(weight)
        square = nn.Conv2d(channels, channels, 1) if isinstance(layer, nn.Conv2d) else nn.Linear(channels, channels)
        recombination, axes = square.to(weight), torch.eye(channels).to(weight)
    else:
        assert isinstance(module, nn.Sequential)
        filters, recombination = module
        axes = block.basis(ranks).to(weight)
    assert isinstance(filters, (nn.Conv2d, nn.Linear))
    assert isinstance(recombination, (nn.Conv2d, nn.Linear))
    return RegionFit(block, module, filters, recombination, axes.T @ weight, axes, effects)
