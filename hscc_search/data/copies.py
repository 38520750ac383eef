"""Group images that show the same thing: exact copies, and re-encoded, resized or brightened ones.

Mirrored and turned images are no copies: which side is which may be what the classes are about.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hscc_search.config import CopyKind
from hscc_search.data.decode import contrast_of, seen
from hscc_search.data.grouping import in_order

_HASH_SIZE = 16
# Largest number of bits in which the hashes of two copies differ. On the brain-tumour set all 647 pairs that correlate
# above 0.9999 at 32 x 32 pixels lie within 6 bits of each other; within 12 bits no pair correlates below 0.97.
NEAR_BITS = 12
# The bits of a hash in an order that mixes low and high frequencies, cut into one piece more than may differ.
_PIECES = np.array_split(np.random.default_rng(0).permutation(_HASH_SIZE**2), NEAR_BITS + 1)
_PAIRS_AT_ONCE = 16384

# Colours are compared as means over 8 x 8 cells. On photographs JPEG at quality 40 changes no cell by more than 9
# levels of 255, and a brightening by 5 %, which clips, by 12; turning the hue by a quarter changes one by 42 or more.
_CELLS = 8
_NEAR_COLOURS = 16.0
# Drawings are told apart by finer shades, since their shapes say little: a flat colour survives JPEG at quality 60 to
# within 2.5 levels. In a drawing, most coloured pixels equal their neighbours.
_NEAR_FLAT_COLOURS = 2.5
_DRAWING_SIDE = 64


@dataclass(frozen=True)
class Look:
    """The values by which one image is compared with others.

    Attributes:
        bits: hash of what it shows, whatever its colours: bool, shape (256,).
        cells: mean red, green and blue: float32 0 to 255, shape (8, 8, 3).
        drawn: whether its colours are flat.
        pixels: SHA-256 of its pixels and size.
    """

    bits: np.ndarray
    cells: np.ndarray
    drawn: bool
    pixels: str


def contrast_and_look(image: Image.Image) -> tuple[int, Look]:
    """The contrast of an image from :func:`hscc_search.data.decode.read_image` as it looks in 8 bits, and its look."""
    shown = seen(image)
    return contrast_of(shown), look_of(shown, image.tobytes() if image.mode == "F" else None)


def look_of(image: Image.Image, exact: bytes | None = None) -> Look:
    """Look at an RGB image.

    Args:
        image: of 8 bits.
        exact: its pixels with all their bits, where it has more.
    """
    size = f"{image.width} {image.height} ".encode()
    return Look(
        bits=perceptual_hash(image),
        cells=np.asarray(image.resize((_CELLS, _CELLS), Image.Resampling.HAMMING), np.float32),
        drawn=_is_drawn(image),
        pixels=hashlib.sha256(size + (image.tobytes() if exact is None else exact)).hexdigest(),
    )


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Hash what an image shows, by its lowest cosine frequencies: bool, shape (256,). Colours make no difference."""
    return imagehash.phash(image, hash_size=_HASH_SIZE).hash.ravel()


def _is_drawn(image: Image.Image) -> bool:
    side = (min(image.width, _DRAWING_SIDE), min(image.height, _DRAWING_SIDE))
    pixels = np.asarray(image.resize(side, Image.Resampling.NEAREST), np.int16)
    coloured = np.ptp(pixels[:-1, :-1], axis=2) > _NEAR_COLOURS
    flat = (pixels[:-1, :-1] == pixels[1:, :-1]).all(axis=2) & (pixels[:-1, :-1] == pixels[:-1, 1:]).all(axis=2)
    return bool(coloured.any() and flat[coloured].mean() > 0.5)


