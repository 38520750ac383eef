"""What one pass of the dense network over calibration images leaves behind."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from hscc_search.compression.layers import conv_padding
from hscc_search.errors import CompressionError
from hscc_search.progress import Progress, Report, silent

# Positions of a map that are looked at, about: neighbours tell nearly the same.
POSITIONS = 196


@dataclass(frozen=True)
class Lattice:
    """Every ``step``-th row and column of an output map, beginning at ``start``."""

    height: int
    width: int
    start: int
    step: int

    @property
    def indices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns that belong to the lattice."""
        return torch.arange(self.start, self.height, self.step), torch.arange(self.start, self.width, self.step)


@dataclass(frozen=True)
class LayerRecord:
    """The dense network's responses at one layer.

    Attributes:
        name: the layer's path in the network, such as ``features.3``.
        lattice: which positions of the output map were kept; 1 x 1 for a fully connected layer.
        responses: y before the activation, float32 (positions, images, Cout).
        effects: how much the loss depends on each channel, float32 (Cout,), mean about 1, see :func:`calibrate`.
        macs: multiply-adds of the dense layer per image.
    """

    name: str
    lattice: Lattice
    responses: torch.Tensor
    effects: torch.Tensor
    macs: int


@dataclass(frozen=True)
class Calibration:
    """Calibration images and what the dense network answered to them.

    Attributes:
        images: as the network takes them, float32 (images, 3, height, width).
        records: the layers that can be compressed, in execution order.
        left_dense: every other convolution and fully connected layer: its multiply-adds per image and why.
    """

    images: torch.Tensor
    records: tuple[LayerRecord, ...]
    left_dense: dict[str, tuple[int, str]]


