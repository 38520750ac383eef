"""Bootstrap draws of images, or of groups of images that belong together. Needs no torch."""

import numpy as np


def draw_counts(images: int, draws: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Draw images with replacement, or whole groups of them.

    Images of one patient are not independent: drawing them one by one makes errors too small. So where a group has
    several images, as many groups as there are are drawn, each with all its images (cluster bootstrap, Davison and
    Hinkley 1997, section 3.8).

    Args:
        images: number of images.
        draws: number of draws.
        seed: of the draws.
        groups: integers, shape (images,), the same for images that belong together; None where none do.

    Returns:
        How often each image is drawn, uint16, shape (draws, images); for 0 draws one row in which every image is
        drawn once.
    """
    if not draws:
        return np.ones((1, images), dtype=np.uint16)
    generator = np.random.default_rng(seed)
    drawn, of_image = images, None
    if groups is not None and not alone(groups):
        names, of_image = np.unique(groups, return_inverse=True)
        drawn = len(names)
    counts = np.stack(
        [np.bincount(generator.integers(drawn, size=drawn), minlength=drawn) for _ in range(draws)]
    ).astype(np.uint16)
    return counts if of_image is None else counts[:, of_image]


def alone(groups: np.ndarray) -> bool:
    """Tell whether each image is a group of its own."""
    return len(np.unique(groups)) == len(groups)