def near_pairs(hashes: np.ndarray) -> np.ndarray:
    """Find the pairs of images whose hashes are those of copies.

    Hashes that differ in at most 12 bits are equal in one of 13 pieces at least, so that only neighbours in an order by
    one piece are compared (Manku et al. 2007). That takes n log n, and time for each pair that shares a piece.

    Args:
        hashes: bool, shape (images, 256), from :func:`perceptual_hash`.

    Returns:
        int64, shape (pairs, 2), the smaller index first, in ascending order.
    """
    words = np.packbits(hashes, axis=1).view(np.uint64) if len(hashes) else np.empty((0, 4), np.uint64)
    found = [np.empty(0, np.int64)]
    for piece in _PIECES:
        keys = np.packbits(hashes[:, piece], axis=1).astype(np.int64) @ (256 ** np.arange(-(-len(piece) // 8)))
        for first, second in _equal_pairs(keys):
            near = np.bitwise_count(words[first] ^ words[second]).sum(axis=1) <= NEAR_BITS
            found.append(first[near] * len(hashes) + second[near])
    codes = np.unique(np.concatenate(found))
    return np.stack([codes // max(len(hashes), 1), codes % max(len(hashes), 1)], axis=1)


def _equal_pairs(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Go through the pairs of images with equal keys, at most one for each image at a time, the smaller index first."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    positions, apart = np.arange(len(keys)), 1
    while len(positions):
        positions = positions[positions + apart < len(keys)]
        positions = positions[ordered[positions] == ordered[positions + apart]]
        yield order[positions], order[positions + apart]
        apart += 1


def copy_pairs(looks: Sequence[Look], kind: CopyKind) -> np.ndarray:
    """Find the pairs of images that are copies of each other.

    Args:
        looks: of all images.
        kind: ``near`` for what shows the same in the same colours, ``shape`` for the same in whatever colours,
            ``exact`` for equal pixels, ``none`` for no copies at all.

    Returns:
        int64, shape (pairs, 2), the smaller index first, in ascending order.
    """
    if not looks or kind == "none":
        return np.empty((0, 2), np.int64)
    return _of_kind(near_pairs(np.stack([look.bits for look in looks])), looks, kind)


def copy_groups(looks: Sequence[Look]) -> dict[CopyKind, np.ndarray]:
    """Number the groups of copies: images that pairs of copies link, directly or by a chain.

    Returns:
        For each kind of copies, see :func:`copy_pairs`: int64, shape (images,); images of one group have the same
        number.
    """
    # Images of equal pixels are compared with others once: of a thousand black ones there are half a million pairs.
    pixels = np.array([look.pixels for look in looks])
    _, first, same = np.unique(pixels, return_index=True, return_inverse=True)
    different = [looks[index] for index in first]
    pairs = copy_pairs(different, "shape")
    kinds: tuple[CopyKind, ...] = get_args(CopyKind)
    groups = {kind: in_order(numbered_copies(_of_kind(pairs, different, kind), len(different))[same]) for kind in kinds}
    return {**groups, "none": np.arange(len(looks))}


def numbered_copies(pairs: np.ndarray, count: int) -> np.ndarray:
    """Number the images that pairs link, directly or by a chain, int64, shape (count,), in the order they come."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)  # type: ignore[no-any-return]


def _of_kind(pairs: np.ndarray, looks: Sequence[Look], kind: CopyKind) -> np.ndarray:
    """Keep those of the pairs of equal shape that are copies of one kind; equal pixels have equal hashes, too."""
    first, second = pairs.T
    if kind == "shape":
        return pairs
    if kind == "none":
        return pairs[:0]
    if kind == "exact":
        pixels = np.array([look.pixels for look in looks])
        return np.compress(pixels[first] == pixels[second], pairs, axis=0)
    cells, drawn = np.stack([look.cells for look in looks]), np.array([look.drawn for look in looks])
    kept = [pairs[:0]]
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        one, two = pairs[start : start + _PAIRS_AT_ONCE].T
        same = _same_colours(cells[one], cells[two], drawn[one] & drawn[two])
        kept.append(pairs[start : start + _PAIRS_AT_ONCE][same])
    return np.concatenate(kept)


def _same_colours(first: np.ndarray, second: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Judge whether the images of each pair have the same colours, when the brighter one is darkened to the other.

    Args:
        first: cells of the first images, shape (pairs, 8, 8, 3).
        second: cells of the second images.
        drawn: whether both images are drawings, shape (pairs,).
    """
    brightness, other = first.mean(axis=(1, 2, 3)), second.mean(axis=(1, 2, 3))
    darker = np.minimum(brightness, other)

    def chroma(cells: np.ndarray, own: np.ndarray) -> np.ndarray:
        red, green, blue = np.moveaxis(cells * (darker / np.maximum(own, 1e-6))[:, None, None, None], 3, 0)
        return np.stack([red - green, (red + green) / 2 - blue])

    one, two = chroma(first, brightness), chroma(second, other)
    difference = np.hypot(*(one - two))
    weight = np.hypot(*one) + np.hypot(*two)
    weighted = (difference * weight).sum(axis=(1, 2)) / np.maximum(weight.sum(axis=(1, 2)), 1e-6)
    near = difference.max(axis=(1, 2)) <= _NEAR_COLOURS
    same: np.ndarray = near & (~drawn | (weighted <= _NEAR_FLAT_COLOURS))
    return same
