"""The division of layers into regions and clusters, as a trial stores it and a page draws it. Needs no torch."""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hscc_search.compression.form import Piece

# Most channels of a co-activation picture, and most points of all pictures of a trial, a byte each: databases take
# 65,535 bytes for an attribute, and a byte takes a third more in text.
SIDE = 32
_MOST_POINTS = 36_000


@dataclass(frozen=True, eq=False)
class DividedLayer:
    """The division of one layer that has more than one region or cluster.

    Attributes:
        name: the layer's path in the network.
        output_size: height and width of its output map.
        pieces: rectangles that cover the map, each with the region that it belongs to.
        clusters: for each region the number of channels in each cluster. Of a grouped convolution, in its first group.
        coactivation: for each region the correlations between its channels after the activation, -127 to 127 for -1 to
            1, int8, shape (side, side): channels in the order of their clusters, neighbours averaged where there are
            more than ``SIDE``. None where there is one cluster, or no room for a picture.
    """

    name: str
    output_size: tuple[int, int]
    pieces: tuple[Piece, ...]
    clusters: tuple[tuple[int, ...], ...]
    coactivation: tuple[np.ndarray | None, ...]

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        pictures = [None if picture is None else _packed(picture) for picture in self.coactivation]
        return {
            "name": self.name,
            "output_size": list(self.output_size),
            "pieces": [[piece.top, piece.bottom, piece.left, piece.right, piece.region] for piece in self.pieces],
            "clusters": [list(sizes) for sizes in self.clusters],
            "coactivation": pictures,
        }

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "DividedLayer":
        """Undo :meth:`stored`."""
        height, width = tree["output_size"]
        return cls(
            name=tree["name"],
            output_size=(height, width),
            pieces=tuple(Piece(*piece) for piece in tree["pieces"]),
            clusters=tuple(map(tuple, tree["clusters"])),
            coactivation=tuple(None if text is None else _unpacked(text) for text in tree["coactivation"]),
        )


def coactivation_picture(correlations: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Draw the correlations between channels in the order of their clusters.

    Args:
        correlations: -1 to 1, shape (channels, channels).
        clusters: int, shape (channels,), the cluster of each channel.

    Returns:
        int8, shape (side, side), see :class:`DividedLayer`.
    """
    order = np.argsort(clusters, kind="stable")
    return np.asarray(np.rint(127 * _averaged(correlations[np.ix_(order, order)], SIDE)), np.int8)


def with_smaller_pictures(layers: Sequence[DividedLayer]) -> tuple[DividedLayer, ...]:
    """Make the pictures of all layers smaller, where they are too many to be stored as they are."""
    count = sum(picture is not None for layer in layers for picture in layer.coactivation)
    side = min(SIDE, int((_MOST_POINTS / max(count, 1)) ** 0.5))
    return tuple(
        replace(
            layer,
            coactivation=tuple(
                None if picture is None or side < 2 else np.rint(_averaged(picture, side)).astype(np.int8)
                for picture in layer.coactivation
            ),
        )
        for layer in layers
    )


def _averaged(values: np.ndarray, side: int) -> np.ndarray:
    """Average neighbours of a square, so that it has ``side`` rows and columns at most."""
    length = len(values)
    if length <= side:
        return np.asarray(values)
    starts = np.arange(side) * length // side
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float64), starts, 0), starts, 1)
    lengths = np.diff(np.append(starts, length))
    return np.asarray(sums / np.outer(lengths, lengths))


def _packed(picture: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(picture.tobytes(), 9)).decode()


def _unpacked(text: str) -> np.ndarray:
    values = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.int8)
    return values.reshape(round(len(values) ** 0.5), -1)
