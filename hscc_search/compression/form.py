"""The form of a compressed network: all of it but the weights. ``architecture.json`` holds it. Needs no torch."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import FailFast, NonNegativeInt, PositiveInt, TypeAdapter

from hscc_search.config.strict import Numbers, strictly

# Layers of a network; the deepest have a few thousand.
_MOST_LAYERS = 1 << 14

# The rank of each cluster of one region; None for a region that stays dense.
RegionRanks = Annotated[tuple[int, ...] | None, FailFast()]


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
    weight: Numbers
    bias: bool
    convolution: dict[str, Any]

    @classmethod
    def from_stored(cls, tree: dict[str, Any], name: str = "plain") -> "PlainLayer":
        """Read what ``dataclasses.asdict`` has made of one.

        Raises:
            ValueError: it is none; ``name`` is its place, for the message.
        """
        plain, found = strictly(_PLAIN_LAYER, tree, name), {}
        if plain.convolution:
            found = asdict(strictly(_CONVOLUTION, plain.convolution, f"{name}.convolution"))
        if len(plain.weight) != (4 if found else 2):
            raise ValueError(f"{name}.weight: a layer has no weight of {len(plain.weight)} dimensions")
        return cls(plain.layer, plain.weight, plain.bias, found)


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
    ranks: Annotated[tuple[Annotated[tuple[RegionRanks, ...], FailFast()], ...], FailFast()]
    pieces: Annotated[tuple[Piece, ...], FailFast()]
    input_ranks: Annotated[tuple[int | None, ...], FailFast()]

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any], name: str = "layer") -> "LayerForm":
        """Undo :meth:`stored`.

        Raises:
            ValueError: it is none; ``name`` is its place, for the message.
        """
        ranks = tree.get("ranks") if isinstance(tree, dict) else None
        if isinstance(ranks, list):  # format 3 had the total of a region in place of the ranks of its clusters
            tree = {**tree, "ranks": [_by_cluster(regions) for regions in ranks]}
        form = strictly(_LAYER_FORM, tree, name)
        if len(form.input_ranks) != len(form.ranks):
            raise ValueError(f"{name}.input_ranks: {len(form.input_ranks)} for the {len(form.ranks)} groups of ranks")
        return form


@dataclass(frozen=True)
class NetworkForm:
    """The form of a compressed network, see :func:`hscc_search.compression.rebuild.rebuild`.

    Attributes:
        plain: the layers that compute their weight no longer.
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
        """Undo :meth:`stored`.

        Raises:
            ValueError: it is none.
        """
        strictly(_PARTS, tree, "form")
        plain, folds, layers = tree["plain"], tree["folds"], tree["layers"]
        if max(map(len, (plain, folds, layers))) > _MOST_LAYERS:
            raise ValueError(f"form: no network has more than {_MOST_LAYERS:,} layers")
        return cls(
            plain=tuple(PlainLayer.from_stored(layer, f"form.plain.{place}") for place, layer in enumerate(plain)),
            folds=strictly(_FOLDS, folds, "form.folds"),
            layers={name: LayerForm.from_stored(layer, f"form.layers.{name}") for name, layer in layers.items()},
        )


def total_rank(ranks: RegionRanks) -> int | None:
    """Add up the ranks of a region's clusters: its number of basis filters, None where it stays dense."""
    return None if ranks is None else sum(ranks)


def _by_cluster(regions: Any) -> Any:
    """The ranks of the regions of a group, each as those of its clusters where they are totals."""
    if not isinstance(regions, list):
        return regions
    return [[ranks] if type(ranks) is int else ranks for ranks in regions]


@dataclass(frozen=True)
class _Convolution:
    """What a plain Conv2d takes beside its channels and its kernel."""

    stride: tuple[PositiveInt, PositiveInt]
    padding: tuple[NonNegativeInt, NonNegativeInt] | Literal["same", "valid"]
    dilation: tuple[PositiveInt, PositiveInt]
    groups: PositiveInt


@dataclass(frozen=True)
class _Parts:
    """What a stored form holds, of anything."""

    plain: list[Any]
    folds: list[Any]
    layers: dict[str, Any]


_CONVOLUTION, _PARTS = TypeAdapter(_Convolution), TypeAdapter(_Parts)
_PLAIN_LAYER, _LAYER_FORM = TypeAdapter(PlainLayer), TypeAdapter(LayerForm)
_FOLDS = TypeAdapter(Annotated[tuple[Fold, ...], FailFast()])
