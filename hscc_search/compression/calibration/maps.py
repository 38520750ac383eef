"""Outputs of layers as maps, whatever their order and their number of dimensions."""

import torch
from torch import nn


def maps_of(layer: nn.Conv2d | nn.Linear, output: torch.Tensor) -> torch.Tensor:
    """Responses as (images, Cout, height, width), whatever the order of the layer's output.

    Tokens are the rows of a map of one column.
    """
    if not isinstance(layer, nn.Linear):
        return output
    if output.dim() == 3:
        return output.movedim(-1, 1)[..., None]
    return output.movedim(-1, 1) if output.dim() == 4 else output[:, :, None, None]


def by_image(values: torch.Tensor, images: int) -> torch.Tensor:
    """Bring what a fully connected layer takes or answers to one row per image.

    Args:
        values: (images, ..., features); or, where each image is cut into windows that pass as if they were images,
            (images * windows, ..., features), those of the first image first.
        images: their number.

    Returns:
        The values as they are; or, with windows or more than four dimensions, (images, tokens, features).
    """
    if len(values) == images and values.dim() <= 4:
        return values
    return values.reshape(images, -1, values.shape[-1])


def map_size(layer: nn.Conv2d | nn.Linear, output_shape: torch.Size) -> tuple[int, int]:
    """Height and width of a layer's output maps."""
    height, width = maps_of(layer, torch.empty(output_shape, device="meta")).shape[2:]
    return height, width
