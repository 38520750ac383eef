"""Lattice of output positions whose responses stand for those of the whole map."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from hscc_search.compression.form import Piece
from hscc_search.compression.layers import conv_padding

# Most positions of a lattice: neighbouring positions have nearly the same responses, so few positions suffice.
POSITIONS = 100


@dataclass(frozen=True)
class Lattice:
    """Every ``step``-th row and column of an output map of ``height`` x ``width`` positions, from ``start`` on."""

    height: int
    width: int
    start: int
    step: int

    @property
    def positions(self) -> int:
        """The number of positions that belong to the lattice."""
        rows, columns = self.indices
        return len(rows) * len(columns)

    @property
    def indices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows and the columns that belong to the lattice."""
        return torch.arange(self.start, self.height, self.step), torch.arange(self.start, self.width, self.step)

    def within(self, piece: Piece) -> torch.Tensor:
        """The positions of the lattice that lie in a rectangle of the map, ascending."""
        rows, columns = self.indices
        numbers = torch.arange(len(rows) * len(columns)).view(len(rows), len(columns))
        inner_rows = (rows >= piece.top) & (rows < piece.bottom)
        inner_columns = (columns >= piece.left) & (columns < piece.right)
        return numbers[inner_rows][:, inner_columns].flatten()

    def values_within(self, piece: Piece, maps: torch.Tensor) -> torch.Tensor:
        """The values at the positions :meth:`within` a rectangle.

        Args:
            piece: the rectangle.
            maps: of the rectangle alone, (images, channels, height, width).

        Returns:
            A copy, (positions, images, channels).
        """
        top, left = self._first_within(piece.top), self._first_within(piece.left)
        return positions_first(maps[:, :, top :: self.step, left :: self.step])

    def _first_within(self, edge: int) -> int:
        """The distance from an edge to the first row or column of the lattice behind it."""
        return (self.start - edge) % self.step if edge > self.start else self.start - edge


def choose_lattice(height: int, width: int, positions: int = POSITIONS) -> Lattice:
    """Choose the finest lattice of at most ``positions`` positions."""
    step = 1
    while -(-height // step) * -(-width // step) > positions:
        step += 1
    return Lattice(height, width, (min(height, width) - 1) % step // 2, step)


def responses_on(layer: nn.Module, x: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    """Compute a layer's responses at the positions of a lattice alone, as a convolution with a longer stride.

    Args:
        layer: the dense layer.
        x: its input, float (images, Cin, height, width), (images, features), (images, tokens, features) or
            (images, height, width, features).
        lattice: of its output map.

    Returns:
        float (positions, images, Cout).
    """
    if isinstance(layer, nn.Linear):
        if x.dim() == 2:
            return layer(x)[None]  # type: ignore[no-any-return]
        rows = slice(lattice.start, None, lattice.step)
        if x.dim() == 3:
            return layer(x[:, rows]).transpose(0, 1)  # type: ignore[no-any-return]
        return layer(x[:, rows, rows]).flatten(1, 2).transpose(0, 1)  # type: ignore[no-any-return]
    assert isinstance(layer, nn.Conv2d)
    stride = [lattice.step * stride for stride in layer.stride]
    x = _receptive_field(layer, x, *lattice.indices)
    return positions_first(functional.conv2d(x, layer.weight, layer.bias, stride, 0, layer.dilation, layer.groups))


def _receptive_field(layer: nn.Conv2d, x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Cut from a convolution's input what the outputs from the first to the last row and column see, with padding."""
    left, _, top, _ = conv_padding(layer)
    padding: list[int] = []
    for axis, outputs, before in ((1, columns, left), (0, rows, top)):
        first = int(outputs.min()) * layer.stride[axis] - before
        last = int(outputs.max()) * layer.stride[axis] - before
        end = last + layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        size = x.shape[2 + axis]
        padding += [max(0, min(end, 0) - first), max(0, end - max(first, size))]
        start = min(max(first, 0), size)
        x = x.narrow(2 + axis, start, max(0, min(end, size) - start))
    return functional.pad(x, padding)


def positions_first(maps: torch.Tensor) -> torch.Tensor:
    """Copy maps (images, channels, height, width) as (height * width, images, channels).

    Always a copy: an activation in place may change the maps later.
    """
    return maps.flatten(2).permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
