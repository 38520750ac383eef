"""Count the cost of a network while it runs."""

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hscc_search.evaluation.cost import Cost, CountedCost
from hscc_search.progress import errors_only

# fvcore's names of the operators that multiply and add. It also counts normalisation and pooling, which are other
# operations: torch's counter and the formula of a compressed layer leave them out as well.
_MULTIPLY_ADD = {"conv", "linear", "addmm", "matmul", "bmm", "einsum"}


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
def measure_cost(network: nn.Module, image_size: int) -> CountedCost:
    """Count the cost of a network on one image of zeros.

    Args:
        network: in evaluation mode; takes float32 (images, 3, image_size, image_size).
        image_size: height and width of the image in pixels.

    Source: fvcore's ``FlopCountAnalysis`` for the MACs, checked against torch's ``FlopCounterMode``.
    """
    image = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    analysis = FlopCountAnalysis(network, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with errors_only("torch.jit._trace"):
        counted = analysis.by_operator()
    with FlopCounterMode(display=False) as counter:
        network(image)
    # fvcore calls these flops but counts multiply-adds; they are converted here and nowhere else.
    macs = sum(int(count) for operator, count in counted.items() if operator in _MULTIPLY_ADD)
    return CountedCost(
        **cost_of(network, macs).stored(),
        macs_torch=counter.get_total_flops() // 2,
        uncounted={name.removeprefix("aten::"): count for name, count in analysis.unsupported_ops().items()},
    )
