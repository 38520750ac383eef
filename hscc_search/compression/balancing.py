"""Balance what passes between the factors of a compressed layer, for number formats with one range for all channels.

A layer's factors are free up to a scale per rank: ``P z = (P diag(s)) (diag(s)^-1 z)``. The coordinates z of a low-rank
factorisation differ in size by orders of magnitude, and rounding to 256 values in one range loses the small ones.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from hscc_search.compression.layers import RegionConv2d

# How far ranges are brought together: 0 leaves them, 1 makes them equal. Each channel that shrinks makes its column of
# the next factor larger, whose rounding then costs more (Xiao et al. 2023, equation 4).
_SHARE = 0.5
# Sizes below this share of the largest count as this share.
_SMALLEST = 1e-3
# Images per batch.
_BATCH = 64

# A factor, and those that read what it answers.
_Link = tuple[nn.Module, Sequence[nn.Module]]


@torch.no_grad()
def balance(network: nn.Module, images: torch.Tensor) -> None:
    """Rescale the factors of each compressed layer in place; the network computes the same as before.

    Args:
        network: a compressed one, in evaluation mode.
        images: its inputs, float32 (images, channels, height, width).
    """
    links = list(_links(network))
    sizes: dict[nn.Module, torch.Tensor] = {}

    def watch(module: nn.Module, _: object, output: torch.Tensor) -> None:
        channels = -1 if isinstance(module, nn.Linear) else 1
        square = output.square().transpose(0, channels).flatten(1).sum(dim=1)
        sizes[module] = sizes.get(module, torch.zeros_like(square)) + square

    hooks = [first.register_forward_hook(watch) for first, _ in links]
    try:
        for batch in images.split(_BATCH):
            network(batch.clone())  # which a forward pass may change
    finally:
        for hook in hooks:
            hook.remove()
    for first, readers in links:
        if first in sizes:
            _rescale(first, readers, sizes[first].sqrt())


def _links(network: nn.Module) -> Iterator[_Link]:
    """List all factors whose answers nothing but other factors read, without an activation between."""
    for module in network.modules():
        if isinstance(module, RegionConv2d):
            regions = [filters if isinstance(filters, nn.Sequential) else [filters] for filters in module.regions]
            if module.encoder is not None:
                yield module.encoder, [stages[0] for stages in regions]
            yield from ((stages[0], [stages[1]]) for stages in regions if len(stages) > 1)
        elif isinstance(module, nn.Sequential) and isinstance(module, nn.Linear):  # a stand-in is both
            yield module[0], [module[1]]


def _rescale(first: nn.Module, readers: Sequence[nn.Module], sizes: torch.Tensor) -> None:
    """Divide what a factor answers by the share of its size, and multiply where it is read."""
    largest = sizes.max()
    if not largest > 0:
        return
    scales = (sizes / largest).clamp(min=_SMALLEST) ** _SHARE
    assert isinstance(first.weight, torch.Tensor)
    first.weight.div_(scales.view(-1, *[1] * (first.weight.ndim - 1)))
    for reader in readers:
        assert isinstance(reader.weight, torch.Tensor)
        reader.weight.mul_(scales.view(1, -1, *[1] * (reader.weight.ndim - 2)))
