"""Which positions of an output map speak for all of them."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from hscc_search.compression.form import Piece
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

    def within(self, piece: Piece) -> torch.Tensor:
        """The positions that lie in a rectangle of the map, ascending."""
        rows, columns = self.indices
        numbers = torch.arange(len(rows) * len(columns)).view(len(rows), len(columns))
        rows, columns = ((rows >= piece.top) & (rows < piece.bottom)), (columns >= piece.left) & (columns < piece.right)
        return numbers[rows][:, columns].flatten()

    def taken(self, maps: torch.Tensor, piece: Piece) -> torch.Tensor:
        """What is there in a rectangle of the map, at the positions :meth:`within` it.

        Args:
            maps: of the rectangle, (images, channels, height, width).
            piece: the rectangle.

        Returns:
            A copy, (positions, images, channels).
        """
        down, right = (
            (self.start - first) % self.step if first > self.start else self.start - first
            for first in (piece.top, piece.left)
        )
        return positions_first(maps[:, :, down :: self.step, right :: self.step])


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
        x: its input, float (images, Cin, height, width), (images, features) or (images, height, width, features).
        lattice: of its output map.

    Returns:
        float (positions, images, Cout).
    """
    if isinstance(layer, nn.Linear):
        if x.dim() == 2:
            return layer(x)[None]  # type: ignore[no-any-return]
        rows = slice(lattice.start, None, lattice.step)
        return layer(x[:, rows, rows]).flatten(1, 2).transpose(0, 1)  # type: ignore[no-any-return]
    assert isinstance(layer, nn.Conv2d)
    stride = [lattice.step * stride for stride in layer.stride]
    x = _seen(layer, x, *lattice.indices)
    return positions_first(functional.conv2d(x, layer.weight, layer.bias, stride, 0, layer.dilation, layer.groups))


def _seen(layer: nn.Conv2d, x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """What a convolution sees of its input, padding and all, from the first to the last of some rows and columns."""
    left, _, top, _ = conv_padding(layer)
    padding: list[int] = []
    for axis, places, before in ((1, columns, left), (0, rows, top)):
        first, last = (int(place) * layer.stride[axis] - before for place in (places.min(), places.max()))
        end = last + layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        size = x.shape[2 + axis]
        padding += [max(0, min(end, 0) - first), max(0, end - max(first, size))]
        start = min(max(first, 0), size)
        x = x.narrow(2 + axis, start, max(0, min(end, size) - start))
    return functional.pad(x, padding)


def positions_first(maps: torch.Tensor) -> torch.Tensor:
    """A copy of (images, channels, height, width) as (height * width, images, channels).

    Always a copy: an activation that works in place must not reach what was kept.
    """
    return maps.flatten(2).permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
