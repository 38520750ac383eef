"""Tucker-2: fewer input and fewer output channels around a small convolution."""

from collections.abc import Iterable
from math import prod

import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import nn
from torch.nn.utils import skip_init

from hscc_search.compression.baselines.budget import Form, Ladder, allocate, ladder
from hscc_search.compression.baselines.low_rank import layer_at, matrix_of, truncated_pair, with_layers
from hscc_search.compression.calibration import Calibration, LayerRecord

# One round of higher-order orthogonal iteration after the truncated HOSVD, which is near the optimum already.
_ITERATIONS = 1


@torch.no_grad()
def compress_tucker(network: nn.Module, calibration: Calibration, budget: float) -> nn.Module:
    """Decompose each kernel along its input and output channels; all layers keep the same share of their channels.

    A convolution becomes three: 1 x 1 from Cin to share * Cin channels, the small kernel to share * Cout channels,
    1 x 1 to Cout. Where an input mode means nothing - for the layer that takes the image, for 1 x 1 kernels, which are
    matrices, and for fully connected layers - it becomes two, truncated to the same share of its rank.

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
    colours = calibration.images.shape[1]
    sizes = _input_positions(
        with_layers(network, {}), [record.name for record in calibration.records], calibration.images[:1]
    )
    ladders = []
    for record in calibration.records:
        layer = layer_at(network, record.name)
        if _is_matrix(layer, colours):
            ladders.append(_matrix_ladder(layer, record.macs))
        else:
            assert isinstance(layer, nn.Conv2d)
            ladders.append(_kernel_ladder(layer, record, sizes[record.name]))
    forms = allocate("tucker-2", calibration, budget, ladders)
    layers: dict[str, nn.Module] = {}
    for record, form in zip(calibration.records, forms, strict=True):
        layer = layer_at(network, record.name)
        if len(form) == 1:
            layers[record.name] = truncated_pair(layer, *form)
        elif form:
            assert isinstance(layer, nn.Conv2d)
            layers[record.name] = tucker_triple(layer, *form)
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
    # Zeros stay zeros in a convolution without bias, so the padding can wait for the second.
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


def _is_matrix(layer: nn.Conv2d | nn.Linear, colours: int) -> bool:
    return isinstance(layer, nn.Linear) or prod(layer.kernel_size) == 1 or layer.in_channels == colours


def _shares(*sizes: int) -> Iterable[tuple[float, tuple[int, ...]]]:
    """Every share of the given sizes at which one of them, rounded up, grows, and all of them at that share."""
    steps = {(count, size) for size in sizes for count in range(1, size + 1)}
    return ((count / size, tuple(-(-count * other // size) for other in sizes)) for count, size in steps)


def _matrix_ladder(layer: nn.Conv2d | nn.Linear, dense_macs: int) -> Ladder:
    shape = matrix_of(layer).shape
    per_rank = dense_macs // prod(shape) * sum(shape)
    candidates: list[tuple[int, float, Form]] = [
        (per_rank * ranks[0], 1 - share, ranks) for share, ranks in _shares(min(shape))
    ]
    return ladder(candidates, dense_macs)


def _kernel_ladder(layer: nn.Conv2d, record: LayerRecord, input_positions: int) -> Ladder:
    positions = record.lattice.height * record.lattice.width
    area = prod(layer.kernel_size)
    candidates: list[tuple[int, float, Form]] = []
    for share, (inputs, outputs) in _shares(layer.in_channels, layer.out_channels):
        macs = layer.in_channels * inputs * input_positions
        macs += (inputs * area + layer.out_channels) * outputs * positions
        candidates.append((macs, 1 - share, (inputs, outputs)))
    return ladder(candidates, record.macs)


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
