"""Read labelled images once, and keep the decoded pixels in the user's cache folder."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hscc_search.cache import cache_folder
from hscc_search.config import DataConfig
from hscc_search.data.copies import Look, contrast_and_look, copy_groups
from hscc_search.data.dataset import Dataset, judged, leak_lines, ordered_classes
from hscc_search.data.decode import file_digest, pixels_of, read_image
from hscc_search.data.grouping import linked, numbered
from hscc_search.data.listing import PARTS
from hscc_search.data.own import dataset_of_factory
from hscc_search.data.sources import list_images
from hscc_search.data.store import Arrays, Keep, Stream, arrays_of
from hscc_search.errors import DataError
from hscc_search.progress import Progress, Report, silent

# Part of the cache key: raise it when the same file would be decoded to other pixels, or copies judged otherwise.
_PIXEL_VERSION = 2
# Images that are decoded before their pixels are written.
_DECODED_AT_ONCE = 512


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

    def open(self, config: DataConfig) -> Image.Image:
        if self.pixels is not None:
            return Image.fromarray(self.pixels).convert("L" if config.channels == 1 else "RGB")
        assert self.path is not None
        return read_image(self.path, config)


def load_dataset(config: DataConfig, report: Report = silent) -> Dataset:
    """Read the images that a study file names, from the cache if they have been read before.

    Raises:
        DataError: the folder, the table or an image cannot be used, there are fewer than two classes or others than
            the study says, or copies or groups stand in two parts of a split of the user's own.
    """
    if config.source == "memory":
        raise DataError(
            "the images of this study were objects in the memory of the Python process that searched it, and only "
            "hscc_search.search with the same objects goes on with it"
        )
    if config.source == "python":
        dataset = dataset_of_factory(config, report)
        _check_shape(config, dataset.images.shape[1:])
        return dataset
    sources, notes = (_digit_sources(), ()) if config.path is None else _listed_sources(config)
    # Sorted by content, so that neither the order nor the names of files change a split.
    sources.sort(key=lambda source: (source.class_name, source.digest, source.part, source.group))
    classes = _classes(config, sorted({source.class_name for source in sources}))
    listing = "\n".join(f"{source.class_name} {source.digest}" for source in sources)
    fingerprint = hashlib.sha256(listing.encode()).hexdigest()
    decoded = _decoded(
        cache_folder("pixels") / f"{fingerprint[:32]}-{_decoding(config)}-v{_PIXEL_VERSION}", sources, config, report
    )
    positions = {name: position for position, name in enumerate(classes)}
    copies, groups = decoded[config.copies], numbered([source.group or None for source in sources])
    sides = np.array([PARTS.index(source.part) for source in sources], np.int64) if sources[0].part else None
    names = tuple(source.name for source in sources)
    return Dataset(
        images=decoded["images"],
        labels=np.array([positions[source.class_name] for source in sources], np.int64),
        classes=classes,
        copies=copies,
        groups=groups,
        fingerprint=fingerprint,
        contrasts=decoded["contrasts"],
        names=names,
        notes=(*notes, *leak_lines(copies, groups, sides, names, config.allow_leaks)),
        judgement=judged(linked(copies, groups), decoded["shape"], sides),
        sides=sides,
    )


def _check_shape(config: DataConfig, shape: tuple[int, ...]) -> None:
    """Check that inputs of source python have the shape for which the network is built."""
    if shape != config.shape:
        raise DataError(
            f"data.factory {config.factory} gives inputs of shape {shape}, and data.channels and data.image_size say "
            f"{config.shape}: both must be the same"
        )


def _classes(config: DataConfig, found: Sequence[str]) -> tuple[str, ...]:
    """The classes in the study's order.

    Raises:
        DataError: there are fewer than two, or others than the study says.
    """
    if len(found) < 2:
        deeper = (config.class_level or 1) + 1
        remedy = (
            f" class folders; where they lie deeper, name the folder that holds them or say data.class_level: {deeper}"
        )
        raise DataError(
            f"only one class, {found[0]!r}, below {config.path}: a classifier needs two or more"
            f"{remedy if config.source == 'folder' else ''}"
        )
    return ordered_classes(found, config.classes)


def _decoding(config: DataConfig) -> str:
    """Name how files are decoded: by the side of the images, and a digest of what is said beyond that."""
    _, height, width = config.shape
    said = config.model_dump(
        include={"channels", "resize", "resize_to", "range", "window"}, exclude_defaults=True, mode="json"
    )
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
    return (f"{height}" if height == width else f"{height}x{width}") + (f"-{digest}" if said else "")


def _decoded(entry: Path, sources: Sequence[_Source], config: DataConfig, report: Report) -> Arrays:
    """The pixels, contrasts and groups of copies of all images, from an entry of the cache where there is one."""

    def decoded(dtype: type[np.unsignedinteger[Any]]) -> Arrays:
        stream = Stream((len(sources), *config.shape), np.dtype(dtype))
        content = f"{len(sources)} decoded images"
        return arrays_of(
            entry, {"images": stream}, content, lambda keep: _decode(sources, config, keep["images"], dtype, report)
        )

    try:
        return decoded(np.uint8)
    except _WiderError:
        return decoded(np.uint16)


class _WiderError(Exception):
    """An image has more bits than the others so far."""


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
    sources: Sequence[_Source],
    config: DataConfig,
    keep: Keep,
    dtype: type[np.unsignedinteger[Any]],
    report: Report,
) -> Arrays:
    """Read all images, and hand the pixels of each to ``keep``; return their contrasts and groups of copies.

    Raises:
        _WiderError: an image has more than 8 bits, and ``dtype`` has not.
    """

    def read(source: _Source) -> tuple[np.ndarray, int, Look]:
        image = source.open(config)
        return pixels_of(image, config), *contrast_and_look(image)

    contrasts = np.empty(len(sources), np.uint8)
    looks: list[Look] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(sources), _DECODED_AT_ONCE):
            for pixels, contrast, look in pool.map(read, sources[start : start + _DECODED_AT_ONCE]):
                if pixels.dtype.itemsize > np.dtype(dtype).itemsize:
                    raise _WiderError
                # 255 and 65535 are both 1.
                keep(pixels if pixels.dtype == dtype else pixels.astype(dtype) * 257)
                contrasts[len(looks)] = contrast
                looks.append(look)
                report(Progress("reading images", len(looks), len(sources)))
    groups: dict[str, np.ndarray] = dict(copy_groups(looks).items())
    return {"contrasts": contrasts, **groups}
