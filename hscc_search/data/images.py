"""Read labelled images once, and keep the decoded pixels in the user's cache folder."""

import hashlib
import json
import math
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from hscc_search.cache import DamagedError, cache_folder, entry_written, use_entry, warn_unwritable
from hscc_search.config import CopyKind, DataConfig
from hscc_search.data.copies import Look, copy_groups, look_of
from hscc_search.data.decode import contrast_of, file_digest, pixels_of, read_image, seen
from hscc_search.data.folder import find_images
from hscc_search.errors import DataError, UnwritableError
from hscc_search.files import check_room
from hscc_search.progress import Progress, Report, silent

# Part of the cache key: raise it when the same file would be decoded to other pixels, or copies judged otherwise.
_PIXEL_VERSION = 2


@dataclass(frozen=True)
class Dataset:
    """Decoded images with labels.

    Attributes:
        images: shape (images, channels, height, width); uint8, or uint16 where an image has more bits; mapped from a
            file, read on access.
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

    def open(self, config: DataConfig) -> Image.Image:
        if self.pixels is not None:
            return Image.fromarray(self.pixels).convert("L" if config.channels == 1 else "RGB")
        assert self.path is not None
        return read_image(self.path, config)


@dataclass(frozen=True)
class _Decoded:
    """What is known of all images once they have been read: their pixels, contrasts, and groups by kind of copies."""

    images: np.ndarray
    contrasts: np.ndarray
    groups: dict[CopyKind, np.ndarray]


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
    entry = cache_folder("pixels") / f"{fingerprint[:32]}-{_decoding(config)}-v{_PIXEL_VERSION}"
    decoded = _read_decoded(entry) or _decode_and_keep(entry, sources, config, report)
    groups, by_shape = decoded.groups[config.copies], decoded.groups["shape"]
    return Dataset(
        images=decoded.images,
        labels=np.array([classes.index(source.class_name) for source in sources], np.int64),
        classes=classes,
        groups=groups,
        fingerprint=fingerprint,
        contrasts=decoded.contrasts,
        names=tuple(source.name for source in sources),
        notes=notes,
        judgement="" if np.array_equal(groups, by_shape) else hashlib.sha256(groups.tobytes()).hexdigest(),
    )


def _decoding(config: DataConfig) -> str:
    """Name how files are decoded: by the side of the images, and a digest of what is said beyond that."""
    _, height, width = config.shape
    said = config.model_dump(include={"channels", "resize", "range", "window"}, exclude_defaults=True, mode="json")
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
    return (f"{height}" if height == width else f"{height}x{width}") + (f"-{digest}" if said else "")


def _read_decoded(entry: Path) -> _Decoded | None:
    """Read an entry of the cache; None without an entry, or with a damaged one."""
    try:
        use = use_entry(entry)
    except DamagedError:
        return None
    images = np.load(entry / "images.npy", mmap_mode="r")
    weakref.finalize(images, use.end)
    groups: dict[CopyKind, np.ndarray] = {kind: np.load(entry / f"{kind}.npy") for kind in get_args(CopyKind)}
    return _Decoded(images, np.load(entry / "contrasts.npy"), groups)


def _decode_and_keep(entry: Path, sources: Sequence[_Source], config: DataConfig, report: Report) -> _Decoded:
    """Decode images into an entry of the cache, or into memory where the cache cannot be written to."""
    try:
        with entry_written(entry) as temporary:
            check_room(temporary, len(sources) * math.prod(config.shape), f"{len(sources)} decoded images")
            decoded = _decode(sources, config, report)
            np.save(temporary / "images.npy", decoded.images)
            np.save(temporary / "contrasts.npy", decoded.contrasts)
            for kind, numbers in decoded.groups.items():
                np.save(temporary / f"{kind}.npy", numbers)
    except UnwritableError:
        warn_unwritable()
        return _decode(sources, config, report)
    return _read_decoded(entry) or decoded  # what the entry holds takes no memory


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


def _decode(sources: Sequence[_Source], config: DataConfig, report: Report) -> _Decoded:
    """Read all images."""

    def read(source: _Source) -> tuple[np.ndarray, int, Look]:
        image = source.open(config)
        return pixels_of(image, config), *judged(image)

    images: np.ndarray = np.empty((len(sources), *config.shape), np.uint8)
    contrasts = np.empty(len(sources), np.uint8)
    looks = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, (pixels, contrast, look) in enumerate(pool.map(read, sources)):
            if pixels.dtype == np.uint16 and images.dtype == np.uint8:  # 255 and 65535 are both 1
                images = images.astype(np.uint16) * 257
            widened = pixels.astype(np.uint16) * 257 if pixels.dtype != images.dtype else pixels
            images[index], contrasts[index] = widened, contrast
            looks.append(look)
            report(Progress("reading images", index + 1, len(sources)))
    return _Decoded(images, contrasts, copy_groups(looks))


def judged(image: Image.Image) -> tuple[int, Look]:
    """The contrast of an image as it looks in 8 bits, and its look."""
    shown = seen(image)
    return contrast_of(shown), look_of(shown, image.tobytes() if image.mode == "F" else None)
