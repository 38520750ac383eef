"""Check images before a study: copies, label conflicts, groups, what is skipped and what cannot be read."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hscc_search.config import DataConfig
from hscc_search.data.copies import Look, contrast_and_look, copy_pairs, numbered_copies
from hscc_search.data.decode import file_digest, read_image
from hscc_search.data.folder import Skipped
from hscc_search.data.grouping import numbered
from hscc_search.data.leaks import leaks
from hscc_search.data.listing import PARTS, Listed
from hscc_search.data.notices import EMPTY, empty_line
from hscc_search.data.sources import list_images
from hscc_search.errors import DataError, printable
from hscc_search.progress import Progress, Report, silent


@dataclass(frozen=True)
class ImagesReport:
    """Findings of ``hscc-search data check``.

    Attributes:
        classes: number of images by class, readable or not.
        groups: number of groups that images were said to belong to; None where nothing says.
        parts: number of images by part of a split of the user's own; empty where one is drawn.
        exact_copies: number of images whose bytes equal those of an earlier image.
        near_pairs: number of pairs of images that are copies and differ in their bytes.
        conflicts: pairs of copies that carry different labels.
        unreadable: files that cannot be used, each with the reason.
        empty: images that show nearly nothing.
        skipped: what is no image.
        leak: a line on copies and groups in two parts of a split of the user's own; None where there are none.
        notes: lines on what was skipped, on how the classes were found, on what looks like groups, and on nearly empty
            images.
    """

    classes: dict[str, int]
    groups: int | None
    parts: dict[str, int]
    exact_copies: int
    near_pairs: int
    conflicts: list[tuple[Path, Path]]
    unreadable: list[tuple[Path, str]]
    empty: list[Path]
    skipped: Skipped
    leak: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Image:
    listed: Listed
    digest: str
    contrast: int
    look: Look


def check_images(config: DataConfig, report: Report = silent) -> ImagesReport:
    """Count images, copies, label conflicts, groups and unreadable files of a folder or a table.

    Args:
        config: names them, and says what copies, groups and parts are.
        report: told of each image.

    Raises:
        DataError: as :func:`hscc_search.data.sources.list_images`.
    """
    listing = list_images(config)
    images: list[_Image] = []
    unreadable: list[tuple[Path, str]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, outcome in enumerate(pool.map(partial(_read, config=config), listing.images), 1):
            if isinstance(outcome, _Image):
                images.append(outcome)
            else:
                unreadable.append(outcome)
            report(Progress("checking images", done, len(listing.images)))
    numbers = copy_pairs([image.look for image in images], config.copies)
    pairs = [(images[first], images[second]) for first, second in numbers]
    contrasts, paths = [image.contrast for image in images], [image.listed.path for image in images]
    groups = {image.group for image in listing.images if image.group is not None}
    parts = Counter(image.part for image in listing.images)
    return ImagesReport(
        classes=dict(sorted(Counter(image.class_name for image in listing.images).items())),
        groups=len(groups) or None,
        parts={part: parts[part] for part in PARTS if part in parts},
        exact_copies=len(images) - len({image.digest for image in images}),
        near_pairs=sum(first.digest != second.digest for first, second in pairs),
        conflicts=[
            (first.listed.path, second.listed.path)
            for first, second in pairs
            if first.listed.class_name != second.listed.class_name
        ],
        unreadable=unreadable,
        empty=[image.listed.path for image in images if image.contrast <= EMPTY],
        skipped=listing.skipped,
        leak=_leak([image.listed for image in images], numbered_copies(numbers, len(images))),
        notes=(*listing.notes, *empty_line(contrasts, paths)),
    )


def _leak(images: Sequence[Listed], copies: np.ndarray) -> str | None:
    """A line on copies and groups in two parts of a split of the user's own; None without."""
    sides = [PARTS.index(image.part) for image in images if image.part is not None]
    if not sides:
        return None
    groups = numbered([image.group for image in images])
    return leaks(copies, groups, np.array(sides), tuple(str(image.path) for image in images))


def _read(image: Listed, config: DataConfig) -> _Image | tuple[Path, str]:
    """Read an image; return its path and the reason where it cannot be read."""
    try:
        digest, picture = file_digest(image.path), read_image(image.path, config)
    except DataError as error:
        return image.path, printable(error.__cause__ or error)
    return _Image(image, digest, *contrast_and_look(picture))
