"""What a block of a layer costs, by its rank and by how many channels its filters see."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.division.partition import Block


@dataclass(frozen=True)
class _Place:
    """One block and what its cost depends on.

    Attributes:
        channels: input channels of the filters.
        taps: of one filter and channel; D = channels * taps.
        input_area: input positions of the layer.
        of: what costs, a key of :data:`hscc_search.compression.setting.COSTS`.
    """

    record: LayerRecord
    block: Block
    channels: int
    taps: int
    input_area: int
    of: str

    @property
    def outputs(self) -> int:
        return len(self.block.clusters)

    def filters(self, ranks: Any, inputs: Any) -> Any:
        """Cost of basis filters and recombination.

        Args:
            ranks: total ranks, an int or an array of them; 0 stands for the dense filters.
            inputs: as many input ranks; 0 stands for all channels.
        """
        ranks, inputs = np.asarray(ranks), np.asarray(inputs)
        seen = np.where(inputs > 0, inputs, self.channels) * self.taps
        weights = np.where(ranks > 0, ranks * (seen + self.outputs), self.channels * self.taps * self.outputs)
        return weights * self.block.area if self.of == "flops" else weights + self.outputs  # the bias

    def encoder(self, inputs: Any) -> Any:
        """Cost of bringing the layer's input to so many channels, for all regions; 0 stands for all of them."""
        return np.asarray(inputs) * self.channels * (self.input_area if self.of == "flops" else 1)
