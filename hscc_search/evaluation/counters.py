"""Count what a network costs while it runs."""

import logging

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hscc_search.evaluation.cost import Cost, CountedCost

# fvcore's names of the operators that multiply and add. What it counts beside these (normalisation, pooling) are
# other operations, and torch's counter and the formula leave them out as well.
_MULTIPLY_ADD = {"conv", "linear", "addmm", "matmul", "bmm", "einsum"}


def cost_of(network: nn.Module, macs: int) -> Cost:
    """Cost of a network whose MACs are known, such as by the formula of a compressed one."""
    tensors = [*network.parameters(), *network.buffers()]
    return Cost(
        macs=macs,
        flops=2 * macs,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        megabytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
    )


@torch.no_grad()
def measure_cost(network: nn.Module, image_size: int) -> CountedCost:
    """Count on one image of zeros.

    Args:
        network: in evaluation mode; takes float32 (images, 3, image_size, image_size).
        image_size: side of the image in pixels.
    """
    image = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    analysis = FlopCountAnalysis(network, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    tracer = logging.getLogger("torch.jit._trace")
    level = tracer.level
    tracer.setLevel(logging.ERROR)
    try:
        counted = analysis.by_operator()
    finally:
        tracer.setLevel(level)
    with FlopCounterMode(display=False) as counter:
        network(image)
    # fvcore calls them flops, but counts multiply-adds. This is the one place where that is put right.
    macs = sum(int(count) for operator, count in counted.items() if operator in _MULTIPLY_ADD)
    return CountedCost(
        **cost_of(network, macs).stored(),
        macs_torch=counter.get_total_flops() // 2,
        uncounted={name.removeprefix("aten::"): count for name, count in analysis.unsupported_ops().items()},
    )
