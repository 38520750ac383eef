"""Spatial partitions of a layer's output map.

Every strategy returns one label map, int64 of shape (height, width) with labels 0..R-1, each present. A label map
is executed as pieces: rectangles of one region each, in rows of equal height.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from hscc_search.errors import CompressionError


@dataclass(frozen=True)
class Piece:
    """A rectangle of output positions, ``top`` and ``left`` included, ``bottom`` and ``right`` not."""

    top: int
    bottom: int
    left: int
    right: int
    region: int


def grid(height: int, width: int, regions: int) -> np.ndarray:
    """Rectangles as square as the count allows: 4 regions are 2 x 2, 5 are a row of 2 above a row of 3.

    A map with fewer positions than ``regions`` along a side gets fewer regions.
    """
    rows = min(height, max(1, round(regions**0.5)))
    columns = [len(part) for part in np.array_split(np.arange(regions), rows)]
    columns.sort()
    labels = np.empty((height, width), np.int64)
    first = 0
    for band, count in zip(np.array_split(np.arange(height), rows), columns, strict=True):
        count = min(count, width)
        labels[band] = first + _equal_runs(width, count)
        first += count
    return labels


def bands(height: int, width: int, regions: int) -> np.ndarray:
    """Horizontal bands of equal height, at most one per row."""
    return np.repeat(_equal_runs(height, min(regions, height))[:, None], width, axis=1)


STRATEGIES = {"grid": grid, "bands": bands}


def label_map(strategy: str, height: int, width: int, regions: int) -> np.ndarray:
    """The label map of a strategy, ``grid`` or ``bands``.

    Raises:
        CompressionError: there is no such strategy, or ``regions`` is below 1.
    """
    check_regions(strategy, regions)
    return STRATEGIES[strategy](height, width, regions)


def check_regions(strategy: str, regions: int) -> None:
    """Raise CompressionError unless there is such a strategy and ``regions`` is 1 or more."""
    if regions < 1:
        raise CompressionError(f"regions must be 1 or more, not {regions}")
    if strategy not in STRATEGIES:
        raise CompressionError(f"no region strategy {strategy!r}: use {' or '.join(STRATEGIES)}")


def pieces(labels: np.ndarray) -> tuple[Piece, ...]:
    """Cut a label map into rectangles: rows that are alike form a band, runs in a band are pieces.

    Returns:
        Pieces from top to bottom and left to right; together they cover each position once.
    """
    height, width = labels.shape
    found = []
    row_breaks = [0, *(np.flatnonzero((labels[1:] != labels[:-1]).any(axis=1)) + 1).tolist(), height]
    for top, bottom in itertools.pairwise(row_breaks):
        row = labels[top]
        breaks = [0, *(np.flatnonzero(row[1:] != row[:-1]) + 1).tolist(), width]
        found += [Piece(top, bottom, left, right, int(row[left])) for left, right in itertools.pairwise(breaks)]
    return tuple(found)


def _equal_runs(length: int, count: int) -> np.ndarray:
    return np.arange(length) * count // length
