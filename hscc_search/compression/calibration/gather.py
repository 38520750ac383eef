"""Statistics of a layer, gathered while the calibration images pass."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hscc_search.compression.calibration.activation import Bounds
from hscc_search.compression.calibration.eligible import ExaminedLayer
from hscc_search.compression.calibration.lattice import choose_lattice, positions_first
from hscc_search.compression.calibration.maps import by_image, map_size, maps_of
from hscc_search.compression.calibration.record import InputStatistics, LayerRecord
from hscc_search.errors import CompressionError
from hscc_search.files import reserve


class LayerStatistics:
    """Running sums of one layer over the calibration images, and its responses in a file."""

    def __init__(
        self, name: str, layer: nn.Conv2d | nn.Linear, examined: ExaminedLayer, images: int, file: Path
    ) -> None:
        """Prepare empty sums, and a file for the responses.

        Args:
            name: the layer's path in the network.
            layer: the dense layer.
            examined: its examination, for the shapes and the multiply-adds of one image.
            images: number of calibration images that will pass.
            file: path of the responses' file.
        """
        self.name, self.layer, self.macs, self.file = name, layer, examined.macs, file
        channels, (height, width) = len(layer.weight), map_size(layer, examined.output_shape)
        device = layer.weight.device
        self.lattice = choose_lattice(height, width)
        self.profiles = torch.zeros(channels, height, width, dtype=torch.float64, device=device)
        self.squares = torch.zeros(self.lattice.positions, channels, dtype=torch.float64, device=device)
        self.inputs = _input_sums(layer, examined.input_shape)
        self.responses = _mapped(file, (self.lattice.positions, images, channels))
        self.seen = 0

    def add_output(self, output: torch.Tensor, images: int) -> None:
        """Write the responses to the next images to the file, and add up activations.

        Args:
            output: of the layer.
            images: number of them.

        Raises:
            CompressionError: a response is not finite, or there are more than images.
        """
        maps = self._maps(output, images)
        if maps.shape != (images, *self.profiles.shape) or self.seen + images > self.responses.shape[1]:
            raise CompressionError(f"layer {self.name} is not called once for each image of a batch")
        self.profiles += maps.relu().sum(dim=0)
        responses = self._on_lattice(maps)
        if not torch.isfinite(responses).all():
            raise CompressionError(
                f"layer {self.name} answers with values that are not finite: the dense network is broken"
            )
        self.responses[:, self.seen : self.seen + images] = responses.float().cpu().numpy()
        self.seen += images

    def add_gradient(self, gradient: torch.Tensor, images: int) -> None:
        """Add up the squared gradients of the responses to some images."""
        self.squares += self._on_lattice(self._maps(gradient, images)).square().sum(dim=1)

    def add_input(self, x: torch.Tensor) -> None:
        """Add up products of input channels where the record has input statistics."""
        if self.inputs is not None:
            self.inputs.add(x)

    def record(self, bounds: Bounds | None) -> LayerRecord:
        """Complete the file and make the record, once all images have passed."""
        self.responses.flush()
        effects = (self.squares / self.seen).sqrt().float()
        if not effects.sum() > 0:  # the loss depends on no response: all count alike
            effects = torch.ones_like(effects)
        return LayerRecord(
            name=self.name,
            lattice=self.lattice,
            effects=effects,
            profiles=(self.profiles / self.seen).float().cpu(),
            inputs=None if self.inputs is None else self.inputs.statistics(),
            macs=self.macs,
            groups=getattr(self.layer, "groups", 1),
            fully_connected=isinstance(self.layer, nn.Linear),
            bounds=bounds,
            file=self.file,
        )

    def _maps(self, values: torch.Tensor, images: int) -> torch.Tensor:
        if isinstance(self.layer, nn.Linear) and values.dim() > 1 and len(values) % images == 0:
            values = by_image(values, images)
        return maps_of(self.layer, values)

    def _on_lattice(self, maps: torch.Tensor) -> torch.Tensor:
        every = slice(self.lattice.start, None, self.lattice.step)
        return positions_first(maps[:, :, every, every])


def response_bytes(layer: nn.Conv2d | nn.Linear, examined: ExaminedLayer, images: int) -> int:
    """Size of the responses of a layer to some images."""
    lattice = choose_lattice(*map_size(layer, examined.output_shape))
    return 4 * lattice.positions * images * len(layer.weight)


def _mapped(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """Make a file for an array and map it, after its room on the disk has been taken.

    Raises:
        DiskFullError: there is no room.
    """
    with file.open("wb") as opened:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(opened, header)
        reserve(opened, 4 * math.prod(shape), "the responses of a layer")
    return np.lib.format.open_memmap(file, "r+")


class _InputSums:
    """Sums over input positions and their right neighbours that give :class:`InputStatistics`."""

    def __init__(self, size: tuple[int, int], channels: int, device: torch.device) -> None:
        self.size, self.step, self.count = size, choose_lattice(*size).step, 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self.squares = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self.products = torch.zeros(channels, dtype=torch.float64, device=device)
        self.outer = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def add(self, x: torch.Tensor) -> None:
        """Add the positions of a lattice on input maps (images, Cin, height, width)."""
        step = self.step
        values = x[:, :, ::step, :-1:step].movedim(1, -1).flatten(0, 2)
        neighbours = x[:, :, ::step, 1::step].movedim(1, -1).flatten(0, 2)
        self.count += len(values)
        self.outer += values.T @ values
        self.products += (values * neighbours).sum(dim=0)
        for index, samples in enumerate((values, neighbours)):
            self.sums[index] += samples.sum(dim=0)
            self.squares[index] += samples.square().sum(dim=0)

    def statistics(self) -> InputStatistics:
        """Compute the statistics from the sums."""
        means = self.sums / self.count
        variances = (self.squares / self.count - means.square()).clamp(min=0)
        shared = self.products / self.count - means[0] * means[1]
        scale = variances.prod(dim=0).sqrt().sum()
        correlation = float(shared.sum() / scale) if scale > 0 else 0.0
        covariance = self.outer / self.count - torch.outer(means[0], means[0])
        return InputStatistics(self.size, covariance, min(1.0, max(0.0, correlation)))


def _input_sums(layer: nn.Conv2d | nn.Linear, input_shape: torch.Size) -> _InputSums | None:
    """Empty sums; None for a fully connected layer, for filters of one tap, and for an input of one column."""
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size == (1, 1) or input_shape[3] < 2:
        return None
    return _InputSums((input_shape[2], input_shape[3]), input_shape[1], layer.weight.device)
