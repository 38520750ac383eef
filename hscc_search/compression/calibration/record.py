"""The record of one layer, which calibration makes and all compressors read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hscc_search.compression.calibration.activation import Bounds
from hscc_search.compression.calibration.lattice import Lattice

_ALL = slice(None)


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of a convolution's input over all calibration images.

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
    """Responses of the dense network at one layer, with their statistics.

    Attributes:
        name: the layer's path in the network, such as ``features.3``.
        lattice: the positions of the output map whose responses are recorded; 1 x 1 for a fully connected layer on
            vectors.
        effects: root mean square of the gradient that reaches each response, see
            :func:`hscc_search.compression.calibration.calibrate.calibrate`, float32 (positions, Cout).
        profiles: mean activation at each position of the whole output map, float32 (Cout, height, width).
        inputs: statistics of the layer's input; None for a fully connected layer, for filters of a single tap, and for
            an input map of one column.
        macs: multiply-adds of the dense layer per image.
        groups: of the convolution; 1 for a fully connected layer.
        fully_connected: whether the layer is one.
        bounds: bounds of the clipping activation behind the layer, (0, inf) for ReLU; None where there is no such
            activation, or where other operations read the responses as well.
        file: path of the responses before the activation, float32 (positions, images, Cout).
    """

    name: str
    lattice: Lattice
    effects: torch.Tensor
    profiles: torch.Tensor
    inputs: InputStatistics | None
    macs: int
    groups: int
    fully_connected: bool
    bounds: Bounds | None
    file: Path

    @property
    def responses(self) -> torch.Tensor:
        """The dense responses, float32 (positions, images, Cout), mapped from the file: index before computing."""
        return torch.from_numpy(np.load(self.file, mmap_mode="c"))


def region_effects(
    effects: torch.Tensor, positions: torch.Tensor | slice = _ALL, channels: slice = _ALL
) -> torch.Tensor:
    """RMS gradient per channel over a region, with a small floor.

    Args:
        effects: of a layer, float (positions, Cout).
        positions: indices of the region's positions; all by default.
        channels: slice of the channels that are asked for; all by default.

    Returns:
        float64 (channels,).
    """
    rms = effects[positions][:, channels].double().square().mean(dim=0).sqrt()
    return rms + 1e-3 * rms.mean() + 1e-12 * effects.mean()
