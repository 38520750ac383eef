"""Whole channels taken out, the least important of each layer first."""

import copy

import torch
import torch_pruning
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from hscc_search.compression.baselines.ladder import allowance, check_reach
from hscc_search.compression.calibration.calibrate import Calibration

# Each step takes out this share of the channels, and where the budget is this far away, so many steps are one.
_STEPS = 200
_FAR, _STRIDE = 1.25, 8
# After so many steps the gradients are taken anew.
_STEPS_PER_GRADIENT = 10
_BATCH = 64
# Images that the gradients are taken on, at most: each time costs a backward pass over them.
_IMAGES = 256


def compress_pruning(network: nn.Module, calibration: Calibration, budget: float) -> nn.Module:
    """Take channels out in small steps until the budget is met, with the torch-pruning library.

    A channel goes together with everything that depends on it - batch norm, skip connections, depthwise filters, the
    next layer's inputs. The importance of such a group is its first-order Taylor estimate, |weight * gradient| summed,
    and every layer loses the same share of its groups: ranked over the whole network, layers that matter are emptied
    (AlexNet at 3x: 0.31 of the test images right, against 0.87). The loss is the cross entropy with the dense
    network's own decisions, so no labels are needed. The outputs of the last layer stay.

    Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning" (arXiv 2301.12900); Molchanov et al. 2019,
    "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771).

    Args:
        network: the dense network.
        calibration: of it; its images are used.
        budget: dense over compressed multiply-adds, 1 or more.

    Raises:
        CompressionError: the budget is out of reach.
    """
    images = calibration.images[:: -(-len(calibration.images) // _IMAGES)]
    result = copy.deepcopy(network).eval()
    dense, last = _look(result, images[:1])
    room = allowance(dense, budget)
    trainable = {name: parameter.requires_grad for name, parameter in result.named_parameters()}
    with torch.no_grad():
        decisions = torch.cat([result(part).argmax(dim=1) for part in images.split(_BATCH)])
    with torch.enable_grad():  # the library follows the gradients' graph
        result.requires_grad_(True)
        pruner = torch_pruning.pruner.BasePruner(
            result,
            images[:1],
            importance=torch_pruning.importance.GroupTaylorImportance(),
            pruning_ratio=1.0,
            iterative_steps=_STEPS,
            ignored_layers=[last],
        )
        # With one channel per group left, the library would take these for depthwise ones and fail.
        grouped = [
            each for each in result.modules() if isinstance(each, nn.Conv2d) and 1 < each.groups < each.in_channels
        ]
        macs, graded = dense, -_STEPS
        while macs > room and pruner.current_step < _STEPS and all(each.in_channels > each.groups for each in grouped):
            if pruner.current_step - graded >= _STEPS_PER_GRADIENT:
                _take_gradients(result, images, decisions)
                graded = pruner.current_step
            if macs > _FAR * room:
                pruner.current_step = min(pruner.current_step + _STRIDE, _STEPS) - 1
            pruner.step()
            macs, _ = _look(result, images[:1])
    check_reach("pruning", dense, macs, budget)
    result.zero_grad(set_to_none=True)
    for name, parameter in result.named_parameters():
        parameter.requires_grad_(trainable[name])
    return result.eval()


def _take_gradients(network: nn.Module, images: torch.Tensor, decisions: torch.Tensor) -> None:
    network.zero_grad(set_to_none=True)
    for part, decided in zip(images.split(_BATCH), decisions.split(_BATCH), strict=True):
        functional.cross_entropy(network(part), decided, reduction="sum").backward()


@torch.no_grad()
def _look(network: nn.Module, image: torch.Tensor) -> tuple[int, nn.Module]:
    """Multiply-adds of one image, and the last layer that was called."""
    called: list[nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output: called.append(layer))
        for layer in network.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    try:
        with FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() // 2, called[-1]
