"""The cost of a block of a layer, by its rank and by the number of input channels that its filters see.

Beside it the values that a divided map copies: no multiply-adds, but time in every runtime.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.division.partition import Block, Partition
from hscc_search.compression.division.regions import pieces
from hscc_search.compression.layers import kernel_reach
from hscc_search.compression.setting import BudgetOf


@dataclass(frozen=True)
class BlockCost:
    """The cost of one block: multiply-adds per image, or parameters.

    Attributes:
        block: the block.
        input_channels: number of input channels of its group.
        taps: number of positions of the kernel: a dense filter reads D = input_channels * taps numbers.
        input_area: number of positions of the layer's input map, 0 where no encoder is possible.
        of: the cost that is counted; ``flops`` counts multiply-adds.
    """

    block: Block
    input_channels: int
    taps: int
    input_area: int
    of: BudgetOf

    @property
    def output_channels(self) -> int:
        """Output channels of the block."""
        return len(self.block.clusters)

    @property
    def dense(self) -> int:
        """Cost of the dense filters."""
        return int(self._cost(self.dense_weights))

    def factored(self, total_ranks: np.ndarray, input_rank: int | None) -> np.ndarray:
        """Compute the cost of basis filters and recombination.

        Args:
            total_ranks: int64 (options,).
            input_rank: number of channels that the input is brought to, None where the filters see all channels.

        Returns:
            int64 (options,).
        """
        return np.asarray(self._cost(self.weights(total_ranks, input_rank)))

    def of_ranks(self, total_rank: int | None, input_rank: int | None) -> int:
        """The cost at one rank; None stands for the dense filters."""
        return self.dense if total_rank is None else int(self.factored(np.array([total_rank]), input_rank)[0])

    def weights(self, total_ranks: np.ndarray, input_rank: int | None) -> np.ndarray:
        """Count the weights of basis filters and recombination, without the encoder's, int64 (options,)."""
        inputs = (self.input_channels if input_rank is None else input_rank) * self.taps
        return np.asarray(total_ranks * (inputs + self.output_channels))

    @property
    def dense_weights(self) -> int:
        """Number of weights of the dense filters."""
        return self.input_channels * self.taps * self.output_channels

    def encoder(self, input_rank: int | None) -> int:
        """The cost of bringing the group's input to fewer channels, which serves all regions; None for no encoder."""
        if input_rank is None:
            return 0
        return input_rank * self.input_channels * (self.input_area if self.of == "flops" else 1)

    def _cost(self, weights: np.ndarray | int) -> np.ndarray | int:
        if self.of == "flops":
            return weights * self.block.area
        return weights + self.output_channels  # with the bias


def block_costs(
    calibration: Calibration, record: LayerRecord, partition: Partition, of: BudgetOf
) -> list[list[BlockCost]]:
    """The costs of a divided layer: a list for each group, with one cost for each of its blocks."""
    layer = calibration.network.get_submodule(record.name)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    input_channels = layer.weight.shape[1]
    taps = layer.weight[0, 0].numel()
    input_area = math.prod(record.inputs.size) if record.inputs is not None else 0
    return [[BlockCost(block, input_channels, taps, input_area, of) for block in blocks] for blocks in partition.blocks]


@dataclass(frozen=True)
class Copies:
    """The values that are copied where a map is divided: each piece is cut out of the input, and joined to the output.

    Attributes:
        inputs: number of input positions that the pieces see, with those that several see; 0 if there is one piece.
    """

    inputs: int

    @classmethod
    def of_layer(cls, calibration: Calibration, record: LayerRecord, partition: Partition) -> "Copies":
        """Count the input positions of a layer's pieces."""
        layer, cut = calibration.network.get_submodule(record.name), pieces(partition.labels)
        if len(cut) == 1 or not isinstance(layer, nn.Conv2d):
            return cls(0)
        spans = [(piece.bottom - piece.top, piece.right - piece.left) for piece in cut]
        (down, right), (tall, wide) = layer.stride, kernel_reach(layer)
        return cls(sum(((rows - 1) * down + tall) * ((columns - 1) * right + wide) for rows, columns in spans))

    def of(self, costs: Sequence[BlockCost], input_rank: int | None) -> int:
        """The number of values that one group copies at an input rank, in and out."""
        if not self.inputs:
            return 0
        channels = costs[0].input_channels if input_rank is None else input_rank
        return self.inputs * channels + sum(cost.block.area * cost.output_channels for cost in costs)
