"""Find labelled images, read them once, and keep the decoded pixels in the user's cache folder."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hscc_search.config import DataConfig
from hscc_search.data.copies import copy_groups, near_pairs, perceptual_hash
from hscc_search.errors import DataError
from hscc_search.files import cache_folder, folder_written_whole, sha256
from hscc_search.progress import Progress, Report, silent

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
# Part of the cache key: raise it when the way from file to pixels changes.
_PIXEL_VERSION = 1


@dataclass(frozen=True)
class Dataset:
    """Decoded images with labels.

    Attributes:
        images: uint8, shape (images, 3, side, side), RGB; mapped from a file, read on access.
        labels: int64, shape (images,), positions in ``classes``.
        classes: class names in alphabetical order.
        groups: int64, shape (images,); images that are copies of each other have the same number.
        fingerprint: SHA-256 over class names and image contents; where the files lie does not matter.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray
    fingerprint: str


@dataclass(frozen=True)
class _Source:
    """One image before it is read: its class, what identifies its content, and how to open it."""

    class_name: str
    digest: str
    path: Path | None
    pixels: np.ndarray | None

    def open(self) -> Image.Image:
        if self.pixels is not None:
            return Image.fromarray(self.pixels).convert("RGB")
        assert self.path is not None
        return read_image(self.path)


@dataclass(frozen=True)
class FolderReport:
    """What ``hscc-search data check`` found.

    Attributes:
        classes: images per class, readable or not.
        exact_copies: images whose bytes another image, standing before it, has too.
        near_pairs: pairs of images that show the same thing without being exact copies.
        conflicts: pairs of copies that carry different labels.
        unreadable: files that cannot be used, and why.
    """

    classes: dict[str, int]
    exact_copies: int
    near_pairs: int
    conflicts: list[tuple[Path, Path]]
    unreadable: list[tuple[Path, str]]


def read_image(path: Path) -> Image.Image:
    """Read a file as an upright 8-bit RGB image.

    Raises:
        DataError: the file is no image, is damaged, or has more than 8 bits per channel.
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
    except Exception as error:  # Pillow's readers raise what they meet: OSError, SyntaxError, struct.error, ...
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(
        f"cannot read image {path} ({reason}): replace or remove it; `hscc-search data check` lists all such files"
    )


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def find_images(folder: Path) -> list[tuple[Path, str]]:
    """Every image below a folder with its class, which is the name of the folder that directly holds it.

    Class folders may lie at any depth; those of equal name are one class, so that a Training/Testing pair merges.

    Raises:
        DataError: no such folder, no images, or an image outside of a class folder.
    """
    if not folder.is_dir():
        raise DataError(f"no image folder at {folder}: give a folder with one folder of images per class")
    paths: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(root)) in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(place)
        paths += [Path(root) / name for name in names if Path(name).suffix.lower() in EXTENSIONS and name[0] != "."]
    if not paths:
        raise DataError(f"no images below {folder}: expected class folders with files such as .jpg or .png")
    for path in paths:
        if path.parent == folder:
            raise DataError(f"image {path} lies outside of a class folder: move it to {folder}/<class>/")
    return [(path, path.parent.name) for path in sorted(paths)]


def check_folder(folder: Path, report: Report = silent) -> FolderReport:
    """Count images, copies, label conflicts and unreadable files below a folder.

    Raises:
        DataError: as :func:`find_images`.
    """
    found = find_images(folder)
    unreadable: list[tuple[Path, str]] = []
    kept: list[tuple[Path, str, str, np.ndarray]] = []

    def look(item: tuple[Path, str]) -> tuple[str, np.ndarray] | DataError:
        try:
            return _digest(item[0]), perceptual_hash(read_image(item[0]))
        except DataError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, ((path, class_name), result) in enumerate(zip(found, pool.map(look, found), strict=True), 1):
            if isinstance(result, DataError):
                cause = result.__cause__
                unreadable.append((path, str(cause) if cause else str(result)))
            else:
                kept.append((path, class_name, *result))
            report(Progress("checking images", done, len(found)))
    digests = [digest for _, _, digest, _ in kept]
    pairs = near_pairs(np.stack([bits for *_, bits in kept])) if kept else np.empty((0, 2), np.int64)
    return FolderReport(
        classes=dict(sorted(Counter(class_name for _, class_name in found).items())),
        exact_copies=len(digests) - len(set(digests)),
        near_pairs=sum(digests[first] != digests[second] for first, second in pairs),
        conflicts=[(kept[first][0], kept[second][0]) for first, second in pairs if kept[first][1] != kept[second][1]],
        unreadable=unreadable,
    )


def _folder_sources(folder: Path) -> list[_Source]:
    found = find_images(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(_digest, [path for path, _ in found]))
    return [_Source(class_name, digest, path, None) for (path, class_name), digest in zip(found, digests, strict=True)]


def _digit_sources() -> list[_Source]:
    from sklearn.datasets import load_digits  # slow to import, and only this source needs it

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    return [
        _Source(str(label), hashlib.sha256(image.tobytes()).hexdigest(), None, image)
        for image, label in zip(pixels, digits.target, strict=True)
    ]


def _decode(sources: Iterable[_Source], total: int, side: int, report: Report) -> tuple[np.ndarray, np.ndarray]:
    def pixels_and_hash(source: _Source) -> tuple[np.ndarray, np.ndarray]:
        image = source.open()
        resized = image.resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(resized).transpose(2, 0, 1), perceptual_hash(image)

    images = np.empty((total, 3, side, side), np.uint8)
    hashes = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, (pixels, bits) in enumerate(pool.map(pixels_and_hash, sources)):
            images[index] = pixels
            hashes.append(bits)
            report(Progress("reading images", index + 1, total))
    return images, copy_groups(np.stack(hashes))


def load_dataset(config: DataConfig, report: Report = silent) -> Dataset:
    """Read the images that a study file names, from the cache where they were read before.

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
    folder = cache_folder("pixels") / f"{fingerprint[:32]}-{config.image_size}-v{_PIXEL_VERSION}"
    if not folder.exists():
        images, groups = _decode(sources, len(sources), config.image_size, report)
        try:
            with folder_written_whole(folder) as temporary:
                np.save(temporary / "images.npy", images)
                np.save(temporary / "groups.npy", groups)
        except OSError:
            # Another process finished the same folder first; any other failure leaves it missing.
            if not folder.exists():
                raise
    labels = np.array([classes.index(source.class_name) for source in sources], np.int64)
    return Dataset(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=labels,
        classes=classes,
        groups=np.load(folder / "groups.npy"),
        fingerprint=fingerprint,
    )
