"""Which layers can be compressed, and why the others cannot."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from hscc_search.compression.calibration.hooks import Inputs, hooked
from hscc_search.compression.calibration.maps import by_image
from hscc_search.compression.stand_ins import computes_otherwise

# Groups of a convolution run one after the other once they are compressed.
MOST_GROUPS = 8
# Largest difference between answers to the same image, relative to how much they vary, that counts as rounding.
_SAME_IMAGE = 1e-3


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
    images = torch.cat([image, -image.flip(-1)])
    windows: dict[str, torch.Tensor] = {}
    otherwise = {name: computes_otherwise(layer) for name, layer in layers.items()}  # before hooks of our own

    def examine(name: str, inputs: Inputs, output: torch.Tensor) -> None:
        layer = layers[name]
        macs = output.numel() // layer.weight.shape[0] * layer.weight.numel() // len(images)
        if name in examined:
            macs += examined[name].macs
            reason: str | None = "called more than once in one pass"
        elif name == "":
            reason = "it is the whole network"
        elif output.dim() < 2:
            reason = "called without images in a batch"
        elif output.dtype != layer.weight.dtype:
            reason = f"it answers in {str(output.dtype).removeprefix('torch.')}"
        elif len(output) != len(images) and (not isinstance(layer, nn.Linear) or len(output) % len(images)):
            reason = "called on more than one position as if they were images"
        else:
            if isinstance(layer, nn.Linear) and len(output) != len(images):
                windows[name] = by_image(output, len(images)).clone()
            reason = _reason(layer, output) or otherwise[name]
        examined[name] = ExaminedLayer(macs, reason, *(_of_one_image(value, layer, 2) for value in (inputs[0], output)))

    with hooked(layers, after=examine):
        network(images.clone())
    windows = {name: output for name, output in windows.items() if examined[name].reason is None}
    for name in _mixing_images(network, layers, windows, image):
        examined[name] = replace(examined[name], reason="called on positions of all images in one list")
    for name in layers:
        if name not in examined:
            examined[name] = ExaminedLayer(0, "never called", torch.Size(), torch.Size())
    return examined


def _mixing_images(
    network: nn.Module, layers: dict[str, nn.Conv2d | nn.Linear], windows: dict[str, torch.Tensor], image: torch.Tensor
) -> list[str]:
    """The layers among those called on windows whose first rows are not those of the first image.

    Args:
        network: in evaluation mode.
        layers: of the network.
        windows: outputs for two images, as far as the first rows of a batch are those of the first.
        image: the first.
    """
    mixing: list[str] = []

    def compare(name: str, inputs: Inputs, output: torch.Tensor) -> None:
        alone, both = output.reshape(1, -1, output.shape[-1]), windows[name]
        spread = float((both - both.mean(dim=(0, 1))).norm())
        if alone.shape != both[:1].shape or float((alone - both[:1]).norm()) > _SAME_IMAGE * spread:
            mixing.append(name)

    if windows:
        with hooked({name: layers[name] for name in windows}, after=compare):
            network(image.clone())
    return mixing


def _of_one_image(value: torch.Tensor, layer: nn.Module, images: int) -> torch.Size:
    if isinstance(layer, nn.Linear) and value.dim() > 1 and len(value) % images == 0:
        value = by_image(value, images)
    return torch.Size((1, *value.shape[1:]))


def _reason(layer: nn.Conv2d | nn.Linear, output: torch.Tensor) -> str | None:
    """Why the kind of a layer cannot be compressed, None if it can."""
    if isinstance(layer, nn.Linear):
        return None
    if output.dim() != 4:
        return "called without images in a batch"
    if layer.groups > 1 and layer.groups == layer.in_channels:
        return "depthwise"
    if layer.groups > MOST_GROUPS:
        return f"{layer.groups} groups, too narrow each"
    if layer.padding_mode != "zeros":
        return f"padding mode {layer.padding_mode}"
    return None
