"""The pass of the dense network over the calibration images, forwards and backwards."""

import contextlib
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from hscc_search.compression.calibration.activation import activation_bounds
from hscc_search.compression.calibration.examination import examine, inspection_of
from hscc_search.compression.calibration.gather import LayerStatistics, response_bytes
from hscc_search.compression.calibration.hooks import Inputs, hooked
from hscc_search.compression.calibration.store import StoredCalibration
from hscc_search.dense.trainable import make_trainable
from hscc_search.errors import CompressionError
from hscc_search.files import check_room
from hscc_search.progress import Progress, Report


def run_dense(
    network: nn.Module, images: torch.Tensor, folder: Path, report: Report, batch_size: int
) -> tuple[nn.Module, StoredCalibration]:
    """Run the dense network over the calibration images and gather what they tell of each layer.

    Args:
        network: the dense network; it is not changed.
        images: as it takes them, float32 (images, channels, height, width).
        folder: for the files of the responses.
        report: told after each batch.
        batch_size: images per batch.

    Returns:
        A copy of the network with its layers made plain and its batch norms folded, and what was gathered.

    Raises:
        ModelError: a weight is not finite, or the network is none whose answers depend on the image alone.
        CompressionError: a response is not finite, or nothing can be compressed.
        DiskFullError: there is no room for the responses.
    """
    examined = examine(network, images)
    network = examined.network.requires_grad_(False)  # only the gradients of the responses are needed
    eligible: dict[str, nn.Conv2d | nn.Linear] = {
        name: network.get_submodule(name)  # type: ignore[misc]
        for name, layer in examined.layers.items()
        if layer.reason is None
    }
    if not eligible:
        reasons = [f"{name}: {layer.reason}" for name, layer in examined.layers.items()]
        raise CompressionError(
            "the network has no convolution or fully connected layer that can be compressed "
            f"({'; '.join(reasons[:3]) or 'it has none'})"
        )
    needed = sum(response_bytes(layer, examined.layers[name], len(images)) for name, layer in eligible.items())
    check_room(folder, needed, f"the responses of {len(eligible)} layers to {len(images)} images")
    statistics = {
        name: LayerStatistics(name, layer, examined.layers[name], len(images), folder / f"{number}.npy")
        for number, (name, layer) in enumerate(eligible.items())
    }
    _run_batches(network, images.split(batch_size), eligible, statistics, report)
    bounds = activation_bounds(network, eligible, images[:1].clone())
    make_trainable(network)
    records = tuple(layer.record(bounds.get(name)) for name, layer in statistics.items())
    inspection = inspection_of(examined, len(images))
    return network, StoredCalibration(images, examined.plain, examined.folds, records, inspection)


def _run_batches(
    network: nn.Module,
    batches: tuple[torch.Tensor, ...],
    layers: dict[str, nn.Conv2d | nn.Linear],
    statistics: dict[str, LayerStatistics],
    report: Report,
) -> None:
    """Run all batches forwards and backwards, and add each layer's tensors to its statistics."""
    images = 0  # of the batch that passes now

    def gather(name: str, inputs: Inputs, output: torch.Tensor) -> None:
        layer = statistics[name]
        layer.add_output(output.detach(), images)
        layer.add_input(inputs[0].detach())
        # A hook on the tensor, since an activation in place would change what a module's own hook sees.
        if output.requires_grad:
            output.register_hook(partial(layer.add_gradient, images=images))

    generator = torch.Generator().manual_seed(0)
    backwards = _backwards(network, batches[0][:2])
    done, total = 0, sum(len(batch) for batch in batches)
    for batch in batches:
        images = len(batch)
        # Whoever calls may have switched gradients off.
        with torch.set_grad_enabled(backwards is not None), backwards or contextlib.nullcontext():
            with hooked(layers, after=gather):
                output = network(_copy(batch))
            _run_backwards(output, generator)
        done += len(batch)
        for layer in statistics.values():
            if layer.seen != done:
                raise CompressionError(f"layer {layer.name} is not called once for each image of a batch")
        report(Progress("calibrating", done, total))


def _backwards(network: nn.Module, images: torch.Tensor) -> AbstractContextManager[Any] | None:
    """Find a context in which a pass backwards works, by trying it on a few images; None where none does.

    What runs forwards need not run backwards: an operation in place may overwrite what a gradient is computed from.
    torch then keeps a copy, which costs time, so that this is the second choice.
    """
    for context in (contextlib.nullcontext(), allow_mutation_on_saved_tensors()):
        try:
            with torch.enable_grad(), context:
                _run_backwards(network(_copy(images)), torch.Generator())
        except Exception:  # whatever a network or its own gradients raise
            continue
        return context if isinstance(context, contextlib.nullcontext) else _Mutable()
    return None


class _Mutable:
    """A context of torch's that allows operations in place, and that can be entered again and again."""

    def __enter__(self) -> None:
        self._context = allow_mutation_on_saved_tensors()
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def _copy(images: torch.Tensor) -> torch.Tensor:
    """A copy that has a gradient where gradients are on, and that a network may change in place."""
    return images.detach().clone().requires_grad_(torch.is_grad_enabled()) + 0


def _run_backwards(output: torch.Tensor, generator: torch.Generator) -> None:
    """Run the log-likelihood of classes drawn from the network's own prediction backwards, if anything has a gradient.

    The hooks are gone by now: a network with checkpoints runs forwards once more.
    """
    # One row per decision: per image, or per position where a network returns maps.
    scores = output.float().transpose(1, -1).flatten(0, -2).log_softmax(dim=1)
    # Drawn on the CPU, so that all devices draw alike.
    shares = scores.detach().exp().nan_to_num(0, 0, 0) + 1e-12
    drawn = torch.multinomial(shares.cpu(), 1, generator=generator).to(scores.device)
    if output.requires_grad:
        scores.gather(1, drawn).sum().backward()
