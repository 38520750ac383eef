"""A network together with the normalisation that it was trained with, so that users need not know it."""

from collections.abc import Sequence

import torch
from torch import nn

from hscc_search.config import Shape
from hscc_search.errors import CompressionError
from hscc_search.evaluation.predictions import normalise


class Deployed(nn.Module):
    """A network that takes images with values 0 to 1 and returns class scores.

    Takes float32 (images, channels, height, width), returns float32 (images, classes) before softmax, or
    (images, classes, height, width) for maps.

    Args:
        network: takes normalised images.
        mean: per channel, of values 0 to 1.
        std: per channel.
        shape: of one image: channels, height, width; others are refused.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float], shape: Shape) -> None:
        super().__init__()
        self.network = network
        self.shape = shape
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the class scores of images.

        Raises:
            CompressionError: the images have another shape.
        """
        if images.shape[1:] != self.shape:
            shape = ", ".join(map(str, self.shape))
            raise CompressionError(f"this network takes shape (images, {shape}), not {tuple(images.shape)}")
        return self.network(normalise(images, self.mean, self.std))  # type: ignore[no-any-return]
