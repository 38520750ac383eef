"""The form of a compressed network: all of it but the weights. ``architecture.json`` holds it. Needs no torch."""

from dataclasses import asdict, dataclass
from typing import Any

# The rank of each cluster of one region; None for a region that stays dense.
RegionRanks = tuple[int, ...] | None


@dataclass(frozen=True)
class Piece:
    """A rectangle of output positions that belong to one region.

    Attributes:
        top: first row.
        bottom: row behind the last one.
        left: first column.
        right: column behind the last one.
        region: number of the region, from 0.
    """

    top: int
    bottom: int
    left: int
    right: int
    region: int


@dataclass(frozen=True)
class Fold:
    """A batch norm and the layer that absorbs it.

    Attributes:
        convolution: path of the Conv2d, or of the Linear before a BatchNorm1d.
        batch_norm: path of the batch norm.
    """

    convolution: str
    batch_norm: str


@dataclass(frozen=True)
class PlainLayer:
    """A Conv2d or Linear in the place of a layer that computed its weight anew in each pass, always to the same values.

    Attributes:
        layer: its path.
        weight: shape of the weight: of four dimensions for a Conv2d, of two for a Linear.
        bias: whether there is one.
        convolution: for a Conv2d ``stride``, ``padding``, ``dilation`` and ``groups``, as it takes them; else empty.
    """

    layer: str
    weight: tuple[int, ...]
    bias: bool
    convolution: dict[str, Any]

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "PlainLayer":
        """Read what ``dataclasses.asdict`` has made of one."""
        convolution = {
            name: tuple(value) if isinstance(value, list) else value for name, value in tree["convolution"].items()
        }
        return cls(tree["layer"], tuple(tree["weight"]), tree["bias"], convolution)


@dataclass(frozen=True)
class LayerForm:
    """The form of one compressed layer.

    Attributes:
        output_size: height and width of the layer's output map; (1, 1) for a fully connected layer on vectors.
        ranks: for each group of the convolution (one, if it is not grouped) the ranks of each region.
        pieces: rectangles that cover the map, see :func:`hscc_search.compression.division.regions.pieces`.
        input_ranks: for each group the number of channels that its input is brought to before the basis filters of all
            its regions; None where these see all channels.
    """

    output_size: tuple[int, int]
    ranks: tuple[tuple[RegionRanks, ...], ...]
    pieces: tuple[Piece, ...]
    input_ranks: tuple[int | None, ...]

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "LayerForm":
        """Undo :meth:`stored`."""
        height, width = tree["output_size"]
        return cls(
            output_size=(height, width),
            ranks=tuple(tuple(_region_ranks(ranks) for ranks in regions) for regions in tree["ranks"]),
            pieces=tuple(Piece(**piece) for piece in tree["pieces"]),
            input_ranks=tuple(tree["input_ranks"]),
        )


@dataclass(frozen=True)
class NetworkForm:
    """The form of a compressed network, see :func:`hscc_search.compression.rebuild.rebuild`.

    Attributes:
        plain: the layers that compute their weight no longer. Version 0.1.0 stored none.
        folds: the batch norms that were folded.
        layers: the form of each compressed layer by its path.
    """

    plain: tuple[PlainLayer, ...]
    folds: tuple[Fold, ...]
    layers: dict[str, LayerForm]

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "NetworkForm":
        """Undo :meth:`stored`."""
        return cls(
            plain=tuple(PlainLayer.from_stored(layer) for layer in tree.get("plain", ())),
            folds=tuple(Fold(**fold) for fold in tree["folds"]),
            layers={name: LayerForm.from_stored(layer) for name, layer in tree["layers"].items()},
        )


def total_rank(ranks: RegionRanks) -> int | None:
    """Add up the ranks of a region's clusters: its number of basis filters, None where it stays dense."""
    return None if ranks is None else sum(ranks)


def _region_ranks(stored: list[int] | int | None) -> RegionRanks:
    """Read the ranks of one region. Format 3 had their total in place of the ranks of the clusters."""
    if stored is None:
        return None
    return (stored,) if isinstance(stored, int) else tuple(stored)
