"""The compressed layers that run: ordinary torch modules, made of ordinary convolutions and linear layers.

A factored region computes ``y = P (B x) + b``: basis filters B (rank x D), then the recombination P
(Cout x rank) with a bias. Where it pays, x is brought to fewer channels first, once for all regions:
``B x = B' (E x)`` with a 1 x 1 convolution E, the encoder. A dense region keeps one convolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hscc_search.compression.form import LayerForm, RegionRanks, total_rank
from hscc_search.compression.stand_ins import stand_in
from hscc_search.errors import CompressionError

# Zeros on the left, on the right, above and below, as torch.nn.functional.pad takes them.
Padding = tuple[int, int, int, int]

_NO_PADDING = (0, 0, 0, 0)


@dataclass(frozen=True)
class Patch:
    """The input that the filters of one piece see.

    Attributes:
        x: float (images, channels, height, width).
        padding: zeros to add around it; where it is negative, the patch is cropped.
    """

    x: torch.Tensor
    padding: Padding = _NO_PADDING

    def filtered(self, filters: nn.Module) -> torch.Tensor:
        """Pad the patch and run filters on it."""
        x = functional.pad(self.x, self.padding) if any(self.padding) else self.x
        return filters(x)  # type: ignore[no-any-return]


class RegionConv2d(nn.Module):
    """A convolution, or one group of it, with separate filters for each region of its output map.

    Takes float (images, Cin, height, width) and returns float (images, Cout, height, width). With several regions the
    height and width of the output must be those of the form.

    Attributes:
        form: of the layer.
        kernel_reach: rows and columns of the input that one output position sees.
        stride: of the dense layer, (vertical, horizontal).
        whole: whether the map is a single piece, which takes an input of any size.
        encoder: brings the input to fewer channels, None where the filters see all channels.
        regions: for each region its filters: basis filters and recombination as a Sequential, or one dense convolution.
        zeros: that are added around the encoded input before it is cut into patches.
    """

    def __init__(self, layer: nn.Conv2d, form: LayerForm, group: int) -> None:
        super().__init__()
        self.form = form
        self.kernel_reach = kernel_reach(layer)
        self.stride = layer.stride
        self.whole = len(form.pieces) == 1
        self.zeros = conv_padding(layer)
        left, right, top, bottom = self.zeros
        filter_padding = (0, 0)
        # A region that is the whole map pads as it convolves, which saves a copy.
        if self.whole and (left, top) == (right, bottom):
            filter_padding, self.zeros = (top, left), _NO_PADDING
        channels = layer.in_channels // layer.groups
        input_rank = form.input_ranks[group]
        self.encoder: nn.Conv2d | None = None
        if input_rank is not None:
            self.encoder = nn.Conv2d(channels, input_rank, 1, bias=False)
            channels = input_rank
        self.regions = nn.ModuleList(
            _region_filters(layer, channels, ranks, filter_padding) for ranks in form.ranks[group]
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute each piece of the output map with its region's filters.

        Raises:
            CompressionError: the map has several regions, and the input another size than the layer was made for.
        """
        patches = self.cut(input)
        pieces = self.form.pieces
        return self.join(
            [patch.filtered(self.regions[piece.region]) for piece, patch in zip(pieces, patches, strict=True)]
        )

    def cut(self, x: torch.Tensor) -> list[Patch]:
        """Encode the input, and cut out what each piece of the output map sees of it."""
        if self.encoder is not None:
            x = self.encoder(x)
        if self.whole:
            return [Patch(x, self.zeros)]
        self._check_size(x)
        height, width = x.shape[2:]
        left, _, top, _ = self.zeros
        patches = []
        for piece in self.form.pieces:
            rows = _input_span(piece.top, piece.bottom, self.stride[0], self.kernel_reach[0], top, height)
            columns = _input_span(piece.left, piece.right, self.stride[1], self.kernel_reach[1], left, width)
            seen = x[:, :, rows.first : rows.end, columns.first : columns.end]
            patches.append(
                Patch(seen, (columns.zeros_before, columns.zeros_after, rows.zeros_before, rows.zeros_after))
            )
        return patches

    def join(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join the outputs of all pieces to the output map."""
        if self.whole:
            return outputs[0]
        bands: dict[tuple[int, int], list[torch.Tensor]] = {}
        for piece, output in zip(self.form.pieces, outputs, strict=True):
            bands.setdefault((piece.top, piece.bottom), []).append(output)
        return torch.cat([torch.cat(band, dim=3) for band in bands.values()], dim=2)

    def _check_size(self, x: torch.Tensor) -> None:
        left, right, top, bottom = self.zeros
        padded = (x.shape[2] + top + bottom, x.shape[3] + left + right)
        size = tuple((padded[axis] - self.kernel_reach[axis]) // self.stride[axis] + 1 for axis in (0, 1))
        if size != self.form.output_size:
            raise CompressionError(f"regions belong to a map of {self.form.output_size} positions, not {size}")


class GroupedRegionConv2d(nn.Module):
    """A grouped convolution, each group a :class:`RegionConv2d`.

    Takes float (images, Cin, height, width) and returns float (images, Cout, height, width).

    Attributes:
        of_group: the convolution of each group. Not ``groups``: that is the number which the dense layer has by this
            name, for a user's forward pass and for ``repr``, which torch's exporter calls.
    """

    def __init__(self, layer: nn.Conv2d, form: LayerForm) -> None:
        super().__init__()
        self.of_group = nn.ModuleList(RegionConv2d(layer, form, group) for group in range(layer.groups))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Run each group on its share of the channels, and join their outputs."""
        shares = input.chunk(len(self.of_group), dim=1)
        return torch.cat([group(share) for group, share in zip(self.of_group, shares, strict=True)], dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Read weights, also those of 0.1.0, which called the groups ``groups``."""
        for name in [name for name in state_dict if name.startswith(f"{prefix}groups.")]:
            state_dict[f"{prefix}of_group.{name.removeprefix(f'{prefix}groups.')}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def build(layer: nn.Module, form: LayerForm) -> nn.Module:
    """Build a compressed layer of the given form to take the place of ``layer``; its weights are still to be set."""
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    return stand_in(_built(layer, form), layer)


def _built(layer: nn.Conv2d | nn.Linear, form: LayerForm) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return RegionConv2d(layer, form, 0) if layer.groups == 1 else GroupedRegionConv2d(layer, form)
    ((ranks,),) = form.ranks
    rank = total_rank(ranks)
    if rank is None:
        return nn.Linear(layer.in_features, layer.out_features)
    return nn.Sequential(
        nn.Linear(layer.in_features, rank, bias=False),
        nn.Linear(rank, layer.out_features),
    )


def group_modules(module: nn.Module) -> list[nn.Module]:
    """The modules that :func:`build` made for the groups of one layer; a layer without groups is one module."""
    return list(module.of_group) if isinstance(module, GroupedRegionConv2d) else [module]


def region_modules(module: nn.Module) -> list[nn.Module]:
    """The modules that :func:`build` made for the regions of one group: two stages each, or one where it is dense."""
    return list(module.regions) if isinstance(module, RegionConv2d) else [module]


def kernel_reach(layer: nn.Conv2d) -> tuple[int, int]:
    """The rows and columns of the input that one output position sees."""
    rows, columns = (d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    return rows, columns


def conv_padding(layer: nn.Conv2d) -> Padding:
    """The zeros that a convolution adds on the left, on the right, above and below."""
    if isinstance(layer.padding, str):
        if layer.padding == "valid":
            return _NO_PADDING
        vertical, horizontal = (d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
        return (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)
    vertical, horizontal = layer.padding
    return (horizontal, horizontal, vertical, vertical)


@dataclass(frozen=True)
class _Span:
    """The inputs along one axis that a run of outputs sees.

    Attributes:
        first: index of the first input.
        end: index behind the last input.
        zeros_before: padding in front of the first input.
        zeros_after: padding behind the last input.
    """

    first: int
    end: int
    zeros_before: int
    zeros_after: int


def _input_span(first: int, end: int, stride: int, reach: int, padding: int, size: int) -> _Span:
    """The inputs that outputs ``first`` up to ``end`` see, of ``size`` inputs behind ``padding`` zeros."""
    seen_first = first * stride - padding
    seen_end = (end - 1) * stride + reach - padding
    if seen_end <= 0 or seen_first >= size:
        # Only padding is seen: take one input and crop it with a padding of -1.
        return _Span(0, 1, -1, seen_end - seen_first)
    input_first, input_end = max(seen_first, 0), min(seen_end, size)
    return _Span(input_first, input_end, input_first - seen_first, seen_end - input_end)


def _region_filters(layer: nn.Conv2d, channels: int, ranks: RegionRanks, padding: tuple[int, int]) -> nn.Module:
    """Build the filters of one region, which see ``channels`` channels and pad by themselves (vertical, horizontal)."""
    outputs = layer.out_channels // layer.groups
    rank = total_rank(ranks)
    filters = nn.Conv2d(
        channels,
        outputs if rank is None else rank,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        padding,
        layer.dilation,  # type: ignore[arg-type]
        bias=rank is None,
    )
    return filters if rank is None else nn.Sequential(filters, nn.Conv2d(rank, outputs, 1))