def choose_lattice(height: int, width: int, positions: int = POSITIONS) -> Lattice:
    """The finest lattice of about ``positions`` or fewer positions."""
    step = 1
    while -(-height // step) * -(-width // step) > positions:
        step += 1
    return Lattice(height, width, (min(height, width) - 1) % step // 2, step)


def responses_on(layer: nn.Module, x: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    """A layer's responses at the positions of a lattice alone: a convolution with a longer stride.

    Args:
        layer: the dense layer.
        x: its input, float (images, Cin, height, width) or (images, features).
        lattice: of its output map.

    Returns:
        float (positions, images, Cout).
    """
    if isinstance(layer, nn.Linear):
        return layer(x)[None]  # type: ignore[no-any-return]
    assert isinstance(layer, nn.Conv2d)
    left, right, top, bottom = conv_padding(layer)
    first = [lattice.start * stride for stride in layer.stride]
    # Negative padding crops: the first kept position moves to the corner.
    x = functional.pad(x, (left - first[1], right, top - first[0], bottom))
    stride = [lattice.step * stride for stride in layer.stride]
    return positions_first(functional.conv2d(x, layer.weight, layer.bias, stride, 0, layer.dilation))


def positions_first(maps: torch.Tensor) -> torch.Tensor:
    """A copy of (images, channels, height, width) as (height * width, images, channels).

    Always a copy: an activation that works in place must not reach what was kept.
    """
    return maps.flatten(2).permute(2, 0, 1).clone(memory_format=torch.contiguous_format)


def calibrate(network: nn.Module, images: torch.Tensor, report: Report = silent, batch_size: int = 64) -> Calibration:
    """Run the dense network over calibration images once, forwards and backwards, and keep its responses.

    The effect of a channel is the root mean square of the gradient that it receives from the log-likelihood of a
    class drawn from the network's own prediction, which is the square root of its diagonal Fisher information: how
    strongly, to second order, an error in that channel moves the prediction.

    Args:
        network: the dense network.
        images: as it takes them, float32 (images, 3, height, width).
        report: told after each batch.
        batch_size: images per batch.

    Raises:
        CompressionError: a weight or a response is not finite, or nothing can be compressed.
    """
    network.eval()
    generator = torch.Generator(images.device).manual_seed(0)
    for name, value in network.named_parameters():
        if not torch.isfinite(value).all():
            raise CompressionError(
                f"weights {name} of the dense network are not all finite: train it again or use another checkpoint"
            )
    candidates: dict[str, nn.Module] = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    macs, reasons = _look(network, candidates, images[:1])
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in macs if name not in reasons}
    squares: dict[str, torch.Tensor] = {}
    lattices: dict[str, Lattice] = {}

    def keep(name: str, output: torch.Tensor) -> None:
        if isinstance(candidates[name], nn.Linear):
            lattices[name] = Lattice(1, 1, 0, 1)
            kept[name].append(output.detach()[None].clone())
        else:
            lattice = lattices.setdefault(name, choose_lattice(*output.shape[2:]))
            rows = slice(lattice.start, None, lattice.step)
            kept[name].append(positions_first(output.detach()[:, :, rows, rows]))
        # A hook on the tensor, since an activation in place would change what a module's own hook sees.
        if output.requires_grad:
            output.register_hook(lambda gradient: add_squares(name, gradient))

    def add_squares(name: str, gradient: torch.Tensor) -> None:
        channels = gradient.transpose(1, -1).flatten(0, -2)
        squares[name] = squares.get(name, 0) + channels.square().sum(dim=0)

    hooks = [
        candidates[name].register_forward_hook(lambda _, __, output, name=name: keep(name, output)) for name in kept
    ]
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)  # the gradients of the responses are all that is needed
        for start in range(0, len(images), batch_size):
            output = network(images[start : start + batch_size].detach().requires_grad_()).float()
            # One row per decision: per image, or per position where a network returns maps.
            scores = output.transpose(1, -1).flatten(0, -2).log_softmax(dim=1)
            drawn = torch.multinomial(scores.detach().exp().nan_to_num(0, 0, 0) + 1e-12, 1, generator=generator)
            scores.gather(1, drawn).sum().backward()
            report(Progress("calibrating", min(start + batch_size, len(images)), len(images)))
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
    records = []
    for name in kept:
        responses = torch.cat(kept[name], dim=1)
        kept[name].clear()
        if not torch.isfinite(responses).all():
            raise CompressionError(f"layer {name} answers with values that are not finite: the dense network is broken")
        records.append(LayerRecord(name, lattices[name], responses, _effects(squares.get(name), responses), macs[name]))
    if not records:
        raise CompressionError("the network has no convolution or fully connected layer that can be compressed")
    return Calibration(images, tuple(records), {name: (macs.get(name, 0), reason) for name, reason in reasons.items()})


def _effects(squares: torch.Tensor | None, responses: torch.Tensor) -> torch.Tensor:
    """Root mean squares relative to their mean; 1 where the loss depends on nothing."""
    if squares is None or not squares.sum() > 0:
        return torch.ones_like(responses[0, 0])
    roots = squares.sqrt()
    # A channel without any effect on these images still counts a little, for the sake of others.
    return roots / roots.mean() + 1e-3


@torch.no_grad()
def _look(
    network: nn.Module, candidates: dict[str, nn.Module], image: torch.Tensor
) -> tuple[dict[str, int], dict[str, str]]:
    """Multiply-adds of each layer in execution order, and why some cannot be compressed, from one image."""
    macs: dict[str, int] = {}
    reasons: dict[str, str] = {}

    names = Counter(id(layer) for _, layer in network.named_modules(remove_duplicate=False))

    def look(name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        if name in macs:
            reasons[name] = "called more than once in one pass"
        positions = output.numel() // layer.weight.shape[0]
        macs[name] = macs.get(name, 0) + positions * layer.weight.numel()
        if name == "":
            reasons.setdefault(name, "it is the whole network")
        if names[id(layer)] > 1:
            reasons.setdefault(name, "registered under more than one name")
        if len(output) != len(image) or (isinstance(layer, nn.Linear) and output.dim() != 2):
            reasons.setdefault(name, "called on more than one position as if they were images")
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            reasons.setdefault(name, "depthwise" if layer.groups == layer.in_channels else "grouped")
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            reasons.setdefault(name, f"padding mode {layer.padding_mode}")

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: look(name, layer, inputs, output))
        for name, layer in candidates.items()
    ]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    for name in candidates.keys() - macs.keys():
        reasons[name] = "never called"
    return macs, reasons
