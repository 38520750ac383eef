"""The layers that the peers compress."""

from dataclasses import dataclass

import torch
from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord


@dataclass(frozen=True)
class Target:
    """One convolution of a single group, or one fully connected layer.

    Attributes:
        record: the calibration's record of the layer.
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
        """Number of output positions per image at which the layer's filters are applied."""
        return self.macs // self.layer.weight.numel()

    @property
    def channels(self) -> int:
        """Number of input channels or features."""
        return self.layer.in_channels if isinstance(self.layer, nn.Conv2d) else self.layer.in_features

    @property
    def weight(self) -> torch.Tensor:
        """The weights as a matrix, float64 (Cout, D), D = Cin * height * width with the channels slowest."""
        return self.layer.weight.detach().flatten(1).double()

    @property
    def macs_per_rank(self) -> int:
        """Multiply-adds per image of one basis filter and its recombination."""
        return self.positions * sum(self.layer.weight.flatten(1).shape)


def targets(calibration: Calibration) -> list[Target]:
    """List the layers of the calibrated network that peers compress, in execution order.

    Grouped convolutions stay dense, and so do the tiny layers that HSCC leaves dense: truncating a last layer of few
    classes would save nothing and cost the peers much accuracy.
    """
    chosen = []
    for record in calibration.records:
        layer = calibration.network.get_submodule(record.name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        if isinstance(layer, nn.Linear) or layer.groups == 1:
            chosen.append(Target(record, layer))
    return chosen
