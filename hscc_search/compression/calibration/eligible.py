"""Which layers can be compressed, and why the others cannot."""

from dataclasses import dataclass

import torch
from torch import nn

from hscc_search.compression.calibration.hooks import Inputs, hooked
from hscc_search.compression.stand_ins import computes_otherwise

# Groups of a convolution run one after the other once they are compressed.
MOST_GROUPS = 8


@dataclass(frozen=True)
class ExaminedLayer:
    """The examination of a convolution or fully connected layer in a pass of two images.

    Attributes:
        macs: multiply-adds per image of a Conv2d or Linear with the layer's weight; 0 if it is never called.
        reason: why the layer cannot be compressed, None if it can.
        input_shape: shape of its last input for one image, (1, ...); empty if it is never called.
        output_shape: shape of its last output for one image, (1, ...); empty if it is never called.
    """

    macs: int
    reason: str | None
    input_shape: torch.Size
    output_shape: torch.Size


@torch.no_grad()
def examine_layers(
    network: nn.Module, layers: dict[str, nn.Conv2d | nn.Linear], image: torch.Tensor
) -> dict[str, ExaminedLayer]:
    """Run one image through the network twice in a batch, and examine each layer.

    Args:
        network: in evaluation mode.
        layers: the network's convolutions and fully connected layers by name.
        image: as the network takes it, float32 (1, 3, height, width).

    Returns:
        Each layer by name: those that were called, in execution order, then the others.
    """
    examined: dict[str, ExaminedLayer] = {}
    images = torch.cat([image, image])
    otherwise = {name: computes_otherwise(layer) for name, layer in layers.items()}  # before hooks of our own

    def examine(name: str, inputs: Inputs, output: torch.Tensor) -> None:
        layer = layers[name]
        macs = output.numel() // layer.weight.shape[0] * layer.weight.numel() // len(images)
        if name in examined:
            macs += examined[name].macs
            reason: str | None = "called more than once in one pass"
        elif name == "":
            reason = "it is the whole network"
        elif len(output) != len(images):
            reason = "called on more than one position as if they were images"
        else:
            reason = _reason(layer, output) or otherwise[name]
        examined[name] = ExaminedLayer(macs, reason, _of_one_image(inputs[0]), _of_one_image(output))

    with hooked(layers, after=examine):
        network(images)
    for name in layers:
        if name not in examined:
            examined[name] = ExaminedLayer(0, "never called", torch.Size(), torch.Size())
    return examined


def _of_one_image(value: torch.Tensor) -> torch.Size:
    return torch.Size((1, *value.shape[1:]))


def _reason(layer: nn.Conv2d | nn.Linear, output: torch.Tensor) -> str | None:
    """Why the kind of a layer cannot be compressed, None if it can."""
    if isinstance(layer, nn.Linear):
        return None if output.dim() in (2, 3, 4) else f"called on {output.dim()} dimensions"
    if output.dim() != 4:
        return "called without images in a batch"
    if layer.groups > 1 and layer.groups == layer.in_channels:
        return "depthwise"
    if layer.groups > MOST_GROUPS:
        return f"{layer.groups} groups, too narrow each"
    if layer.padding_mode != "zeros":
        return f"padding mode {layer.padding_mode}"
    return None
