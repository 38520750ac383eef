"""Tucker-2: fewer input and fewer output channels around a small convolution."""

from collections.abc import Iterator, Sequence
from math import prod

import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import nn
from torch.nn.utils import skip_init

from hscc_search.compression.baselines.ladder import Ladder, allocate, ladder
from hscc_search.compression.baselines.low_rank import device_and_type, truncated_pair
from hscc_search.compression.baselines.targets import Target, targets
from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.hooks import hooked
from hscc_search.compression.stand_ins import replaced

# Rounds of higher-order orthogonal iteration. Their start, the truncated higher-order SVD, is near the optimum.
_ITERATIONS = 1


@torch.no_grad()
def compress_tucker(calibration: Calibration, budget: float) -> nn.Module:
    """Decompose each kernel along its input and output channels; all layers keep the same share of their channels.

    A convolution becomes three: 1 x 1 from Cin to share * Cin channels, the small kernel to share * Cout channels,
    1 x 1 to Cout. Where there is no third mode or little to gain from the input mode - for 1 x 1 kernels and fully
    connected layers, which are matrices, and for the layer that takes the image - it becomes two, truncated to the
    same share of the full rank.

    Source: Kim et al. 2016, "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
    Applications" (arXiv 1511.06530), which also treats the first layer by its output mode alone. Its ranks come from
    VBMF; see :mod:`hscc_search.compression.baselines` on why these come from the budget instead.

    Args:
        calibration: of the dense network; only its costs and the size of its images are used.
        budget: dense over compressed multiply-adds, 1 or more.

    Raises:
        CompressionError: the budget is out of reach.
    """
    layers = {target.name: target for target in targets(calibration)}
    chosen = allocate("tucker-2", calibration.macs, budget, _ladders(calibration, list(layers.values())))
    return replaced(
        calibration.network, {name: _decomposed(layers[name].layer, ranks) for name, ranks in chosen.items()}
    )


def _ladders(calibration: Calibration, layers: Sequence[Target]) -> dict[str, Ladder]:
    colours = calibration.images.shape[1]
    positions = _input_positions(calibration, layers)
    return {
        target.name: matrix_ladder(target)
        if _is_matrix(target.layer, colours)
        else kernel_ladder(target, positions[target.name])
        for target in layers
    }


def _is_matrix(layer: nn.Conv2d | nn.Linear, colours: int) -> bool:
    """Tell whether a layer is decomposed along its output mode alone."""
    return isinstance(layer, nn.Linear) or prod(layer.kernel_size) == 1 or layer.in_channels == colours


def _input_positions(calibration: Calibration, layers: Sequence[Target]) -> dict[str, int]:
    """Height times width of each layer's input map, which the output size and the stride do not determine."""
    positions: dict[str, int] = {}

    def record_positions(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        positions[name] = prod(inputs[0].shape[2:])

    with hooked({target.name: target.layer for target in layers}, before=record_positions):
        calibration.network(calibration.images[:1].clone())
    return positions


def _decomposed(layer: nn.Conv2d | nn.Linear, ranks: tuple[int, ...]) -> nn.Sequential:
    """Decompose a layer into two for ranks (rank,), into three for ranks (inner inputs, inner outputs)."""
    if len(ranks) == 1:
        return truncated_pair(layer, *ranks)
    assert isinstance(layer, nn.Conv2d)
    return tucker_triple(layer, *ranks)


def tucker_triple(layer: nn.Conv2d, inner_inputs: int, inner_outputs: int) -> nn.Sequential:
    """Decompose a convolution into the three of a Tucker-2 decomposition.

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
    like_layer = device_and_type(layer)
    narrow = skip_init(nn.Conv2d, layer.in_channels, inner_inputs, 1, bias=False, **like_layer)
    # Without a bias zeros stay zeros, so the second convolution can do the padding.
    small = skip_init(
        nn.Conv2d,
        inner_inputs,
        inner_outputs,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=False,
        **like_layer,
    )
    wide = skip_init(nn.Conv2d, inner_outputs, layer.out_channels, 1, bias=layer.bias is not None, **like_layer)
    with torch.no_grad():
        for module, values in ((narrow, before.T.copy()), (small, core), (wide, after)):
            module.weight.copy_(torch.from_numpy(values).view_as(module.weight))
        if layer.bias is not None:
            wide.bias.copy_(layer.bias)
    return nn.Sequential(narrow, small, wide)


def matrix_ladder(target: Target) -> Ladder:
    """Build the ladder of ranks of a layer that is one matrix; the error is the share of the full rank left out."""
    candidates = [
        (ranks[0] * target.macs_per_rank, 1 - share, ranks) for share, ranks in shares(min(target.weight.shape))
    ]
    return ladder(candidates, target.macs)


def kernel_ladder(target: Target, input_positions: int) -> Ladder:
    """Build the ladder of inner (inputs, outputs) of a convolution; the error is the share of channels left out.

    Args:
        target: the convolution.
        input_positions: height times width of its input map.
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
    """List every share at which one of the sizes, multiplied by the share and rounded up, grows.

    Args:
        sizes: numbers of channels.

    Yields:
        The share, above 0 and up to 1, and each size multiplied by it and rounded up.
    """
    for whole in set(sizes):
        for count in range(1, whole + 1):
            yield count / whole, tuple(-(-count * size // whole) for size in sizes)
