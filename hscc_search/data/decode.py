"""Decode image files: one way for studies, checks and, written out in the model card, for exported networks."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hscc_search.errors import DataError, one_line
from hscc_search.files import sha256

# Modes of 8 bits per channel. Of 16-bit colour files Pillow reads the upper 8 bits, as one of these modes.
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def read_image(path: Path) -> Image.Image:
    """Read a file as an upright 8-bit RGB image; transparency is left out.

    Raises:
        DataError: the file is damaged or not an image, or its only channel has more than 8 bits.
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


def pixels_of(image: Image.Image, image_size: int) -> np.ndarray:
    """Resize an RGB image to the pixels that a network sees: uint8, shape (3, image_size, image_size)."""
    resized = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)


def contrast_of(image: Image.Image) -> int:
    """Measure how far the values of an RGB image reach: 0 where it is constant, 255 where they reach from 0 to 255.

    The lowest and the highest hundredth of the values are left out; the channel that reaches farthest counts.
    """
    counts = np.array(image.histogram()).reshape(3, 256).cumsum(axis=1)
    total = counts[:, -1:]
    low, high = ((counts <= share * total).sum(axis=1) for share in (0.01, 0.99))
    return int((high - low).max())


def file_digest(path: Path) -> str:
    """SHA-256 of an image file.

    Raises:
        DataError: the file cannot be read or is empty, or the path names a device, a pipe or a folder.
    """
    try:
        # A pipe would be waited for without end.
        if path.exists() and not path.is_file():
            raise OSError("not a regular file")
        if path.stat().st_size == 0:
            raise OSError("an empty file of 0 bytes")
        return sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"cannot read image {path} ({one_line(error)}): "
        "replace or remove it; `hscc-search data check` lists all such files"
    )
