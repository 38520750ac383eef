"""Spatial partitions of a layer's output map, learnt from its activations or fixed, and the controls.

Every strategy returns one label map, int64 of shape (height, width) with labels 0..R-1, each present. A label map is
run as pieces: rectangles of one region each, in rows of equal height. Each piece is a convolution of its own, so
strategies that could give any label map label tiles rather than single positions.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

from hscc_search.compression.division.clusters import k_means
from hscc_search.compression.form import Piece
from hscc_search.config import RegionStrategy
from hscc_search.errors import CompressionError

# Tiles along each side of a map. On AlexNet's second layer, with one image and 4 random regions, 4 tiles a side give 14
# pieces, which take 3 times as long as the undivided map, about as long as the dense layer; 6 a side take 5 times.
_TILES = 4

# Profiles (channels, height, width), number of regions and seed to a label map.
Strategy = Callable[[np.ndarray, int, int], np.ndarray]


def grid(profiles: np.ndarray, regions: int, seed: int) -> np.ndarray:
    """Rectangles in rows, as square as the number allows: 4 regions are 2 x 2, 5 are a row of 2 above a row of 3.

    A map with too few positions along a side gets fewer regions.
    """
    _, height, width = profiles.shape
    rows = min(height, max(1, round(regions**0.5)))
    columns = sorted(len(row) for row in np.array_split(np.arange(regions), rows))
    labels = np.empty((height, width), np.int64)
    first = 0
    for band, count in zip(np.array_split(np.arange(height), rows), columns, strict=True):
        count = min(count, width)
        labels[band] = first + _equal_runs(width, count)
        first += count
    return labels


def bands(profiles: np.ndarray, regions: int, seed: int) -> np.ndarray:
    """Horizontal bands of equal height, at most one per row."""
    _, height, width = profiles.shape
    return np.repeat(_equal_runs(height, min(regions, height))[:, None], width, axis=1)


def kmeans(profiles: np.ndarray, regions: int, seed: int) -> np.ndarray:
    """Tiles with similar mean activation profiles, adjacent or not; fewer regions where profiles coincide."""
    tiles = _Tiles(profiles.shape, regions)
    features = tiles.features(profiles)
    labels = k_means(features.reshape(-1, features.shape[-1]), regions, seed)
    return tiles.spread(labels.reshape(features.shape[:2]))


def slic(profiles: np.ndarray, regions: int, seed: int) -> np.ndarray:
    """Superpixels: connected sets of tiles that are near each other in position and in profile.

    On a map of few tiles SLIC gives only roughly as many superpixels as asked for. It is asked for more and more until
    there are enough, and then neighbours that differ least are joined.
    """
    from skimage.segmentation import slic as skimage_slic  # slow to import, and few studies need it

    tiles = _Tiles(profiles.shape, regions)
    features = tiles.features(profiles)
    # SLIC scales the range of the values to 1. This undoes it: profiles a standard deviation apart are as far from each
    # other as the centres of neighbouring superpixels.
    compactness = 1 / (float(np.ptp(features)) or 1.0)
    count = features.shape[0] * features.shape[1]
    labels = np.zeros(features.shape[:2], np.int64)
    for asked in range(regions, count + 1):
        labels = skimage_slic(
            features, asked, compactness, channel_axis=-1, convert2lab=False, start_label=0, enforce_connectivity=True
        )
        if len(np.unique(labels)) >= regions:
            break
    return tiles.spread(_join_neighbours(labels, features, regions))


def random(profiles: np.ndarray, regions: int, seed: int) -> np.ndarray:
    """Tiles at random, in regions whose sizes differ by at most one tile."""
    tiles = _Tiles(profiles.shape, regions)
    count = len(tiles.tops) * len(tiles.lefts)
    labels = np.random.default_rng(seed).permutation(np.arange(count) % min(regions, count))
    return tiles.spread(labels.reshape(len(tiles.tops), len(tiles.lefts)))


def none(profiles: np.ndarray, regions: int, seed: int) -> np.ndarray:
    """The whole map as one region."""
    return np.zeros(profiles.shape[1:], np.int64)


STRATEGIES: dict[RegionStrategy, Strategy] = {
    "grid": grid,
    "bands": bands,
    "kmeans": kmeans,
    "slic": slic,
    "random": random,
    "none": none,
}


def label_map(strategy: RegionStrategy, profiles: np.ndarray, regions: int, seed: int) -> np.ndarray:
    """Divide the output map of a layer into regions.

    Args:
        strategy: a key of ``STRATEGIES``.
        profiles: the mean activation profile of each output position, float32 (channels, height, width), finite.
        regions: number of regions, at most; never more than there are positions, or tiles where the strategy labels
            tiles.
        seed: for the strategies that draw, 0 to 2^32 - 1.

    Returns:
        The region of each position: int64, shape (height, width), labels 0..R-1, each present.

    Raises:
        CompressionError: there is no such strategy, or ``regions`` is below 1.
    """
    check_regions(strategy, regions)
    return STRATEGIES["none" if regions == 1 else strategy](profiles, regions, seed)


def check_regions(strategy: str, regions: int) -> None:
    """Raise CompressionError unless there is such a strategy and ``regions`` is 1 or more."""
    if regions < 1:
        raise CompressionError(f"regions must be 1 or more, not {regions}")
    if strategy not in STRATEGIES:
        raise CompressionError(f"no region strategy {strategy!r}: use one of {', '.join(STRATEGIES)}")


def pieces(labels: np.ndarray) -> tuple[Piece, ...]:
    """Cut a label map into rectangles: rows that are alike form a band, and runs of one label in it are pieces.

    Returns:
        Pieces from top to bottom and left to right; together they cover each position once.
    """
    height, width = labels.shape
    row_breaks = [0, *(np.flatnonzero((labels[1:] != labels[:-1]).any(axis=1)) + 1).tolist(), height]
    cut = []
    for top, bottom in itertools.pairwise(row_breaks):
        row = labels[top]
        breaks = [0, *(np.flatnonzero(row[1:] != row[:-1]) + 1).tolist(), width]
        cut += [Piece(top, bottom, left, right, int(row[left])) for left, right in itertools.pairwise(breaks)]
    return tuple(cut)


class _Tiles:
    """Nearly equal tiles over a map: at least one per region, unless the map has fewer positions.

    Attributes:
        rows: the row of tiles that each row of the map belongs to, int (height,); ``columns`` alike, (width,).
        tops: the first row of the map in each row of tiles; ``lefts`` alike.
    """

    def __init__(self, shape: tuple[int, ...], regions: int) -> None:
        _, height, width = shape
        tiles_per_side = max(_TILES, math.isqrt(regions - 1) + 1)
        self.rows = _equal_runs(height, min(tiles_per_side, height))
        self.columns = _equal_runs(width, min(tiles_per_side, width))
        self.tops = np.unique(self.rows, return_index=True)[1]
        self.lefts = np.unique(self.columns, return_index=True)[1]

    def features(self, profiles: np.ndarray) -> np.ndarray:
        """The mean profile of each tile, float64 (rows, columns, channels), with mean 0 and mean squared length 1."""
        sums = np.add.reduceat(np.add.reduceat(profiles.astype(np.float64), self.tops, 1), self.lefts, 2)
        means = np.moveaxis(sums / np.outer(np.bincount(self.rows), np.bincount(self.columns)), 0, -1)
        features = means - means.mean(axis=(0, 1))
        scale = np.sqrt(np.square(features).sum(axis=2).mean())
        # A difference below float32's resolution of the values themselves is rounding.
        if scale <= 1e-6 * np.linalg.norm(means, axis=2).max():
            return np.zeros_like(features)
        return np.asarray(features / scale)

    def spread(self, labels: np.ndarray) -> np.ndarray:
        """Make a label map of the positions from the labels of the tiles, numbered from 0 in reading order."""
        _, first, indices = np.unique(labels, return_index=True, return_inverse=True)
        numbers = np.argsort(np.argsort(first))[indices].reshape(labels.shape)
        return np.asarray(numbers[self.rows[:, None], self.columns[None, :]], np.int64)


def _join_neighbours(labels: np.ndarray, features: np.ndarray, count: int) -> np.ndarray:
    """Join adjacent regions until ``count`` are left, each time the two that add the least variance within regions."""
    labels = labels.copy()

    def added_variance(pair: list[int]) -> tuple[float, int]:
        first, second = (features[labels == label] for label in pair)
        distance = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
        return float(distance / (1 / len(first) + 1 / len(second))), len(first) + len(second)

    while len(np.unique(labels)) > count:
        label, joined_label = min(_adjacent(labels).tolist(), key=added_variance)
        labels[labels == joined_label] = label
    return labels


def _adjacent(labels: np.ndarray) -> np.ndarray:
    """Pairs of different labels that touch, int (pairs, 2), in ascending order."""
    steps = [(labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])]
    touching = np.concatenate([np.stack(step, axis=-1).reshape(-1, 2) for step in steps])
    pairs = np.unique(np.sort(touching, axis=1), axis=0)
    return np.asarray(pairs[pairs[:, 0] != pairs[:, 1]])


def _equal_runs(length: int, count: int) -> np.ndarray:
    """Labels 0..count-1 in runs whose lengths differ by at most 1, int (length,)."""
    return np.arange(length) * count // length
