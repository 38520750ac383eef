"""Check a folder of images before a study: copies, label conflicts and files that cannot be read."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hscc_search.data.copies import near_pairs, perceptual_hash
from hscc_search.data.images import file_digest, find_images, read_image
from hscc_search.errors import DataError
from hscc_search.progress import Progress, Report, silent


@dataclass(frozen=True)
class FolderReport:
    """Findings of ``hscc-search data check``.

    Attributes:
        classes: number of images by class, readable or not.
        exact_copies: number of images whose bytes equal those of an earlier image.
        near_pairs: number of pairs of images that show the same thing and differ in their bytes.
        conflicts: pairs of copies that carry different labels.
        unreadable: files that cannot be used, each with the reason.
    """

    classes: dict[str, int]
    exact_copies: int
    near_pairs: int
    conflicts: list[tuple[Path, Path]]
    unreadable: list[tuple[Path, str]]


@dataclass(frozen=True)
class _Image:
    path: Path
    class_name: str
    digest: str
    bits: np.ndarray


def check_folder(folder: Path, report: Report = silent) -> FolderReport:
    """Count images, copies, label conflicts and unreadable files below a folder.

    Raises:
        DataError: as :func:`hscc_search.data.images.find_images`.
    """
    files = find_images(folder)
    images: list[_Image] = []
    unreadable: list[tuple[Path, str]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, outcome in enumerate(pool.map(_read, files), 1):
            if isinstance(outcome, _Image):
                images.append(outcome)
            else:
                unreadable.append(outcome)
            report(Progress("checking images", done, len(files)))
    pairs = _near_pairs(images)
    return FolderReport(
        classes=dict(sorted(Counter(class_name for _, class_name in files).items())),
        exact_copies=len(images) - len({image.digest for image in images}),
        near_pairs=sum(first.digest != second.digest for first, second in pairs),
        conflicts=[(first.path, second.path) for first, second in pairs if first.class_name != second.class_name],
        unreadable=unreadable,
    )


def _read(file: tuple[Path, str]) -> _Image | tuple[Path, str]:
    """Hash an image, given by its path and class; return the path and the reason where it cannot be read."""
    path, class_name = file
    try:
        return _Image(path, class_name, file_digest(path), perceptual_hash(read_image(path)))
    except DataError as error:
        return path, str(error.__cause__ or error)


def _near_pairs(images: list[_Image]) -> list[tuple[_Image, _Image]]:
    if not images:
        return []
    indices = near_pairs(np.stack([image.bits for image in images]))
    return [(images[first], images[second]) for first, second in indices]
