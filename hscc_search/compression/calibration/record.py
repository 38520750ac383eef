"""What calibration leaves behind of each layer, and the folder that keeps it for other processes.

::

    calibration.json   everything that is no array, and the sizes of the other files
    statistics.npz     effects, profiles and input statistics of all layers
    images.npy         the calibration images
    0.npy, 1.npy, ...  the responses of each layer

Responses and images are mapped when they are read, so that all processes of a machine share one copy in its page
cache.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hscc_search.compression.calibration.activation import Bounds
from hscc_search.compression.calibration.lattice import Lattice


@dataclass(frozen=True)
class Inputs:
    """What a convolution is given, over all calibration images.

    Attributes:
        size: height and width of the input map.
        covariance: of the input channels at one position, float64 (Cin, Cin).
        correlation: of a channel with itself one position to the right, mean over channels by variance, 0 to 1.
    """

    size: tuple[int, int]
    covariance: torch.Tensor
    correlation: float


@dataclass(frozen=True)
class LayerRecord:
    """The dense network's responses at one layer.

    Attributes:
        name: the layer's path in the network, such as ``features.3``.
        lattice: which positions of the output map were kept; 1 x 1 for a fully connected layer.
        effects: root mean square of the gradient that reaches each response, see
            :func:`hscc_search.compression.calibration.calibrate.calibrate`, float32 (positions, Cout).
        profiles: mean activation at each position of the whole output map, float32 (Cout, height, width).
        inputs: what the layer is given, or None where its filters have a single tap.
        macs: multiply-adds of the dense layer per image.
        groups: of the convolution; 1 for a fully connected layer.
        fully_connected: whether the layer is one.
        bounds: between which the activation behind the layer lets responses through, (0, inf) for ReLU; None where
            there is no such activation, or where others see the responses as well.
        file: holds y before the activation, float32 (positions, images, Cout).
    """

    name: str
    lattice: Lattice
    effects: torch.Tensor
    profiles: torch.Tensor
    inputs: Inputs | None
    macs: int
    groups: int
    fully_connected: bool
    bounds: Bounds | None
    file: Path

    @property
    def responses(self) -> torch.Tensor:
        """The dense responses, float32 (positions, images, Cout), mapped from the file: read what is needed."""
        return torch.from_numpy(np.load(self.file, mmap_mode="c"))


def region_effects(effects: torch.Tensor, positions: Any = slice(None), channels: slice = slice(None)) -> torch.Tensor:
    """How much the loss hears of each channel in a region, never quite nothing.

    Args:
        effects: of a layer, float (positions, Cout).
        positions: of the region, indices.
        channels: those that are asked for.

    Returns:
        float64 (channels,).
    """
    found: torch.Tensor = effects[positions][:, channels].double().square().mean(dim=0).sqrt()
    return found + 1e-3 * found.mean() + 1e-12 * effects.mean()
