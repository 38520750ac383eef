"""Channel pruning: whole channels are taken out, the least important of each layer first."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch_pruning
from torch import nn
from torch.nn import functional

from hscc_search.compression.baselines.ladder import allowance, check_reach
from hscc_search.compression.calibration.calibrate import BATCH_SIZE, Calibration
from hscc_search.compression.calibration.hooks import hooked
from hscc_search.compression.stand_ins import copied
from hscc_search.dense.trainable import make_trainable
from hscc_search.errors import CompressionError, one_line
from hscc_search.evaluation.counters import count_macs

# Steps from the dense network to an empty one; each takes out the same share of the channels.
_STEPS = 200
# While the network needs this many times the multiply-adds of the budget, several steps are taken at once.
_FAR, _STEPS_AT_ONCE = 1.25, 8
# Number of steps after which the gradients are computed anew.
_STEPS_PER_GRADIENT = 10
# Most images that the gradients are computed on, since each time costs a backward pass over them.
_IMAGES = 256


def compress_pruning(calibration: Calibration, budget: float) -> nn.Module:
    """Take channels out in small steps until the budget is met, with the torch-pruning library.

    A channel goes together with everything that depends on it - batch norm, skip connections, depthwise filters, the
    next layer's inputs. The importance of such a group is its first-order Taylor estimate, |weight * gradient| summed,
    and every layer loses the same share of its groups: ranked over the whole network, layers that matter are emptied
    (AlexNet at 3x: 0.31 of the test images right, against 0.87). The loss is the cross entropy with the dense
    network's own decisions, so no labels are needed. The outputs of the last layer stay.

    Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning" (arXiv 2301.12900); Molchanov et al. 2019,
    "Importance Estimation for Neural Network Pruning" (arXiv 1906.10771).

    Args:
        calibration: of the dense network; its images are used.
        budget: dense over compressed multiply-adds, 1 or more.

    Raises:
        CompressionError: the budget is out of reach, or torch-pruning cannot follow the network.
    """
    images = calibration.images[:: -(-len(calibration.images) // _IMAGES)]
    network = copied(calibration.network)
    dense, last_layer = _macs_and_last_layer(network, images[:1])
    room = allowance(dense, budget)
    with _all_trainable(network):
        try:
            macs = _prune(network, last_layer, images, dense, room)
        except Exception as error:  # of tokens and reshaped maps the library mistakes channels, which shows as anything
            raise CompressionError(
                f"torch-pruning cannot follow {type(network).__name__}: {one_line(error, with_type=True)}"
            ) from error
    check_reach("pruning", dense, macs, budget)
    return network.eval()


@contextmanager
def _all_trainable(network: nn.Module) -> Iterator[None]:
    """Let all parameters have gradients inside a ``with`` block; then remove these, and freeze frozen ones again."""
    trainable = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    with torch.enable_grad():  # torch-pruning follows the graph of the gradients
        make_trainable(network)
        yield
    network.zero_grad(set_to_none=True)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trainable.get(name, True))  # tied weights part when channels go


def _prune(network: nn.Module, last_layer: nn.Module, images: torch.Tensor, dense: int, room: int) -> int:
    """Prune a network, in place, until it fits into the room or nothing is left to take out.

    Args:
        network: the dense network.
        last_layer: keeps its outputs.
        images: for the gradients.
        dense: multiply-adds per image of the dense network.
        room: multiply-adds per image that are allowed.

    Returns:
        Multiply-adds per image of the pruned network.
    """
    decisions = _decisions(network, images)
    pruner = torch_pruning.pruner.BasePruner(
        network,
        images[:1],
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio=1.0,
        iterative_steps=_STEPS,
        ignored_layers=[last_layer],
    )
    # The library would take a grouped convolution with one channel per group left for a depthwise one, and fail.
    grouped = [
        layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and 1 < layer.groups < layer.in_channels
    ]
    macs, step_of_gradients = dense, -_STEPS
    while macs > room and pruner.current_step < _STEPS and all(layer.in_channels > layer.groups for layer in grouped):
        if pruner.current_step - step_of_gradients >= _STEPS_PER_GRADIENT:
            _compute_gradients(network, images, decisions)
            step_of_gradients = pruner.current_step
        if macs > _FAR * room:
            pruner.current_step = min(pruner.current_step + _STEPS_AT_ONCE, _STEPS) - 1
        pruner.step()
        macs, _ = _macs_and_last_layer(network, images[:1])
    return macs


@torch.no_grad()
def _decisions(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The class that the network decides for, one for each image."""
    return torch.cat([network(batch.clone()).argmax(dim=1) for batch in images.split(BATCH_SIZE)])


def _compute_gradients(network: nn.Module, images: torch.Tensor, decisions: torch.Tensor) -> None:
    network.zero_grad(set_to_none=True)
    for batch, decided in zip(images.split(BATCH_SIZE), decisions.split(BATCH_SIZE), strict=True):
        functional.cross_entropy(network(batch.clone()), decided, reduction="sum").backward()


@torch.no_grad()
def _macs_and_last_layer(network: nn.Module, image: torch.Tensor) -> tuple[int, nn.Module]:
    """Multiply-adds of one image, and the convolution or fully connected layer that runs last."""
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    names: list[str] = []
    with hooked(layers, after=lambda name, inputs, output: names.append(name)):
        macs = count_macs(network, image)[""]
    return macs, layers[names[-1]]
