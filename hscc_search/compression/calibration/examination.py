"""The examination of a network before it is calibrated: what it costs, and which of its layers can be compressed."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from hscc_search.compression.calibration.agreement import Answers
from hscc_search.compression.calibration.batch_norm import fold_batch_norms
from hscc_search.compression.calibration.eligible import ExaminedLayer, examine_layers
from hscc_search.compression.calibration.lattice import choose_lattice
from hscc_search.compression.calibration.maps import map_size
from hscc_search.compression.calibration.plain_layers import make_plain
from hscc_search.compression.calibration.self_check import check_replacing
from hscc_search.compression.form import Fold, PlainLayer
from hscc_search.compression.inspection import InspectedLayer, Inspection
from hscc_search.compression.stand_ins import copied
from hscc_search.dense.checked import check_network
from hscc_search.dense.weights import check_values, learnt
from hscc_search.evaluation.counters import count_macs

# Share of the network's multiply-adds below which a layer is not worth an approximation.
TINY_SHARE = 1e-4


@dataclass(frozen=True)
class Examined:
    """A network that was examined.

    Attributes:
        network: a copy in evaluation mode, with its layers made plain and its batch norms folded.
        plain: the layers whose weight is computed no longer.
        folds: the folded batch norms.
        layers: the examination of each Conv2d and Linear, in execution order.
        others: multiply-adds per image of each other module that multiplies and adds itself, by its path.
        macs: multiply-adds per image of the whole network, counted while it ran.
        error: of the self-check, see :class:`hscc_search.compression.calibration.self_check.SelfCheck`.
        vary: whether answers to different images differ, so that the self-check can find a fault.
    """

    network: nn.Module
    plain: tuple[PlainLayer, ...]
    folds: tuple[Fold, ...]
    layers: dict[str, ExaminedLayer]
    others: dict[str, int]
    macs: int
    error: float
    vary: bool


def examine(network: nn.Module, images: torch.Tensor) -> Examined:
    """Make a network's layers plain, fold its batch norms, count its cost, and check that its layers can be replaced.

    Args:
        network: the dense network; it is not changed.
        images: as it takes them, float32 (images, channels, height, width); a few of them are used.

    Raises:
        ModelError: a weight is not finite, or the network is none whose answers depend on the image alone.
        CompressionError: the network cannot be compressed.
    """
    name = f"the dense network {type(network).__name__}"
    check_values(learnt(network), name)
    check_network(network, torch.cat([images[:1], images[-1:].flip(-1)]), type(network).__name__)
    answers = Answers(network, images)
    if not answers.finite:
        check_values(network.state_dict(), name)  # a buffer may be infinite by intent, as a bound of a clamp is
    answers.check_copy(copied(network))
    plain_network, plain = make_plain(network, images[:1], answers)
    folded, folds = fold_batch_norms(plain_network, images[:1], answers)
    layers = {name: layer for name, layer in folded.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    examined = examine_layers(folded, layers, images[:1])
    counts = count_macs(folded, images[:1])
    for name, layer in examined.items():
        counted = counts.get(name, 0) - sum(counts.get(inner, 0) for inner in layers if inner.startswith(f"{name}."))
        reason = layer.reason
        if reason is None and counted != layer.macs:
            reason = f"it takes {counted:,} multiply-adds, and not {layer.macs:,}"
        elif reason is None and counted < TINY_SHARE * counts[""]:
            reason = "tiny"
        examined[name] = replace(layer, macs=counted, reason=reason)
    sizes = {
        name: map_size(layers[name], layer.output_shape) for name, layer in examined.items() if layer.reason is None
    }
    checked = check_replacing(folded, sizes, answers)
    for name, misfit in checked.misfits.items():
        examined[name] = replace(examined[name], reason=misfit)
    return Examined(
        folded, plain, folds, examined, _others(folded, counts, examined), counts[""], checked.error, answers.vary
    )


def _others(network: nn.Module, counts: Mapping[str, int], layers: Container[str]) -> dict[str, int]:
    """The multiply-adds of modules that are none of the layers, without those of the modules inside."""
    others = {}
    names = {id(module): name for name, module in network.named_modules()}
    for name, module in network.named_modules():
        inside = sum(counts.get(names[id(child)], 0) for child in module.children())  # whatever it is called elsewhere
        own = counts.get(name, 0) - inside
        if name and name not in layers and own > 0:
            others[name] = own
    return others


def inspect(network: nn.Module, images: torch.Tensor) -> Inspection:
    """Inspect a network layer by layer, before anything is compressed: what it costs and what can be compressed.

    Args:
        network: the dense network; it is not changed.
        images: as it takes them, float32 (images, channels, height, width), as many as are meant for calibration.

    Raises:
        ModelError: a weight is not finite, or the network is none whose answers depend on the image alone.
        CompressionError: the network cannot be compressed.
    """
    return inspection_of(examine(network, images), len(images))


def inspection_of(examined: Examined, images: int) -> Inspection:
    """Gather what was found about a network.

    Args:
        examined: the network.
        images: number of images that it is to be calibrated on.
    """
    inspected = []
    for name, layer in examined.layers.items():
        module = examined.network.get_submodule(name)
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        positions = choose_lattice(*map_size(module, layer.output_shape)).positions if layer.reason is None else 0
        inspected.append(
            InspectedLayer(
                name=name,
                kind=_kind(module),
                macs=layer.macs,
                parameters=sum(parameter.numel() for parameter in module.parameters()),
                output=tuple(layer.output_shape[1:]),
                left_dense=layer.reason,
                samples=positions * images,
                channels=len(module.weight) // getattr(module, "groups", 1),
            )
        )
    for name, macs in examined.others.items():
        module = examined.network.get_submodule(name)
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        inspected.append(InspectedLayer(name, _kind(module), macs, own, (), _why_other(module), 0, 0))
    parameters = sum(parameter.numel() for parameter in examined.network.parameters())
    return Inspection(tuple(inspected), examined.macs, parameters, examined.error, images, examined.vary)


def _kind(layer: nn.Module) -> str:
    name = type(layer).__name__
    return f"{name} {'x'.join(map(str, layer.kernel_size))}" if isinstance(layer, _ConvNd) else name


def _why_other(module: nn.Module) -> str:
    """Why a module that is neither Conv2d nor Linear stays dense."""
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution"
    if isinstance(module, _ConvNd):
        return "a convolution of something else than maps"
    return "its own forward pass multiplies and adds, outside of layers"
