"""The expected loss of a block's ranks, before anything is fitted.

A dropped direction is taken to lose its variance, weighted by the effects and summed over positions: twice the rise of
the network's loss to second order, if errors at different positions are independent. The losses of dropped directions
of the response and of the input add up.
"""

import numpy as np
import torch
from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.record import LayerRecord, region_effects
from hscc_search.compression.division.partition import Block
from hscc_search.compression.input_axes import input_metric
from hscc_search.compression.ranks.costs import BlockCost

# Number of input ranks that are tried, evenly spaced and multiples like total ranks.
_INPUT_RANKS = 16
# Weight of the loss of dropped input directions: the fit makes up for less of it.
_INPUT_WEIGHT = 2.0


def rank_losses(block: Block, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """The total ranks that a block may have where it is factored, and their losses.

    Args:
        block: the block.
        multiple: divisor of all total ranks.

    Returns:
        Total ranks, int64 (ranks,), ascending, and the loss of each, float64 (ranks,).
    """
    spectrum = torch.cat(block.eigenvalues).sort(descending=True).values.cpu().numpy()
    losses = _tails(spectrum) * block.area
    # A rank beyond the last positive eigenvalue gains nothing.
    positive = max(1, int(np.count_nonzero(spectrum)))
    highest = min(len(block.clusters), -(-positive // multiple) * multiple)
    total_ranks = np.arange(multiple, highest + 1, multiple)
    return total_ranks, losses[total_ranks - 1]


def input_ranks(record: LayerRecord, input_channels: int, multiple: int) -> list[int | None]:
    """The numbers of channels that the input of a group may be brought to; the first is None, for all of them."""
    if record.inputs is None or input_channels < 2:
        return [None]
    step = -(-input_channels // (_INPUT_RANKS * multiple)) * multiple
    return [None, *range(step, input_channels, step)]


def input_loss(calibration: Calibration, record: LayerRecord, cost: BlockCost, input_rank: int | None) -> float:
    """The loss of a block whose input is brought to fewer channels; 0 where it keeps all of them."""
    if input_rank is None:
        return 0.0
    block = cost.block
    spectrum = calibration.remember(
        ("input spectrum", record.name, block.channels.start), lambda: _input_spectrum(calibration, record, cost)
    )
    losses = _tails(spectrum * float(block.effects.square().sum())) * block.area * _INPUT_WEIGHT
    return float(losses[input_rank - 1])


def _tails(spectrum: np.ndarray) -> np.ndarray:
    """The variance that each rank from 1 on drops: the sum of the eigenvalues behind it, which are descending."""
    tails: np.ndarray = np.maximum(spectrum.sum() - np.cumsum(spectrum), 0)
    return tails


def _input_spectrum(calibration: Calibration, record: LayerRecord, cost: BlockCost) -> np.ndarray:
    """Compute the weighted variance of a group's responses along each axis of its input channels.

    The weights are the effects over the whole map, scaled to a sum of squares of 1. The effects in one region differ
    from them in hardly more than scale.

    Returns:
        float64 (Cin,), descending.
    """
    assert record.inputs is not None
    layer = calibration.network.get_submodule(record.name)
    assert isinstance(layer, nn.Conv2d)
    channels = cost.block.channels
    effects = region_effects(record.effects, channels=channels)
    effects = effects / effects.norm()
    metric = input_metric(layer.weight.detach()[channels], effects, record.inputs.correlation)
    group = channels.start // cost.output_channels
    root = _input_root(record, slice(group * cost.input_channels, (group + 1) * cost.input_channels))
    spectrum: np.ndarray = torch.linalg.eigvalsh(root.T @ metric @ root).flip(0).clamp(min=0).cpu().numpy()
    return spectrum


def _input_root(record: LayerRecord, channels: slice) -> torch.Tensor:
    """Compute R with R R^T the covariance of one group's input channels, float64 (Cin, Cin)."""
    assert record.inputs is not None
    values, axes = torch.linalg.eigh(record.inputs.covariance[channels, channels])
    root: torch.Tensor = axes * values.clamp(min=0).sqrt()
    return root
