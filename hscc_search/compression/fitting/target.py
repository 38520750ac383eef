"""The target of a layer's fit: the dense layer and its responses."""

from dataclasses import dataclass

import torch
from torch import nn

from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.division.partition import Block
from hscc_search.compression.factors import refit, refit_clipped


@dataclass(frozen=True)
class FitTarget:
    """The dense layer and its responses to every ``step``-th calibration image.

    Attributes:
        layer: of the dense network.
        record: of the layer, from calibration.
        step: 1 where the fit uses all calibration images, 2 where it uses every second one, and so on.
    """

    layer: nn.Conv2d | nn.Linear
    record: LayerRecord
    step: int

    @property
    def images(self) -> int:
        """The number of images that the fit uses."""
        return len(range(0, self.record.responses.shape[1], self.step))

    def responses(self, block: Block, positions: torch.Tensor, effects: torch.Tensor) -> torch.Tensor:
        """The dense responses of a block's channels, weighted.

        Args:
            block: whose channels are taken.
            positions: int64, of the lattice.
            effects: the weight of each channel, float (C,).

        Returns:
            float (positions * images, C), on the device of ``effects``.
        """
        responses = self.record.responses[:, :: self.step][positions][:, :, block.channels].flatten(0, 1)
        return responses.to(effects.device).mul_(effects)

    def recombination(
        self, dense: torch.Tensor, coordinates: torch.Tensor, axes: torch.Tensor, effects: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit a recombination, and improve it for the activation behind the layer where there is one.

        Args:
            dense: from :meth:`responses`, float (n, C).
            coordinates: answers of the basis filters, float (n, K).
            axes: the recombination to start from, float (C, K).
            effects: the weight of each channel, float (C,).

        Returns:
            The recombination, float (C, K), and the bias, float (C,), both for weighted responses.
        """
        recombination, bias = refit(dense, coordinates, axes)
        if self.record.bounds is None:
            return recombination, bias
        low, high = self.record.bounds
        return refit_clipped(dense, coordinates, recombination, bias, low * effects, high * effects)

    def bias(self, block: Block) -> torch.Tensor:
        """The dense layer's bias for a block's channels, float (C,); 0 where it has none."""
        bias = self.layer.bias
        if bias is None:
            return self.layer.weight.new_zeros(len(self.layer.weight))[block.channels]
        return bias.detach()[block.channels]


def relative_effects(block: Block, like: torch.Tensor) -> torch.Tensor:
    """A block's effects relative to their mean, so that weights keep the size that training is used to.

    Args:
        block: of C channels.
        like: a tensor with the dtype and the device of the result.

    Returns:
        float (C,).
    """
    return (block.effects / block.effects.mean()).to(like)
