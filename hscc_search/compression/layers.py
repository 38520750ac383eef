"""The compressed layers that run: ordinary torch modules, made of ordinary convolutions and linear layers.

A factored region computes ``y = P (B x) + b``: basis filters B (rank x D), then the recombination P
(Cout x rank) with a bias. Where it pays, x is brought to fewer channels first, ``B x = B' (E x)`` with a 1 x 1
convolution E. A dense region keeps one convolution.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hscc_search.compression.regions import Piece
from hscc_search.errors import CompressionError


@dataclass(frozen=True)
class Blueprint:
    """The form of one compressed layer: all but its weights.

    Attributes:
        output_size: height and width of the map that the layer makes; (1, 1) for a fully connected layer.
        ranks: for each group of the convolution (one, if it is not grouped) the total rank of each region, or None
            for a region that stays dense.
        pieces: rectangles that cover the map, see :mod:`hscc_search.compression.regions`.
        input_ranks: as ``ranks``: to how many channels a region's input is brought before its basis filters, or None
            where these see all channels. Empty for a fully connected layer.
    """

    output_size: tuple[int, int]
    ranks: tuple[tuple[int | None, ...], ...]
    pieces: tuple[Piece, ...]
    input_ranks: tuple[tuple[int | None, ...], ...] = ()

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "Blueprint":
        """Undo :meth:`stored`."""
        height, width = tree["output_size"]
        ranks = tuple(tuple(row) for row in tree["ranks"])
        input_ranks = tuple(tuple(row) for row in tree["input_ranks"])
        return cls((height, width), ranks, tuple(Piece(**piece) for piece in tree["pieces"]), input_ranks)


class RegionConv2d(nn.Module):
    """A convolution, or one group of it, with filters of its own for each region of its output map.

    Takes float (images, Cin, height, width) of the one size that it was made for, and returns
    (images, Cout, \\*output_size).
    """

    def __init__(self, layer: nn.Conv2d, blueprint: Blueprint, group: int) -> None:
        super().__init__()
        self.blueprint = blueprint
        self.kernel_reach = tuple(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        self.stride = layer.stride
        self.whole = len(blueprint.pieces) == 1
        self.padding = conv_padding(layer)
        left, right, top, bottom = self.padding
        # A region that is the whole map pads as it convolves, which saves a copy of the input.
        own = (top, left) if self.whole and (left, top) == (right, bottom) else None
        if own is not None:
            self.padding = (0, 0, 0, 0)
        ranks = blueprint.ranks[group]
        input_ranks = blueprint.input_ranks[group] if blueprint.input_ranks else (None,) * len(ranks)
        self.regions = nn.ModuleList(
            _region(layer, rank, input_rank, own or (0, 0)) for rank, input_rank in zip(ranks, input_ranks, strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve each piece of the map with its region's filters.

        Raises:
            CompressionError: the input is of another size than the layer was made for.
        """
        parts = zip(self.blueprint.pieces, self.cut(x), strict=True)
        return self.join([self.regions[piece.region](part) for piece, part in parts])

    def cut(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What of the input each piece of the output map sees."""
        if any(self.padding):
            x = functional.pad(x, self.padding)
        if self.whole:
            return [x]
        size = tuple((x.shape[2 + axis] - self.kernel_reach[axis]) // self.stride[axis] + 1 for axis in (0, 1))
        if size != self.blueprint.output_size:
            raise CompressionError(f"regions belong to a map of {self.blueprint.output_size} positions, not {size}")
        return [
            x[:, :, self._inputs(piece.top, piece.bottom, 0), self._inputs(piece.left, piece.right, 1)]
            for piece in self.blueprint.pieces
        ]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output map, of what is answered in each piece."""
        if self.whole:
            return parts[0]
        bands: dict[tuple[int, int], list[torch.Tensor]] = {}
        for piece, part in zip(self.blueprint.pieces, parts, strict=True):
            bands.setdefault((piece.top, piece.bottom), []).append(part)
        return torch.cat([torch.cat(band, dim=3) for band in bands.values()], dim=2)

    def _inputs(self, first: int, last: int, axis: int) -> slice:
        stride = self.stride[axis]
        return slice(first * stride, (last - 1) * stride + self.kernel_reach[axis])


class GroupedRegionConv2d(nn.Module):
    """A grouped convolution, each group with regions of its own."""

    def __init__(self, layer: nn.Conv2d, blueprint: Blueprint) -> None:
        super().__init__()
        self.groups = nn.ModuleList(RegionConv2d(layer, blueprint, group) for group in range(layer.groups))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give each group its share of the channels, and join what they answer."""
        shares = x.chunk(len(self.groups), dim=1)
        return torch.cat([group(share) for group, share in zip(self.groups, shares, strict=True)], dim=1)


def build(layer: nn.Module, blueprint: Blueprint) -> nn.Module:
    """A compressed layer of the given form in place of ``layer``, with weights that are still to be set."""
    if isinstance(layer, nn.Conv2d):
        return RegionConv2d(layer, blueprint, 0) if layer.groups == 1 else GroupedRegionConv2d(layer, blueprint)
    assert isinstance(layer, nn.Linear)
    ((rank,),) = blueprint.ranks
    if rank is None:
        return nn.Linear(layer.in_features, layer.out_features)
    return nn.Sequential(
        nn.Linear(layer.in_features, rank, bias=False),
        nn.Linear(rank, layer.out_features),
    )


def parts(module: nn.Module) -> list[list[nn.Module]]:
    """The modules that :func:`build` made for each group and region of one layer."""
    if isinstance(module, GroupedRegionConv2d):
        return [part for group in module.groups for part in parts(group)]
    return [list(module.regions)] if isinstance(module, RegionConv2d) else [[module]]


def input_positions(layer: nn.Conv2d, blueprint_pieces: Sequence[Piece], region: int, size: tuple[int, int]) -> int:
    """Input positions that :class:`RegionConv2d` gives to one region.

    Args:
        layer: the dense layer.
        blueprint_pieces: of the output map.
        region: whose.
        size: height and width of the input map.
    """
    left, right, top, bottom = conv_padding(layer)
    if len(blueprint_pieces) == 1:
        even = (left, top) == (right, bottom)
        return size[0] * size[1] if even else (size[0] + top + bottom) * (size[1] + left + right)
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return sum(
        ((piece.bottom - piece.top - 1) * layer.stride[0] + reach[0])
        * ((piece.right - piece.left - 1) * layer.stride[1] + reach[1])
        for piece in blueprint_pieces
        if piece.region == region
    )


def conv_padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zeros that a convolution adds left, right, above and below, as :func:`torch.nn.functional.pad` takes them."""
    if isinstance(layer.padding, str):
        if layer.padding == "valid":
            return (0, 0, 0, 0)
        vertical, horizontal = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)
    vertical, horizontal = layer.padding
    return (horizontal, horizontal, vertical, vertical)


def _region(layer: nn.Conv2d, rank: int | None, input_rank: int | None, padding: tuple[int, int]) -> nn.Module:
    inputs, width = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    outputs = width if rank is None else rank
    convolution = nn.Conv2d(
        inputs if input_rank is None else input_rank,
        outputs,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        padding,
        layer.dilation,  # type: ignore[arg-type]
        bias=rank is None,
    )
    if rank is None:
        return convolution
    basis = (
        convolution if input_rank is None else nn.Sequential(nn.Conv2d(inputs, input_rank, 1, bias=False), convolution)
    )
    return nn.Sequential(basis, nn.Conv2d(rank, width, 1))
