"""Images with labels, read and ready to be divided."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hscc_search.data.leaks import leaks
from hscc_search.errors import DataError, shortened


@dataclass(frozen=True)
class Dataset:
    """Decoded images with labels.

    Attributes:
        images: shape (images, channels, height, width), mapped from a file, read on access: uint8, or uint16 where
            files have more bits. Those of source python may be float32 of any shape, and go into the network as they
            are.
        labels: int64, shape (images,), positions in ``classes``; or such a position for each point of a map, unsigned
            integers, shape (images, height, width).
        classes: class names, in alphabetical order unless the study says another.
        copies: int64, shape (images,); images that are copies of each other have the same number.
        groups: int64, shape (images,); images that were said to belong together, such as a patient's, have the same
            number, and each image its own where nothing was said.
        fingerprint: SHA-256 over class names and image contents, whatever the files are called.
        contrasts: uint8, shape (images,), see :func:`hscc_search.data.decode.contrast_of`.
        names: of the files, for messages.
        notes: lines on what was skipped in the folder, on how its classes were found, and on its own split.
        judgement: empty where copies are those of shape alone, as version 0.1.0 judged them, and neither groups nor a
            split were given; else a digest of all that. With the fingerprint and the configuration it determines the
            split.
        sides: int64, shape (images,), positions in ``PARTS``, where a split was given; None where one is drawn.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    copies: np.ndarray
    groups: np.ndarray
    fingerprint: str
    contrasts: np.ndarray
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    judgement: str = ""
    sides: np.ndarray | None = None

    @property
    def maps(self) -> tuple[int, ...]:
        """Height and width of the labels where these are maps; empty where each image has one label."""
        return self.labels.shape[1:]


def kept_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """The part of labels that a study keeps.

    Args:
        labels: as in :class:`Dataset`.
        classes: number of classes.

    Returns:
        The labels; where these are maps, the number of points of each class in each, int64, shape (images, classes).
    """
    if labels.ndim == 1:
        return labels
    return np.stack([np.bincount(of_image.ravel(), minlength=classes) for of_image in labels])


def ordered_classes(found: Sequence[str], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The classes of the images in the order that the study says.

    Raises:
        DataError: it names others.
    """
    if wanted is None:
        return tuple(found)
    missing, more = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or more:
        wrong = [f"names {', '.join(missing)}, which no image has"] if missing else []
        wrong += [f"lacks {', '.join(more)}"] if more else []
        raise DataError(
            f"data.classes {shortened(' and '.join(wrong), 500)}: the classes of the images are "
            f"{shortened(', '.join(found), 500)}"
        )
    return wanted


def leak_lines(
    copies: np.ndarray, groups: np.ndarray, sides: np.ndarray | None, names: tuple[str, ...], allowed: bool
) -> tuple[str, ...]:
    """A line on copies and groups in two parts of a split of the user's own; none without.

    Raises:
        DataError: there are some, and the study does not allow them.
    """
    line = None if sides is None else leaks(copies, groups, sides, names)
    if line is None:
        return ()
    if not allowed:
        raise DataError(f"{line}: move them into one part, or say data.allow_leaks: true")
    return (line,)


def judged(together: np.ndarray, by_shape: np.ndarray, sides: np.ndarray | None) -> str:
    """Digest of what belongs together and of the sides; empty where 0.1.0 would have judged alike.

    Args:
        together: int64, shape (images,); images that never stand in two parts have the same number.
        by_shape: likewise, for copies in whatever colours.
        sides: see :class:`Dataset`.
    """
    if sides is None and np.array_equal(together, by_shape):
        return ""
    return hashlib.sha256(together.tobytes() + (b"" if sides is None else sides.tobytes())).hexdigest()
