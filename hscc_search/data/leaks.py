"""Count what stands in two parts of a split of the user's own."""

import numpy as np

from hscc_search.config import LEAKS
from hscc_search.data.folder import listed
from hscc_search.data.listing import PARTS


def leaks(copies: np.ndarray, groups: np.ndarray, sides: np.ndarray, names: tuple[str, ...]) -> str | None:
    """Say how many images have a copy in another part, and how many groups stand in two; None where none do.

    Args:
        copies: int64, shape (images,); images that are copies of each other have the same number.
        groups: int64, shape (images,); likewise for images that belong together.
        sides: int64, shape (images,), positions in ``PARTS``.
        names: of the images.
    """
    copied, parted = _on_two_sides(copies, sides), _on_two_sides(groups, sides)
    words = []
    if copied.any():
        counts = ", ".join(
            f"{np.sum(copied & (sides == side)):,} of {np.sum(sides == side):,} images of the {part} part"
            for side, part in enumerate(PARTS)
            if np.any(copied & (sides == side))
        )
        first = copies == copies[copied.argmax()]
        words.append(f"{counts} have copies in another one (such as {listed(np.array(names, object)[first])})")
    if parted.any():
        count, images = len(np.unique(groups[parted])), int(parted.sum())
        first = groups == groups[parted.argmax()]
        example = listed(np.array(names, object)[first])
        words.append(
            f"{count:,} of {len(np.unique(groups)):,} groups, {images:,} images, stand in two (such as {example})"
        )
    return f"{LEAKS}: {'; '.join(words)}" if words else None


def _on_two_sides(groups: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Tell whether the group of each image has images on two sides."""
    _, group = np.unique(groups, return_inverse=True)
    present = np.zeros((group.max() + 1, len(PARTS)), bool)
    present[group, sides] = True
    on_two: np.ndarray = present.sum(axis=1) > 1
    return on_two[group]
