"""Read labelled images once, and keep the decoded pixels in the user's cache folder."""

import hashlib
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hscc_search.cache import DamagedError, cache_folder, entry_written, use_entry, warn_unwritable
from hscc_search.config import DataConfig
from hscc_search.data.copies import copy_groups, perceptual_hash
from hscc_search.errors import DataError, UnwritableError, one_line
from hscc_search.files import check_room, sha256
from hscc_search.progress import Progress, Report, silent

_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
# Part of the cache key: raise it when the same file would be decoded to other pixels.
_PIXEL_VERSION = 1


@dataclass(frozen=True)
class Dataset:
    """Decoded images with labels.

    Attributes:
        images: uint8, shape (images, 3, image_size, image_size), RGB; mapped from a file, read on access.
        labels: int64, shape (images,), positions in ``classes``.
        classes: class names in alphabetical order.
        groups: int64, shape (images,); images that are copies of each other have the same number.
        fingerprint: SHA-256 over class names and image contents, whatever the files are called.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray
    fingerprint: str


@dataclass(frozen=True)
class _Source:
    """An image before it is decoded: its class, the SHA-256 of its content, and its file or its pixels."""

    class_name: str
    digest: str
    path: Path | None
    pixels: np.ndarray | None

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
    sources = _digit_sources() if config.path is None else _folder_sources(config.path)
    # Sorted by content, so that neither the order nor the names of files change a split.
    sources.sort(key=lambda source: (source.class_name, source.digest))
    classes = tuple(sorted({source.class_name for source in sources}))
    if len(classes) < 2:
        raise DataError(
            f"only one class, {classes[0]!r}, below {config.path}: a classifier needs two or more class folders"
        )
    listing = "\n".join(f"{source.class_name} {source.digest}" for source in sources)
    fingerprint = hashlib.sha256(listing.encode()).hexdigest()
    entry = cache_folder("pixels") / f"{fingerprint[:32]}-{config.image_size}-v{_PIXEL_VERSION}"
    images, groups = _read_pixels(entry) or _decode_and_keep(entry, sources, config.image_size, report)
    labels = np.array([classes.index(source.class_name) for source in sources], np.int64)
    return Dataset(
        images=images,
        labels=labels,
        classes=classes,
        groups=groups,
        fingerprint=fingerprint,
    )


def _read_pixels(entry: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Read images and groups from an entry of the cache; None without an entry, or with a damaged one."""
    try:
        use = use_entry(entry)
    except DamagedError:
        return None
    images = np.load(entry / "images.npy", mmap_mode="r")
    weakref.finalize(images, use.end)
    return images, np.load(entry / "groups.npy")


def _decode_and_keep(
    entry: Path, sources: Sequence[_Source], image_size: int, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Decode images into an entry of the cache, or into memory where the cache cannot be written to."""
    try:
        with entry_written(entry) as temporary:
            check_room(temporary, len(sources) * 3 * image_size**2, f"{len(sources)} decoded images")
            images, groups = _decode(sources, image_size, report)
            np.save(temporary / "images.npy", images)
            np.save(temporary / "groups.npy", groups)
    except UnwritableError:
        warn_unwritable()
        return _decode(sources, image_size, report)
    return _read_pixels(entry) or (images, groups)  # those of the entry take no memory


def _folder_sources(folder: Path) -> list[_Source]:
    files = find_images(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(file_digest, [path for path, _ in files]))
    return [_Source(class_name, digest, path, None) for (path, class_name), digest in zip(files, digests, strict=True)]


def _digit_sources() -> list[_Source]:
    from sklearn.datasets import load_digits  # slow to import, and only this source needs it

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    return [
        _Source(str(label), hashlib.sha256(image.tobytes()).hexdigest(), None, image)
        for image, label in zip(pixels, digits.target, strict=True)
    ]


def _decode(sources: Sequence[_Source], image_size: int, report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Read all images, and return their pixels and the groups of copies among them, as in :class:`Dataset`."""

    def pixels_and_hash(source: _Source) -> tuple[np.ndarray, np.ndarray]:
        image = source.open()
        resized = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.asarray(resized).transpose(2, 0, 1), perceptual_hash(image)

    images = np.empty((len(sources), 3, image_size, image_size), np.uint8)
    hashes = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, (pixels, bits) in enumerate(pool.map(pixels_and_hash, sources)):
            images[index] = pixels
            hashes.append(bits)
            report(Progress("reading images", index + 1, len(sources)))
    return images, copy_groups(np.stack(hashes))


def find_images(folder: Path) -> list[tuple[Path, str]]:
    """List the images below a folder, each with its class: the name of the folder that directly holds it.

    Class folders may lie at any depth. Those with the same name are one class, such as in Training and in Testing.

    Raises:
        DataError: there is no such folder, no image below it, or an image outside of a class folder.
    """
    if not folder.is_dir():
        raise DataError(f"no image folder at {folder}: give a folder with one folder of images per class")
    paths: list[Path] = []
    visited: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real_folder = os.path.realpath(root)
        if real_folder in visited:  # a link leads back
            folders.clear()
            continue
        visited.add(real_folder)
        paths += [Path(root) / name for name in names if Path(name).suffix.lower() in _EXTENSIONS and name[0] != "."]
    if not paths:
        raise DataError(f"no images below {folder}: expected class folders with files such as .jpg or .png")
    for path in paths:
        if path.parent == folder:
            raise DataError(f"image {path} lies outside of a class folder: move it to {folder}/<class>/")
    return [(path, path.parent.name) for path in sorted(paths)]


def read_image(path: Path) -> Image.Image:
    """Read a file as an upright 8-bit RGB image.

    Raises:
        DataError: the file is damaged or not an image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                raise DataError(
                    f"image {path} has pixel mode {image.mode}, which would be clipped: "
                    "convert it to 8 bits per channel"
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and others
        raise _unreadable(path, error) from error


def file_digest(path: Path) -> str:
    """SHA-256 of an image file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"cannot read image {path} ({one_line(error)}): "
        "replace or remove it; `hscc-search data check` lists all such files"
    )
