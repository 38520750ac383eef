"""Tucker-2: fewer input and fewer output channels around a small convolution."""

from collections.abc import Iterator
from math import prod

import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import nn
from torch.nn.utils import skip_init

from hscc_search.compression.baselines.ladder import Ladder, allocate, ladder
from hscc_search.compression.baselines.low_rank import truncated_pair, with_layers
from hscc_search.compression.baselines.targets import Target, dense_macs, targets
from hscc_search.compression.calibration.calibrate import Calibration

# One round of higher-order orthogonal iteration after the truncated HOSVD, which is near the optimum already.
_ITERATIONS = 1


@torch.no_grad()
def compress_tucker(network: nn.Module, calibration: Calibration, budget: float) -> nn.Module:
    """Decompose each kernel along its input and output channels; all layers keep the same share of their channels.

    A convolution becomes three: 1 x 1 from Cin to share * Cin channels, the small kernel to share * Cout channels,
    1 x 1 to Cout. Where there is no third mode or little to gain from the input mode - for 1 x 1 kernels and fully
    connected layers, which are matrices, and for the layer that takes the image - it becomes two, truncated to the
    same share of the full rank.

    Source: Kim et al. 2016, "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
    Applications" (arXiv 1511.06530), which also treats the first layer by its output mode alone. Its ranks come from
    VBMF; see :mod:`hscc_search.compression.baselines` on why these come from the budget instead.

    Args:
        network: the dense network.
        calibration: of it; only its costs and the size of its images are used.
        budget: dense over compressed multiply-adds, 1 or more.

    Raises:
        CompressionError: the budget is out of reach.
    """
    found = targets(network, calibration)
    colours = calibration.images.shape[1]
    sizes = _input_positions(with_layers(network, {}), [target.name for target in found], calibration.images[:1])
    ladders = {
        target.name: matrix_ladder(target)
        if _is_matrix(target.layer, colours)
        else kernel_ladder(target, sizes[target.name])
        for target in found
    }
    forms = allocate("tucker-2", dense_macs(calibration), budget, ladders)
    layers: dict[str, nn.Module] = {}
    for target in found:
        form = forms.get(target.name, ())
        if len(form) == 1:
            layers[target.name] = truncated_pair(target.layer, *form)
        elif form:
            assert isinstance(target.layer, nn.Conv2d)
            layers[target.name] = tucker_triple(target.layer, *form)
    return with_layers(network, layers)


def tucker_triple(layer: nn.Conv2d, inner_inputs: int, inner_outputs: int) -> nn.Sequential:
    """The three convolutions of a Tucker-2 decomposition.

    Args:
        layer: the dense convolution, of one group.
        inner_inputs: channels before the small kernel.
        inner_outputs: channels after it.
    """
    weight = layer.weight.detach().double().cpu().numpy()
    with tensorly.backend_context("numpy", local_threadsafe=True):
        (core, (after, before)), _ = partial_tucker(
            weight, (inner_outputs, inner_inputs), modes=[0, 1], n_iter_max=_ITERATIONS, init="svd", random_state=0
        )
    kind = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    narrow = skip_init(nn.Conv2d, layer.in_channels, inner_inputs, 1, bias=False, **kind)
    # Without a bias zeros stay zeros, so that the padding can wait for the second convolution.
    small = skip_init(
        nn.Conv2d,
        inner_inputs,
        inner_outputs,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=False,
        **kind,
    )
    wide = skip_init(nn.Conv2d, inner_outputs, layer.out_channels, 1, bias=layer.bias is not None, **kind)
    with torch.no_grad():
        for module, values in ((narrow, before.T.copy()), (small, core), (wide, after)):
            module.weight.copy_(torch.from_numpy(values).view_as(module.weight))
        if layer.bias is not None:
            wide.bias.copy_(layer.bias)
    return nn.Sequential(narrow, small, wide)


def matrix_ladder(target: Target) -> Ladder:
    """The ranks of a layer that is one matrix; the error of each is the share of the full rank that it leaves out."""
    return ladder(
        ((ranks[0] * target.macs_per_rank, 1 - share, ranks) for share, ranks in shares(min(target.weight.shape))),
        target.macs,
    )


def kernel_ladder(target: Target, input_positions: int) -> Ladder:
    """The inner (inputs, outputs) of a convolution; the error of each is the share of channels that it leaves out.

    Args:
        target: the convolution.
        input_positions: height times width of the map that it takes.
    """
    layer = target.layer
    assert isinstance(layer, nn.Conv2d)
    area = prod(layer.kernel_size)
    candidates = []
    for share, (inputs, outputs) in shares(layer.in_channels, layer.out_channels):
        macs = layer.in_channels * inputs * input_positions
        macs += (inputs * area + layer.out_channels) * outputs * target.positions
        candidates.append((macs, 1 - share, (inputs, outputs)))
    return ladder(candidates, target.macs)


def shares(*sizes: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Every share at which share * size, rounded up, grows for one of the sizes, with all of them at that share."""
    for whole in set(sizes):
        for count in range(1, whole + 1):
            yield count / whole, tuple(-(-count * size // whole) for size in sizes)


def _is_matrix(layer: nn.Conv2d | nn.Linear, colours: int) -> bool:
    return isinstance(layer, nn.Linear) or prod(layer.kernel_size) == 1 or layer.in_channels == colours


def _input_positions(network: nn.Module, names: list[str], image: torch.Tensor) -> dict[str, int]:
    """Height times width of the map that each layer takes; the stride alone would not tell them.

    The hooks stay, so the network is one to throw away.
    """
    positions: dict[str, int] = {}

    def look(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        positions[name] = prod(inputs[0].shape[2:])

    for name in names:
        network.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs))
    network(image)
    return positions
