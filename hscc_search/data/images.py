"""Read labelled images once, and keep the decoded pixels in the user's cache folder."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hscc_search.config import CopyKind, DataConfig
from hscc_search.data.copies import Look, copy_groups, look_of
from hscc_search.data.decode import contrast_of, file_digest, pixels_of, read_image
from hscc_search.data.folder import find_images
from hscc_search.errors import DataError
from hscc_search.files import cache_folder, folder_written_whole
from hscc_search.progress import Progress, Report, silent

# Part of the cache key: raise it when the same file would be decoded to other pixels, or copies judged otherwise.
_PIXEL_VERSION = 2


@dataclass(frozen=True)
class Dataset:
    """Decoded images with labels.

    Attributes:
        images: uint8, shape (images, 3, image_size, image_size), RGB; mapped from a file, read on access.
        labels: int64, shape (images,), positions in ``classes``.
        classes: class names in alphabetical order.
        groups: int64, shape (images,); images that are copies of each other have the same number.
        fingerprint: SHA-256 over class names and image contents, whatever the files are called.
        contrasts: uint8, shape (images,), see :func:`hscc_search.data.decode.contrast_of`.
        names: of the files, for messages.
        notes: lines on what was skipped in the folder, and on how its classes were found.
        judgement: empty where the groups are those of shape alone, as version 0.1.0 judged copies; else a digest of the
            groups. With the fingerprint and the configuration it determines the split.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray
    fingerprint: str
    contrasts: np.ndarray
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    judgement: str = ""


@dataclass(frozen=True)
class _Source:
    """An image before it is decoded: its class, the SHA-256 of its content, and its file or its pixels."""

    class_name: str
    digest: str
    path: Path | None
    pixels: np.ndarray | None

    @property
    def name(self) -> str:
        return str(self.path) if self.path is not None else f"{self.class_name} {self.digest[:12]}"

    def open(self) -> Image.Image:
        if self.pixels is not None:
            return Image.fromarray(self.pixels).convert("RGB")
        assert self.path is not None
        return read_image(self.path)


def load_dataset(config: DataConfig, report: Report = silent) -> Dataset:
    """Read the images that a study file names, from the cache if they have been read before.

    Raises:
        DataError: the folder or an image in it cannot be used, or there are fewer than two classes.
    """
    sources, notes = (_digit_sources(), ()) if config.path is None else _folder_sources(config.path, config.class_level)
    # Sorted by content, so that neither the order nor the names of files change a split.
    sources.sort(key=lambda source: (source.class_name, source.digest))
    classes = tuple(sorted({source.class_name for source in sources}))
    if len(classes) < 2:
        deeper = (config.class_level or 1) + 1
        raise DataError(
            f"only one class, {classes[0]!r}, below {config.path}: a classifier needs two or more class folders; "
            f"where they lie deeper, name the folder that holds them or say data.class_level: {deeper}"
        )
    listing = "\n".join(f"{source.class_name} {source.digest}" for source in sources)
    fingerprint = hashlib.sha256(listing.encode()).hexdigest()
    folder = cache_folder("pixels") / f"{fingerprint[:32]}-{config.image_size}-v{_PIXEL_VERSION}"
    if not folder.exists():
        _fill(folder, sources, config.image_size, report)
    groups, by_shape = np.load(folder / f"{config.copies}.npy"), np.load(folder / "shape.npy")
    return Dataset(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=np.array([classes.index(source.class_name) for source in sources], np.int64),
        classes=classes,
        groups=groups,
        fingerprint=fingerprint,
        contrasts=np.load(folder / "contrasts.npy"),
        names=tuple(source.name for source in sources),
        notes=notes,
        judgement="" if np.array_equal(groups, by_shape) else hashlib.sha256(groups.tobytes()).hexdigest(),
    )


def _fill(folder: Path, sources: Sequence[_Source], image_size: int, report: Report) -> None:
    """Read all images, and write what is known of them into a folder of the cache."""
    images, contrasts, groups = _decode(sources, image_size, report)
    try:
        with folder_written_whole(folder) as temporary:
            np.save(temporary / "images.npy", images)
            np.save(temporary / "contrasts.npy", contrasts)
            for kind, numbers in groups.items():
                np.save(temporary / f"{kind}.npy", numbers)
    except OSError:
        # Expected where another process has finished the same folder first; else the folder is missing.
        if not folder.exists():
            raise


def _folder_sources(folder: Path, class_level: int | None) -> tuple[list[_Source], tuple[str, ...]]:
    """The images of a folder, and the notes on it."""
    found = find_images(folder, class_level)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(file_digest, [path for path, _ in found.images]))
    sources = [
        _Source(class_name, digest, path, None)
        for (path, class_name), digest in zip(found.images, digests, strict=True)
    ]
    return sources, found.notes


def _digit_sources() -> list[_Source]:
    from sklearn.datasets import load_digits  # slow to import, and only this source needs it

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    return [
        _Source(str(label), hashlib.sha256(image.tobytes()).hexdigest(), None, image)
        for image, label in zip(pixels, digits.target, strict=True)
    ]


def _decode(
    sources: Sequence[_Source], image_size: int, report: Report
) -> tuple[np.ndarray, np.ndarray, dict[CopyKind, np.ndarray]]:
    """Read all images: their pixels, their contrasts, as in :class:`Dataset`, and the groups of copies of each kind."""

    def read(source: _Source) -> tuple[np.ndarray, int, Look]:
        image = source.open()
        return pixels_of(image, image_size), contrast_of(image), look_of(image)

    images = np.empty((len(sources), 3, image_size, image_size), np.uint8)
    contrasts = np.empty(len(sources), np.uint8)
    looks = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, (pixels, contrast, look) in enumerate(pool.map(read, sources)):
            images[index], contrasts[index] = pixels, contrast
            looks.append(look)
            report(Progress("reading images", index + 1, len(sources)))
    return images, contrasts, copy_groups(looks)
