"""The compressed layers that run: ordinary torch modules, made of ordinary convolutions and linear layers.

A factored region computes ``y = P (B x) + b``: basis filters B (rank x D), then the recombination P
(Cout x rank) with a bias. Where it pays, x is brought to fewer channels first, once for all regions:
``B x = B' (E x)`` with a 1 x 1 convolution E. A dense region keeps one convolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from hscc_search.compression.form import LayerForm
from hscc_search.errors import CompressionError

_NO_PADDING = (0, 0, 0, 0)


@dataclass(frozen=True)
class Patch:
    """What the filters of one piece see.

    Attributes:
        x: float (images, channels, height, width).
        padding: zeros that the filters see left, right, above and below, as :func:`torch.nn.functional.pad` takes them.
    """

    x: torch.Tensor
    padding: tuple[int, int, int, int] = _NO_PADDING

    def filtered(self, filters: nn.Module) -> torch.Tensor:
        """What filters answer."""
        return filters(functional.pad(self.x, self.padding) if any(self.padding) else self.x)  # type: ignore[no-any-return]


class RegionConv2d(nn.Module):
    """A convolution, or one group of it, with filters of its own for each region of its output map.

    Takes float (images, Cin, height, width) of the one size that it was made for, and returns
    (images, Cout, \\*output_size).
    """

    def __init__(self, layer: nn.Conv2d, blueprint: LayerForm, group: int) -> None:
        super().__init__()
        self.blueprint = blueprint
        self.kernel_reach = tuple(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        self.stride = layer.stride
        self.whole = len(blueprint.pieces) == 1
        self.padding = conv_padding(layer)
        left, right, top, bottom = self.padding
        # A region that is the whole map pads as it convolves, which saves a copy.
        own = (top, left) if self.whole and (left, top) == (right, bottom) else None
        if own is not None:
            self.padding = _NO_PADDING
        inputs = layer.in_channels // layer.groups
        count = blueprint.input_ranks[group] if blueprint.input_ranks else None
        self.encoder = nn.Identity() if count is None else nn.Conv2d(inputs, count, 1, bias=False)
        self.regions = nn.ModuleList(
            _region(layer, inputs if count is None else count, rank, own or (0, 0)) for rank in blueprint.ranks[group]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve each piece of the map with its region's filters.

        Raises:
            CompressionError: the input is of another size than the layer was made for.
        """
        answers = []
        for piece, patch in zip(self.blueprint.pieces, self.cut(self.encoder(x)), strict=True):
            filters, recombination = stages_of(self.regions[piece.region])
            answers.append(recombination(patch.filtered(filters)))
        return self.join(answers)

    def cut(self, x: torch.Tensor) -> list[Patch]:
        """What each piece of the output map sees of the input, brought to fewer channels where it is."""
        if self.whole:
            return [Patch(x, self.padding)]
        left, right, top, bottom = self.padding
        height, width = x.shape[2:]
        padded = (height + top + bottom, width + left + right)
        size = tuple((padded[axis] - self.kernel_reach[axis]) // self.stride[axis] + 1 for axis in (0, 1))
        if size != self.blueprint.output_size:
            raise CompressionError(f"regions belong to a map of {self.blueprint.output_size} positions, not {size}")
        found = []
        for piece in self.blueprint.pieces:
            rows = _seen(piece.top, piece.bottom, self.stride[0], self.kernel_reach[0], top, height)
            columns = _seen(piece.left, piece.right, self.stride[1], self.kernel_reach[1], left, width)
            seen = x[:, :, rows.first : rows.last, columns.first : columns.last]
            found.append(Patch(seen, (columns.before, columns.after, rows.before, rows.after)))
        return found

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output map, of what is answered in each piece."""
        if self.whole:
            return parts[0]
        bands: dict[tuple[int, int], list[torch.Tensor]] = {}
        for piece, part in zip(self.blueprint.pieces, parts, strict=True):
            bands.setdefault((piece.top, piece.bottom), []).append(part)
        return torch.cat([torch.cat(band, dim=3) for band in bands.values()], dim=2)


class GroupedRegionConv2d(nn.Module):
    """A grouped convolution, each group with regions of its own."""

    def __init__(self, layer: nn.Conv2d, blueprint: LayerForm) -> None:
        super().__init__()
        self.groups = nn.ModuleList(RegionConv2d(layer, blueprint, group) for group in range(layer.groups))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give each group its share of the channels, and join what they answer."""
        shares = x.chunk(len(self.groups), dim=1)
        return torch.cat([group(share) for group, share in zip(self.groups, shares, strict=True)], dim=1)


def build(layer: nn.Module, blueprint: LayerForm) -> nn.Module:
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


def stages_of(region: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A region's basis filters, and its recombination; where there is none of the latter, it is the identity."""
    if not isinstance(region, nn.Sequential):
        return region, nn.Identity()
    filters, recombination = region
    return filters, recombination


@dataclass(frozen=True)
class _Span:
    """Inputs along one axis that some outputs see.

    Attributes:
        first: input.
        last: behind the last input.
        before: zeros in front of the first.
        after: zeros behind the last.
    """

    first: int
    last: int
    before: int
    after: int


def _seen(first: int, last: int, stride: int, reach: int, padding: int, size: int) -> _Span:
    """What outputs ``first`` up to ``last`` see of ``size`` inputs behind ``padding`` zeros."""
    start = first * stride - padding
    end = (last - 1) * stride + reach - padding
    if end <= 0 or start >= size:  # nothing but padding: one input, which a negative zero takes away again
        return _Span(0, 1, -1, end - start)
    inner_first, inner_last = max(start, 0), min(end, size)
    return _Span(inner_first, inner_last, inner_first - start, end - inner_last)


def conv_padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zeros that a convolution adds left, right, above and below, as :func:`torch.nn.functional.pad` takes them."""
    if isinstance(layer.padding, str):
        if layer.padding == "valid":
            return (0, 0, 0, 0)
        vertical, horizontal = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)
    vertical, horizontal = layer.padding
    return (horizontal, horizontal, vertical, vertical)


def _region(layer: nn.Conv2d, inputs: int, rank: int | None, padding: tuple[int, int]) -> nn.Module:
    width = layer.out_channels // layer.groups
    filters = nn.Conv2d(
        inputs,
        width if rank is None else rank,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        padding,
        layer.dilation,  # type: ignore[arg-type]
        bias=rank is None,
    )
    return filters if rank is None else nn.Sequential(filters, nn.Conv2d(rank, width, 1))
