"""Which positions of an output map speak for all of them."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from hscc_search.compression.layers import conv_padding

# Positions of a map that are looked at, about: neighbours tell nearly the same.
POSITIONS = 100


@dataclass(frozen=True)
class Lattice:
    """Every ``step``-th row and column of an output map, beginning at ``start``."""

    height: int
    width: int
    start: int
    step: int

    @property
    def positions(self) -> int:
        """How many belong to the lattice."""
        rows, columns = self.indices
        return len(rows) * len(columns)

    @property
    def indices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns that belong to the lattice."""
        return torch.arange(self.start, self.height, self.step), torch.arange(self.start, self.width, self.step)


def choose_lattice(height: int, width: int, positions: int = POSITIONS) -> Lattice:
    """The finest lattice of about ``positions`` or fewer positions."""
    step = 1
    while -(-height // step) * -(-width // step) > positions:
        step += 1
    return Lattice(height, width, (min(height, width) - 1) % step // 2, step)


def responses_on(
    layer: nn.Module, x: torch.Tensor, lattice: Lattice, filters: torch.Tensor | None = None
) -> torch.Tensor:
    """A layer's responses at the positions of a lattice alone: a convolution with a longer stride.

    Args:
        layer: the dense layer.
        x: its input, float (images, Cin, height, width), (images, features) or (images, height, width, features).
        lattice: of its output map.
        filters: float (K, Cin, height, width), in place of a convolution's own and without a bias; one group.

    Returns:
        float (positions, images, Cout).
    """
    if isinstance(layer, nn.Linear):
        if x.dim() == 2:
            return layer(x)[None]  # type: ignore[no-any-return]
        rows = slice(lattice.start, None, lattice.step)
        return layer(x[:, rows, rows]).flatten(1, 2).transpose(0, 1)  # type: ignore[no-any-return]
    assert isinstance(layer, nn.Conv2d)
    left, right, top, bottom = conv_padding(layer)
    first = [lattice.start * stride for stride in layer.stride]
    # Negative padding crops: the first kept position moves to the corner.
    x = functional.pad(x, (left - first[1], right, top - first[0], bottom))
    stride = [lattice.step * stride for stride in layer.stride]
    if filters is not None:
        return positions_first(functional.conv2d(x, filters, None, stride, 0, layer.dilation))
    return positions_first(functional.conv2d(x, layer.weight, layer.bias, stride, 0, layer.dilation, layer.groups))


def positions_first(maps: torch.Tensor) -> torch.Tensor:
    """A copy of (images, channels, height, width) as (height * width, images, channels).

    Always a copy: an activation that works in place must not reach what was kept.
    """
    return maps.flatten(2).permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
