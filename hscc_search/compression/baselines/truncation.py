"""Weights truncated to low rank, with any rule for the ranks."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from hscc_search.compression.baselines.ladder import Ladder, allocate
from hscc_search.compression.baselines.low_rank import truncated_pair
from hscc_search.compression.baselines.targets import Target, targets
from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.stand_ins import replaced


@torch.no_grad()
def truncate_weights(
    method: str, calibration: Calibration, budget: float, ladder_of: Callable[[Target], Ladder]
) -> nn.Module:
    """Truncate the weights of every layer to the ranks that a budget allows.

    Args:
        method: its name, for messages.
        calibration: of the dense network. Only its costs are used. It remembers the ladders, which serve every budget
            and take a minute to build where layers have thousands of inputs.
        budget: dense over compressed multiply-adds, 1 or more.
        ladder_of: builds the ladder of one layer, with ranks (rank,) or (rank, groups), see :func:`truncated_pair`.

    Raises:
        CompressionError: the budget is out of reach.
    """
    layers = {target.name: target for target in targets(calibration)}
    ladders = {
        name: calibration.remember((method, name), partial(ladder_of, target)) for name, target in layers.items()
    }
    chosen = allocate(method, calibration.macs, budget, ladders)
    pairs = {name: truncated_pair(layers[name].layer, *ranks) for name, ranks in chosen.items()}
    return replaced(calibration.network, pairs)
