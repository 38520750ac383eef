"""Count the cost of a network while it runs."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from hscc_search.config import Shape, shape_of
from hscc_search.errors import CompressionError
from hscc_search.evaluation.cost import Cost, CountedCost
from hscc_search.progress import errors_only

_ATEN = torch.ops.aten
# Ratio up to which two counts are the same.
_NEAR = 1.001
# fvcore's names of the operators that multiply and add. It also counts normalisation and pooling, which are other
# operations: torch's counter and the formula of a compressed layer leave them out as well.
_MULTIPLY_ADD = {"conv", "linear", "addmm", "matmul", "bmm", "einsum"}


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return int(sdpa_flop(query.shape, key.shape, value.shape))


def _product_flops(first: Any, second: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * int(math.prod(first.shape))  # of a matrix and a vector, or of two vectors


def _added_product_flops(_: Any, matrix: Any, vector: Any, *__: Any, out_val: Any = None, **___: Any) -> int:
    return 2 * int(math.prod(matrix.shape))


def _recurrent_flops(x: Any, input_weight: Any, hidden_weight: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    steps = x.shape[0] * x.shape[1]  # of a layer in one direction, for all images
    return 2 * int(steps * (math.prod(input_weight.shape) + math.prod(hidden_weight.shape)))


def _bilinear_flops(first: Any, weight: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * int(math.prod(first.shape) // first.shape[-1] * math.prod(weight.shape))


def _summed_products_flops(_: Any, first: Any, second: Any, *__: Any, out_val: Any = None, **___: Any) -> int:
    return 2 * int(math.prod(first.shape) * second.shape[-1])


# Operators that multiply and add, and that torch's counter does not know.
_MORE = {
    _ATEN.mkldnn_rnn_layer: _recurrent_flops,
    _ATEN._trilinear: _bilinear_flops,
    _ATEN.addbmm: _summed_products_flops,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _ATEN.mv: _product_flops,
    _ATEN.dot: _product_flops,
    _ATEN.vdot: _product_flops,
    _ATEN.addmv: _added_product_flops,
}
for _function in _MORE.values():
    _function._get_raw = True  # type: ignore[attr-defined]  # so that torch hands over tensors in place of shapes


def cost_of(network: nn.Module, macs: int) -> Cost:
    """The cost of a network whose MACs are known.

    Args:
        network: dense or compressed.
        macs: multiply-adds per image, such as the formula of the compressed layers gives.
    """
    tensors = [*network.parameters(), *network.buffers()]
    return Cost(
        macs=macs,
        flops=2 * macs,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        megabytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
    )


@torch.no_grad()
def count_macs(network: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Count the multiply-adds of a network, and of each of its modules with all that is inside of it.

    Args:
        network: in evaluation mode; it is not changed.
        image: float32 (1, channels, height, width).

    Returns:
        MACs of one image by the module's path; ``""`` is the whole network.

    Source: torch's ``FlopCounterMode``, taught the operators of attention and of vectors that it does not know.
    """
    counts: Counter[str] = Counter()
    counting = FlopCounterMode(display=False, custom_mapping=_MORE)
    with _without_fused_attention(), _without_gradients(network), counting as counter:
        with _counted(dict(network.named_modules()), counter, counts):
            network(image.clone())
        counts[""] = counter.get_total_flops() // 2
    return dict(counts)


@contextmanager
def _counted(modules: Mapping[str, nn.Module], counter: FlopCounterMode, counts: Counter[str]) -> Iterator[None]:
    """Add to ``counts`` what the counter counts while each module runs."""
    started: list[int] = []
    with contextlib.ExitStack() as handles:
        for name, module in modules.items():

            def before(_: nn.Module, __: Any) -> None:
                started.append(counter.get_total_flops())

            def after(_: nn.Module, __: Any, ___: Any, name: str = name) -> None:
                counts[name] += (counter.get_total_flops() - started.pop()) // 2

            handles.callback(module.register_forward_pre_hook(before).remove)
            handles.callback(module.register_forward_hook(after).remove)
        yield


@contextmanager
def _without_gradients(network: nn.Module) -> Iterator[None]:
    """Let no parameter have a gradient: torch's counter fails where a module is given one that has, as an input."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Keep torch from running a whole attention layer as one operator, which no counter knows."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@torch.no_grad()
def measure_cost(network: nn.Module, shape: int | Shape) -> CountedCost:
    """Count the cost of a network on one image of zeros by two counters, and compare them module by module.

    torch counts the operators that run in the end, of which it knows all that multiply and add, and fvcore those of a
    trace, of which it knows fewer: where fvcore counts less, it misses one, and torch is right. Where it counts more,
    neither can be trusted; only its rule of thumb for ``einsum`` is off by a few.

    Args:
        network: in evaluation mode; takes float32 (images, channels, height, width).
        shape: of one image, see :func:`hscc_search.config.pictures.shape_of`.

    Raises:
        CompressionError: fvcore counts more than torch.

    Source: fvcore's ``FlopCountAnalysis``, and :func:`count_macs`.
    """
    image = torch.zeros(1, *shape_of(shape), device=next(network.parameters()).device)
    by_torch = count_macs(network, image)
    analysis = FlopCountAnalysis(network, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    try:
        with _without_fused_attention(), errors_only("torch.jit._trace"):
            counted = analysis.by_module_and_operator()
    except Exception:  # fvcore traces, and a forward pass that cannot be traced raises anything
        by_fvcore, uncounted = by_torch, {}
        notes = ["fvcore cannot follow the network, so that torch alone has counted its MACs"]
    else:
        # fvcore calls these flops but counts multiply-adds; they are converted here and nowhere else.
        by_fvcore = {
            name: sum(int(count) for operator, count in operators.items() if operator in _MULTIPLY_ADD)
            for name, operators in counted.items()
        }
        uncounted = {name.removeprefix("aten::"): count for name, count in analysis.unsupported_ops().items()}
        notes = []
    parts_torch, parts_fvcore = _parts(network, by_torch, by_torch), _parts(network, by_fvcore, by_torch)
    for name, macs in parts_torch.items():
        if parts_fvcore[name] > macs * _NEAR:
            raise CompressionError(
                f"{name}: fvcore counts {parts_fvcore[name]:,} multiply-adds and torch {macs:,}, so that the cost of "
                "the network is not known: write that part with convolutions, linear layers and matrix products"
            )
        if parts_fvcore[name] < macs:
            notes.append(f"{name}: fvcore misses {macs - parts_fvcore[name]:,} of {macs:,} MACs, which torch counts")
    return CountedCost(
        **cost_of(network, by_torch[""]).stored(), macs_torch=by_torch[""], uncounted=uncounted, notes=tuple(notes)
    )


def _parts(network: nn.Module, counts: Mapping[str, int], called: Mapping[str, int]) -> dict[str, int]:
    """Divide the MACs of a network among its modules that have no modules inside and one name, and all else.

    Args:
        network: that was counted.
        counts: MACs by the module's path.
        called: has the paths of the modules that were called.
    """
    names = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    parts = {
        name: counts.get(name, 0)
        for name, module in network.named_modules()
        if name and name in called and names[id(module)] == 1 and not list(module.children())
    }
    return {**parts, "outside of its layers": counts.get("", 0) - sum(parts.values())}
