"""Which images belong together, such as those of a patient: by their paths, by a table, and by being copies."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hscc_search.data.folder import listed
from hscc_search.data.listing import Listed
from hscc_search.errors import DataError, quoted

# Expressions that find what looks like a patient's number, each tried on all paths: a word that says so, the folder of
# an image (below its class folder), and what stands with a digit before the last number of a file's name.
_GUESSES = (
    r"(?i)((?:patient|pat|subject|subj|sub|case|person|donor|animal|slide|scan|series)[-_ ]?\d+)",
    r"([^/]*\d[^/]*)/[^/]+$",
    r"([^/]*\d[^/]*?)[-_. (]+[A-Za-z]*\d+\)?\.[^./]+$",
)
# A guess is told where it fits so many of the paths and finds so many groups, of so many images each on average.
_FITTING, _FEWEST_GROUPS, _IMAGES_PER_GROUP = 0.9, 3, 1.5


@dataclass(frozen=True)
class Guess:
    """An expression that finds in the paths of images what looks like a patient's number.

    Attributes:
        expression: regular, for ``data.groups``.
        groups: number of different ones that it finds.
        example: one of those with most images.
    """

    expression: str
    groups: int
    example: str


def grouped(images: Sequence[Listed], expression: str) -> list[Listed]:
    """Give each image the group that an expression finds in its place.

    Raises:
        DataError: it finds none in some.
    """
    pattern = re.compile(expression)
    found = [_group(pattern, image.place) for image in images]
    missed = [image.place for image, group in zip(images, found, strict=True) if not group]
    if missed:
        raise DataError(
            f"data.groups: {quoted(expression)} finds no group in {len(missed):,} of {len(images):,} paths "
            f"({listed(missed)}): give an expression that finds one in each"
        )
    return [replace(image, group=group) for image, group in zip(images, found, strict=True)]


def guess_groups(images: Sequence[Listed]) -> Guess | None:
    """Find out whether paths look as if they held a patient's number that recurs; None where none does."""
    classes = len({image.class_name for image in images})
    for expression in _GUESSES:
        pattern = re.compile(expression)
        groups = [group for group in (_group(pattern, _below_class(image)) for image in images) if group]
        counts = Counter(groups)
        if (
            len(groups) >= _FITTING * len(images)
            and len(counts) >= max(_FEWEST_GROUPS, classes + 1)
            and len(groups) >= _IMAGES_PER_GROUP * len(counts)
        ):
            return Guess(expression, len(counts), counts.most_common(1)[0][0])
    return None


def guess_lines(images: Sequence[Listed]) -> Iterator[str]:
    """A line that the paths of images without groups seem to hold a patient's number; none where they do not."""
    guess = guess_groups(images) if all(image.group is None for image in images) else None
    if guess is not None:
        yield (
            f"file names look as if {guess.groups:,} patients, scans or the like had several images each, such as "
            f"{guess.example}: where that is so, say data.groups: {_in_yaml(guess.expression)}, or images of one stand "
            "in several parts, and accuracies are too high"
        )


def numbered(groups: Sequence[str | None]) -> np.ndarray:
    """Number groups in the order in which they come, int64, shape (images,); each image its own without any."""
    if all(group is None for group in groups):
        return np.arange(len(groups))
    numbers: dict[str | None, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)


def linked(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Join images that either of two numberings says belong together, directly or by a chain.

    Args:
        first: int64, shape (images,); images with the same number belong together.
        second: likewise.

    Returns:
        int64, shape (images,), numbered in the order in which they come.
    """
    images = np.arange(len(first))
    # A graph of images and of both kinds of groups, each image an edge to its groups.
    one, two = (np.unique(numbers, return_inverse=True)[1] for numbers in (first, second))
    nodes = 2 * len(first) + (int(two.max()) + 1 if len(two) else 0)
    ends = np.concatenate([len(first) + one, 2 * len(first) + two])
    edges = (np.ones(len(ends), bool), (np.concatenate([images, images]), ends))
    components = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)[1][: len(first)]
    return in_order(components)


def in_order(numbers: np.ndarray) -> np.ndarray:
    """Number groups anew, int64, in the order in which their first images come."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    rank: np.ndarray = np.argsort(np.argsort(first))
    return rank[inverse].astype(np.int64)


def _group(pattern: re.Pattern[str], place: str) -> str | None:
    match = pattern.search(place)
    if match is None:
        return None
    return match[1] if pattern.groups else match[0]


def _below_class(image: Listed) -> str:
    """The part of a place behind the folder of the class, where one holds it: that name says nothing of patients."""
    steps = image.place.split("/")
    return "/".join(steps[steps.index(image.class_name) + 1 :]) if image.class_name in steps[:-1] else image.place


def _in_yaml(expression: str) -> str:
    return "'" + expression.replace("'", "''") + "'"
