"""Weights truncated to low rank, whatever rule the ranks come from."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from hscc_search.compression.baselines.ladder import Ladder, allocate
from hscc_search.compression.baselines.low_rank import truncated_pair, with_layers
from hscc_search.compression.baselines.targets import Target, dense_macs, targets
from hscc_search.compression.calibration.calibrate import Calibration


@torch.no_grad()
def truncate_weights(
    method: str,
    network: nn.Module,
    calibration: Calibration,
    budget: float,
    ladder_of: Callable[[Target], Ladder],
) -> nn.Module:
    """Truncate every layer's weights to the forms that a budget allows.

    Args:
        method: its name, for messages.
        network: the dense network; it is not changed.
        calibration: of it; its costs are used, and it keeps the ladders, which take a minute where layers have
            thousands of inputs and serve every budget.
        budget: dense over compressed multiply-adds, 1 or more.
        ladder_of: the (rank,) or (rank, groups) of one layer, see :func:`truncated_pair`.

    Raises:
        CompressionError: the budget is out of reach.
    """
    found = targets(network, calibration)
    ladders = {target.name: calibration.remember((method, target.name), partial(ladder_of, target)) for target in found}
    forms = allocate(method, dense_macs(calibration), budget, ladders)
    return with_layers(
        network,
        {target.name: truncated_pair(target.layer, *forms[target.name]) for target in found if target.name in forms},
    )
