"""Check a folder of images before a study: copies, label conflicts, what is skipped and what cannot be read."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hscc_search.config import CopyKind, DataConfig
from hscc_search.data.copies import Look, copy_pairs
from hscc_search.data.decode import file_digest, read_image
from hscc_search.data.folder import Skipped, find_images
from hscc_search.data.images import judged
from hscc_search.data.notices import EMPTY, empty_line
from hscc_search.errors import DataError, printable
from hscc_search.progress import Progress, Report, silent


@dataclass(frozen=True)
class FolderReport:
    """Findings of ``hscc-search data check``.

    Attributes:
        classes: number of images by class, readable or not.
        exact_copies: number of images whose bytes equal those of an earlier image.
        near_pairs: number of pairs of images that are copies and differ in their bytes.
        conflicts: pairs of copies that carry different labels.
        unreadable: files that cannot be used, each with the reason.
        empty: images that show nearly nothing.
        skipped: what is no image.
        notes: lines on what was skipped, on how the classes were found, and on nearly empty images.
    """

    classes: dict[str, int]
    exact_copies: int
    near_pairs: int
    conflicts: list[tuple[Path, Path]]
    unreadable: list[tuple[Path, str]]
    empty: list[Path]
    skipped: Skipped
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Image:
    path: Path
    class_name: str
    digest: str
    contrast: int
    look: Look


def check_folder(
    folder: Path,
    report: Report = silent,
    class_level: int | None = None,
    copies: CopyKind = "near",
    value_range: tuple[float, float] | None = None,
) -> FolderReport:
    """Count images, copies, label conflicts and unreadable files below a folder.

    Args:
        folder: with the class folders.
        report: told of each image.
        class_level: as in :func:`hscc_search.data.folder.find_images`.
        copies: as in :func:`hscc_search.data.copies.copy_pairs`.
        value_range: that is black and white, as a study's ``data.range``.

    Raises:
        DataError: as :func:`hscc_search.data.folder.find_images`.
    """
    found = find_images(folder, class_level)
    config = DataConfig(path=folder, range=value_range)
    images: list[_Image] = []
    unreadable: list[tuple[Path, str]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, outcome in enumerate(pool.map(partial(_read, config=config), found.images), 1):
            if isinstance(outcome, _Image):
                images.append(outcome)
            else:
                unreadable.append(outcome)
            report(Progress("checking images", done, len(found.images)))
    pairs = [(images[first], images[second]) for first, second in copy_pairs([image.look for image in images], copies)]
    contrasts, paths = [image.contrast for image in images], [image.path for image in images]
    return FolderReport(
        classes=dict(sorted(Counter(class_name for _, class_name in found.images).items())),
        exact_copies=len(images) - len({image.digest for image in images}),
        near_pairs=sum(first.digest != second.digest for first, second in pairs),
        conflicts=[(first.path, second.path) for first, second in pairs if first.class_name != second.class_name],
        unreadable=unreadable,
        empty=[image.path for image in images if image.contrast <= EMPTY],
        skipped=found.skipped,
        notes=(*found.notes, *empty_line(contrasts, paths)),
    )


def _read(file: tuple[Path, str], config: DataConfig) -> _Image | tuple[Path, str]:
    """Read an image, given by its path and class; return the path and the reason where it cannot be read."""
    path, class_name = file
    try:
        digest, image = file_digest(path), read_image(path, config)
    except DataError as error:
        return path, printable(error.__cause__ or error)
    return _Image(path, class_name, digest, *judged(image))
