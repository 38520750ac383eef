"""The layers that the peers compress."""

from dataclasses import dataclass

import torch
from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.ranks.choice import TINY_SHARE


@dataclass(frozen=True)
class Target:
    """One ordinary convolution or fully connected layer.

    Attributes:
        record: what the calibration says of it.
        layer: the dense layer itself, to be read and not changed.
    """

    record: LayerRecord
    layer: nn.Conv2d | nn.Linear

    @property
    def name(self) -> str:
        """The layer's path in the network."""
        return self.record.name

    @property
    def macs(self) -> int:
        """Multiply-adds per image of the dense layer."""
        return self.record.macs

    @property
    def positions(self) -> int:
        """How often per image the layer's filters are applied."""
        return self.macs // self.layer.weight.numel()

    @property
    def channels(self) -> int:
        """Input channels or features."""
        return self.layer.in_channels if isinstance(self.layer, nn.Conv2d) else self.layer.in_features

    @property
    def weight(self) -> torch.Tensor:
        """Float64 (Cout, D), D = Cin * height * width: channels are the slowest part of a column's index."""
        return self.layer.weight.detach().flatten(1).double()

    @property
    def macs_per_rank(self) -> int:
        """Multiply-adds per image of one basis filter and its recombination."""
        return self.positions * sum(self.layer.weight.flatten(1).shape)


def targets(network: nn.Module, calibration: Calibration) -> list[Target]:
    """What is compressed in a network, in execution order.

    Grouped convolutions stay dense, and so do the tiny layers that HSCC leaves alone: to truncate a last layer of few
    classes would save nothing and cost the peers much.

    Args:
        network: the one that was calibrated, with or without its batch norms folded.
        calibration: of it.
    """
    total = dense_macs(calibration)
    found = []
    for record in calibration.records:
        layer = network.get_submodule(record.name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        ordinary = isinstance(layer, nn.Linear) or layer.groups == 1
        if ordinary and record.macs >= TINY_SHARE * total:
            found.append(Target(record, layer))
    return found


def dense_macs(calibration: Calibration) -> int:
    """Multiply-adds per image of all convolutions and fully connected layers of the dense network."""
    return sum(record.macs for record in calibration.records) + sum(macs for macs, _ in calibration.left_dense.values())
