"""The pass of the dense network over the calibration images, forwards and backwards."""

from pathlib import Path

import torch
from torch import nn

from hscc_search.compression.calibration.activation import activation_bounds
from hscc_search.compression.calibration.batch_norm import fold_batch_norms
from hscc_search.compression.calibration.eligible import examine_layers
from hscc_search.compression.calibration.gather import LayerStatistics, response_bytes
from hscc_search.compression.calibration.hooks import Inputs, hooked
from hscc_search.compression.calibration.store import StoredCalibration
from hscc_search.errors import CompressionError
from hscc_search.files import check_room
from hscc_search.progress import Progress, Report


def run_dense(
    network: nn.Module, images: torch.Tensor, folder: Path, report: Report, batch_size: int
) -> tuple[nn.Module, StoredCalibration]:
    """Run the dense network over the calibration images and gather what they tell of each layer.

    Args:
        network: the dense network; it is not changed.
        images: as it takes them, float32 (images, 3, height, width).
        folder: for the files of the responses.
        report: told after each batch.
        batch_size: images per batch.

    Returns:
        A copy of the network with its batch norms folded, and what was gathered.

    Raises:
        CompressionError: a weight or a response is not finite, or nothing can be compressed.
        DiskFullError: there is no room for the responses.
    """
    _check_weights(network)
    network, folds = fold_batch_norms(network, images[:1])
    network.requires_grad_(False)  # only the gradients of the responses are needed
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    examined = examine_layers(network, layers, images[:1])
    eligible = {name: layers[name] for name, layer in examined.items() if layer.reason is None}
    if not eligible:
        raise CompressionError("the network has no convolution or fully connected layer that can be compressed")
    needed = sum(response_bytes(layer, examined[name], len(images)) for name, layer in eligible.items())
    check_room(folder, needed, f"the responses of {len(eligible)} layers to {len(images)} images")
    statistics = {
        name: LayerStatistics(name, layer, examined[name], len(images), folder / f"{number}.npy")
        for number, (name, layer) in enumerate(eligible.items())
    }
    _run_batches(network, images.split(batch_size), eligible, statistics, report)
    bounds = activation_bounds(network, eligible, images[:1])
    network.requires_grad_(True)
    records = tuple(layer.record(bounds.get(name)) for name, layer in statistics.items())
    left_dense = {name: (layer.macs, layer.reason) for name, layer in examined.items() if layer.reason is not None}
    return network, StoredCalibration(images, folds, records, left_dense)


def _check_weights(network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise CompressionError(
                f"weights {name} of the dense network are not all finite: train it again or use another checkpoint"
            )


def _run_batches(
    network: nn.Module,
    batches: tuple[torch.Tensor, ...],
    layers: dict[str, nn.Conv2d | nn.Linear],
    statistics: dict[str, LayerStatistics],
    report: Report,
) -> None:
    """Run all batches forwards and backwards, and add each layer's tensors to its statistics."""

    def gather(name: str, inputs: Inputs, output: torch.Tensor) -> None:
        layer = statistics[name]
        layer.add_output(output.detach())
        layer.add_input(inputs[0].detach())
        # A hook on the tensor, since an activation in place would change what a module's own hook sees.
        if output.requires_grad:
            output.register_hook(layer.add_gradient)

    generator = torch.Generator().manual_seed(0)
    done, total = 0, sum(len(batch) for batch in batches)
    with hooked(layers, after=gather):
        for batch in batches:
            _run_batch(network, batch, generator)
            done += len(batch)
            report(Progress("calibrating", done, total))


def _run_batch(network: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> None:
    """Run a batch forwards, and the log-likelihood of classes drawn from the network's own prediction backwards."""
    output = network(batch.detach().requires_grad_()).float()
    # One row per decision: per image, or per position where a network returns maps.
    scores = output.transpose(1, -1).flatten(0, -2).log_softmax(dim=1)
    # Drawn on the CPU, so that all devices draw alike.
    shares = scores.detach().exp().nan_to_num(0, 0, 0) + 1e-12
    drawn = torch.multinomial(shares.cpu(), 1, generator=generator).to(scores.device)
    scores.gather(1, drawn).sum().backward()
