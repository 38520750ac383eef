"""What a stored study keeps of its images for pages to show. Needs no torch."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Longest side of the mean image in pixels, and fewest images whose mean shows none of them.
_SIDE, _FEWEST = 48, 16
# Most characters that names take: databases take 65,535 bytes for the record of a study.
_MOST_CHARACTERS = 20_000


@dataclass(frozen=True, eq=False)
class ImagesRecord:
    """What is kept of a study's images.

    Attributes:
        names: of the validation images, in their order; empty where they are too long together.
        mean: of the calibration images, uint8, from the darkest value to the brightest, shape (height, width) or
            (height, width, 3); None where there are so few images that it would show single ones.
    """

    names: tuple[str, ...]
    mean: np.ndarray | None

    @classmethod
    def of(cls, names: Sequence[str], calibration: np.ndarray) -> "ImagesRecord":
        """Keep what a page shows.

        Args:
            names: of the validation images.
            calibration: images, shape (images, channels, height, width), or inputs of another shape, which have no mean
                to show.
        """
        fits = len(_packed(json.dumps(names).encode())) <= _MOST_CHARACTERS
        return cls(tuple(names) if fits else (), _mean(calibration))

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        mean = {} if self.mean is None else {"mean": _packed(self.mean.tobytes()), "shape": list(self.mean.shape)}
        return {"names": _packed(json.dumps(self.names).encode()), **mean}

    @classmethod
    def from_stored(cls, tree: Mapping[str, Any]) -> "ImagesRecord":
        """Undo :meth:`stored`."""
        names = json.loads(_unpacked(tree["names"]))
        mean = np.frombuffer(_unpacked(tree["mean"]), np.uint8).reshape(tree["shape"]) if "mean" in tree else None
        return cls(tuple(names), mean)


def _mean(images: np.ndarray) -> np.ndarray | None:
    """The mean of images, see :class:`ImagesRecord`; grey unless they have three channels."""
    if images.ndim != 4 or len(images) < _FEWEST:
        return None
    mean = images.mean(axis=0, dtype=np.float64)
    mean = mean.transpose(1, 2, 0) if len(mean) == 3 else mean.mean(axis=0)
    for axis in (0, 1):
        starts = np.arange(0, mean.shape[axis], -(-mean.shape[axis] // _SIDE))
        lengths = np.diff(np.append(starts, mean.shape[axis]))
        shape = [-1 if each == axis else 1 for each in range(mean.ndim)]
        mean = np.add.reduceat(mean, starts, axis) / lengths.reshape(shape)
    span = np.ptp(mean)
    return np.asarray(np.rint(255 * (mean - mean.min()) / (span if span > 0 else 1)), np.uint8)


def _packed(values: bytes) -> str:
    return base64.b64encode(zlib.compress(values, 9)).decode()


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
