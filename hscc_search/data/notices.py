"""Notices on a data set before anything is computed on it, as plain lines of text."""

from collections.abc import Sequence

import numpy as np

from hscc_search.data.dataset import Dataset
from hscc_search.data.folder import listed
from hscc_search.data.splits import Parts
from hscc_search.errors import printable

# Images whose values reach no farther than this, of 255, are nearly empty.
EMPTY = 15
# Fewest images of a class in a part for its recall to say anything.
_FEWEST = 5
_NAMED = 5


def notices(dataset: Dataset, parts: Parts) -> tuple[str, ...]:
    """Lines on a data set and its split: what was skipped, images that show nothing, classes too small to measure."""
    empty = empty_line(dataset.contrasts, dataset.names)
    return (*dataset.notes, *empty, *_small_classes(dataset, parts))


def empty_line(contrasts: Sequence[int] | np.ndarray, names: Sequence[object]) -> tuple[str, ...]:
    """A line that counts the images that are nearly constant, such as black ones; none where there are no such images.

    Args:
        contrasts: of all images, see :func:`hscc_search.data.decode.contrast_of`.
        names: of all images.
    """
    empty = np.flatnonzero(np.asarray(contrasts) <= EMPTY)
    if not len(empty):
        return ()
    count, examples = (
        f"{len(empty):,} of {len(contrasts):,}",
        listed(printable(names[index]) for index in empty.tolist()),
    )
    shade = "of one even shade such as black or white, or of a small part of data.range"
    return (f"nearly empty images, {shade}: {count} ({examples})",)


def _small_classes(dataset: Dataset, parts: Parts) -> tuple[str, ...]:
    """A line on the classes with few images in the validation or the test part; none where labels are maps."""
    if dataset.labels.ndim > 1:
        return ()
    counts = np.stack(
        [np.bincount(part.labels, minlength=len(dataset.classes)) for part in (parts.validation, parts.test)], axis=1
    )
    small = np.flatnonzero(counts.min(axis=1) < _FEWEST)
    if not len(small):
        return ()
    words = [f"{dataset.classes[label]} ({counts[label][0]} and {counts[label][1]})" for label in small]
    return (
        f"classes with fewer than {_FEWEST} different images in the validation or the test part, too few to measure "
        f"their recall: {listed(words, _NAMED)}",
    )
