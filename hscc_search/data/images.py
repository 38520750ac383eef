"""Read labelled images once, and keep the decoded pixels in the user's cache folder."""

import hashlib
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from hscc_search.cache import DamagedError, cache_folder, entry_written, use_entry, warn_unwritable
from hscc_search.config import CopyKind, DataConfig
from hscc_search.data.copies import Look, copy_groups, look_of
from hscc_search.data.decode import contrast_of, file_digest, pixels_of, read_image
from hscc_search.data.grouping import linked, numbered
from hscc_search.data.leaks import leaks
from hscc_search.data.listing import PARTS
from hscc_search.data.sources import list_images
from hscc_search.errors import DataError, UnwritableError, shortened
from hscc_search.files import check_room
from hscc_search.progress import Progress, Report, silent

# Part of the cache key: raise it when the same file would be decoded to other pixels, or copies judged otherwise.
_PIXEL_VERSION = 2
# Images that are decoded before their pixels are written.
_DECODED_AT_ONCE = 512


@dataclass(frozen=True)
class Dataset:
    """Decoded images with labels.

    Attributes:
        images: uint8, shape (images, 3, image_size, image_size), RGB; mapped from a file, read on access.
        labels: int64, shape (images,), positions in ``classes``.
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


@dataclass(frozen=True)
class _Source:
    """An image before it is decoded.

    Attributes:
        class_name: its class.
        digest: SHA-256 of its content.
        path: its file; None where its pixels are given.
        pixels: None where it has a file.
        group: name of the images that belong together, empty where nothing says.
        part: of a split of the user's own, empty where one is drawn.
    """

    class_name: str
    digest: str
    path: Path | None
    pixels: np.ndarray | None
    group: str = ""
    part: str = ""

    @property
    def name(self) -> str:
        return str(self.path) if self.path is not None else f"{self.class_name} {self.digest[:12]}"

    def open(self) -> Image.Image:
        if self.pixels is not None:
            return Image.fromarray(self.pixels).convert("RGB")
        assert self.path is not None
        return read_image(self.path)


@dataclass(frozen=True)
class _Decoded:
    """What is known of all images once they have been read: their pixels, contrasts, and groups by kind of copies."""

    images: np.ndarray
    contrasts: np.ndarray
    groups: dict[CopyKind, np.ndarray]


def load_dataset(config: DataConfig, report: Report = silent) -> Dataset:
    """Read the images that a study file names, from the cache if they have been read before.

    Raises:
        DataError: the folder, the table or an image cannot be used, there are fewer than two classes or others than
            the study says, or copies or groups stand in two parts of a split of the user's own.
    """
    sources, notes = (_digit_sources(), ()) if config.path is None else _listed_sources(config)
    # Sorted by content, so that neither the order nor the names of files change a split.
    sources.sort(key=lambda source: (source.class_name, source.digest, source.part, source.group))
    classes = _classes(config, sorted({source.class_name for source in sources}))
    listing = "\n".join(f"{source.class_name} {source.digest}" for source in sources)
    fingerprint = hashlib.sha256(listing.encode()).hexdigest()
    entry = cache_folder("pixels") / f"{fingerprint[:32]}-{config.image_size}-v{_PIXEL_VERSION}"
    decoded = _read_decoded(entry) or _decode_and_keep(entry, sources, config.image_size, report)
    positions = {name: position for position, name in enumerate(classes)}
    copies, groups = decoded.groups[config.copies], numbered([source.group or None for source in sources])
    sides = np.array([PARTS.index(source.part) for source in sources], np.int64) if sources[0].part else None
    names = tuple(source.name for source in sources)
    return Dataset(
        images=decoded.images,
        labels=np.array([positions[source.class_name] for source in sources], np.int64),
        classes=classes,
        copies=copies,
        groups=groups,
        fingerprint=fingerprint,
        contrasts=decoded.contrasts,
        names=names,
        notes=(*notes, *_leaks(config, copies, groups, sides, names)),
        judgement=_judgement(linked(copies, groups), decoded.groups["shape"], sides),
        sides=sides,
    )


def _classes(config: DataConfig, found: Sequence[str]) -> tuple[str, ...]:
    """The classes in the study's order.

    Raises:
        DataError: there are fewer than two, or others than the study says.
    """
    if len(found) < 2:
        deeper = (config.class_level or 1) + 1
        where = (
            f"a classifier needs two or more class folders; where they lie deeper, name the folder that holds them or "
            f"say data.class_level: {deeper}"
            if config.source == "folder"
            else "a classifier needs two or more"
        )
        raise DataError(f"only one class, {found[0]!r}, below {config.path}: {where}")
    if config.classes is None:
        return tuple(found)
    missing, more = sorted(set(config.classes) - set(found)), sorted(set(found) - set(config.classes))
    if missing or more:
        wrong = [f"names {', '.join(missing)}, which no image has"] if missing else []
        wrong += [f"lacks {', '.join(more)}"] if more else []
        raise DataError(
            f"data.classes {' and '.join(wrong)}: the classes of the images are {shortened(', '.join(found), 500)}"
        )
    return config.classes


def _leaks(
    config: DataConfig, copies: np.ndarray, groups: np.ndarray, sides: np.ndarray | None, names: tuple[str, ...]
) -> tuple[str, ...]:
    """A line on copies and groups in two parts of a split of the user's own; none without.

    Raises:
        DataError: there are some, and the study does not allow them.
    """
    line = None if sides is None else leaks(copies, groups, sides, names)
    if line is None:
        return ()
    if not config.allow_leaks:
        raise DataError(f"{line}: move them into one part, or say data.allow_leaks: true")
    return (line,)


def _judgement(together: np.ndarray, by_shape: np.ndarray, sides: np.ndarray | None) -> str:
    if sides is None and np.array_equal(together, by_shape):
        return ""
    return hashlib.sha256(together.tobytes() + (b"" if sides is None else sides.tobytes())).hexdigest()


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


def _decode_and_keep(entry: Path, sources: Sequence[_Source], image_size: int, report: Report) -> _Decoded:
    """Decode images into an entry of the cache, or into memory where the cache cannot be written to."""
    shape = (len(sources), 3, image_size, image_size)
    try:
        with entry_written(entry) as temporary:
            check_room(temporary, int(np.prod(shape)), f"{len(sources)} decoded images")
            with (temporary / "images.npy").open("wb") as file:
                # As np.save would write them, but never all in memory.
                header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
                contrasts, groups = _decode(sources, image_size, lambda pixels: file.write(pixels.tobytes()), report)
            np.save(temporary / "contrasts.npy", contrasts)
            for kind, numbers in groups.items():
                np.save(temporary / f"{kind}.npy", numbers)
        kept = _read_decoded(entry)
        if kept is not None:
            return kept
    except UnwritableError:
        warn_unwritable()
    images = np.empty(shape, np.uint8)
    rows = iter(images)
    contrasts, groups = _decode(sources, image_size, lambda pixels: np.copyto(next(rows), pixels), report)
    return _Decoded(images, contrasts, groups)


def _listed_sources(config: DataConfig) -> tuple[list[_Source], tuple[str, ...]]:
    """The images of a folder or a table, and the notes on it."""
    listing = list_images(config)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(file_digest, [image.path for image in listing.images]))
    sources = [
        _Source(image.class_name, digest, image.path, None, image.group or "", image.part or "")
        for image, digest in zip(listing.images, digests, strict=True)
    ]
    return sources, listing.notes


def _digit_sources() -> list[_Source]:
    from sklearn.datasets import load_digits  # slow to import, and only this source needs it

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    return [
        _Source(str(label), hashlib.sha256(image.tobytes()).hexdigest(), None, image)
        for image, label in zip(pixels, digits.target, strict=True)
    ]


def _decode(
    sources: Sequence[_Source], image_size: int, keep: Callable[[np.ndarray], object], report: Report
) -> tuple[np.ndarray, dict[CopyKind, np.ndarray]]:
    """Read all images, and hand the pixels of each to ``keep``; return their contrasts and groups of copies."""

    def read(source: _Source) -> tuple[np.ndarray, int, Look]:
        image = source.open()
        return pixels_of(image, image_size), contrast_of(image), look_of(image)

    contrasts = np.empty(len(sources), np.uint8)
    looks: list[Look] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(sources), _DECODED_AT_ONCE):
            for pixels, contrast, look in pool.map(read, sources[start : start + _DECODED_AT_ONCE]):
                keep(pixels)
                contrasts[len(looks)] = contrast
                looks.append(look)
                report(Progress("reading images", len(looks), len(sources)))
    return contrasts, copy_groups(looks)
