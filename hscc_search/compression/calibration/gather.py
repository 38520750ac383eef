"""What is gathered of each layer while the calibration images pass."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from hscc_search.compression.calibration.activation import Bounds
from hscc_search.compression.calibration.lattice import choose_lattice, positions_first
from hscc_search.compression.calibration.record import Inputs, LayerRecord
from hscc_search.errors import CompressionError


class _Keeper:
    """What is gathered of one layer while the calibration images pass."""

    def __init__(self, name: str, layer: nn.Conv2d | nn.Linear, file: Path, images: torch.Tensor) -> None:
        self.name = name
        self.layer, self.file, self.images = layer, file, len(images)
        self.seen = 0
        self.moments: _Moments | None = None

    def _maps(self, output: torch.Tensor) -> torch.Tensor:
        """Responses as (images, Cout, height, width); a fully connected layer has them last."""
        if not isinstance(self.layer, nn.Linear):
            return output
        return output.movedim(-1, 1) if output.dim() == 4 else output[:, :, None, None]

    def _on_lattice(self, maps: torch.Tensor) -> torch.Tensor:
        rows = slice(self.lattice.start, None, self.lattice.step)
        return positions_first(maps[:, :, rows, rows])

    def keep(self, output: torch.Tensor) -> None:
        """Write responses to the file, and add up activations."""
        maps = self._maps(output)
        if self.seen == 0:
            self.lattice = choose_lattice(*maps.shape[2:])
            self.profiles = torch.zeros(maps.shape[1:], dtype=torch.float64, device=maps.device)
            shape = (self.lattice.positions, self.images, maps.shape[1])
            self.squares = torch.zeros(shape[0], shape[2], dtype=torch.float64, device=output.device)
            self.written = np.lib.format.open_memmap(self.file, "w+", np.float32, shape)
        self.profiles += maps.relu().sum(dim=0)
        kept = self._on_lattice(maps)
        if not torch.isfinite(kept).all():
            raise CompressionError(
                f"layer {self.name} answers with values that are not finite: the dense network is broken"
            )
        self.written[:, self.seen : self.seen + len(output)] = kept.float().cpu().numpy()
        self.seen += len(output)

    def add_gradient(self, gradient: torch.Tensor) -> None:
        """Add up squared gradients."""
        self.squares += self._on_lattice(self._maps(gradient)).square().sum(dim=1)

    def add_input(self, x: torch.Tensor) -> None:
        """Add up products of input channels, at one position and with the next one."""
        if not isinstance(self.layer, nn.Conv2d) or self.layer.kernel_size == (1, 1) or x.shape[3] < 2:
            return
        step = choose_lattice(*x.shape[2:]).step
        here = x[:, :, ::step, :-1:step].movedim(1, -1).flatten(0, 2)
        right = x[:, :, ::step, 1::step].movedim(1, -1).flatten(0, 2)
        if self.moments is None:
            self.moments = _Moments((x.shape[2], x.shape[3]), x.shape[1], x.device)
        self.moments.add(here, right)

    def record(self, macs: int, bounds: Bounds | None) -> LayerRecord:
        """All of it, with the file complete."""
        self.written.flush()
        effects = (self.squares / self.seen).sqrt().float()
        if not effects.sum() > 0:  # the loss depends on nothing here: all count alike
            effects = torch.ones_like(effects)
        return LayerRecord(
            name=self.name,
            lattice=self.lattice,
            effects=effects,
            profiles=(self.profiles / self.seen).float().cpu(),
            inputs=self.moments.inputs() if self.moments is not None else None,
            macs=macs,
            groups=getattr(self.layer, "groups", 1),
            fully_connected=isinstance(self.layer, nn.Linear),
            bounds=bounds,
            file=self.file,
        )


class _Moments:
    """Sums over input positions that give an :class:`Inputs`."""

    def __init__(self, size: tuple[int, int], channels: int, device: torch.device) -> None:
        self.size, self.count = size, 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self.squares = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self.products = torch.zeros(channels, dtype=torch.float64, device=device)
        self.outer = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def add(self, here: torch.Tensor, right: torch.Tensor) -> None:
        """Add positions and their right neighbours, both (positions, Cin)."""
        self.count += len(here)
        self.outer += here.T @ here
        self.products += (here * right).sum(dim=0)
        for index, values in enumerate((here, right)):
            self.sums[index] += values.sum(dim=0)
            self.squares[index] += values.square().sum(dim=0)

    def inputs(self) -> Inputs:
        """The statistics."""
        means = self.sums / self.count
        variances = (self.squares / self.count - means.square()).clamp(min=0)
        shared = self.products / self.count - means[0] * means[1]
        scale = variances.prod(dim=0).sqrt().sum()
        correlation = float(shared.sum() / scale) if scale > 0 else 0.0
        covariance = self.outer / self.count - torch.outer(means[0], means[0])
        return Inputs(self.size, covariance, min(1.0, max(0.0, correlation)))
