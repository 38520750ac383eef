"""Decode image files: one way for studies, checks and, written out in the model card, for exported networks."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hscc_search.config import DataConfig, Resize
from hscc_search.data.dicom import read_dicom
from hscc_search.errors import DataError, one_line
from hscc_search.files import sha256

# Modes of 8 bits per channel. Of 16-bit colour files Pillow reads the upper 8 bits, as one of these modes.
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
# Modes of a single channel of more bits. Of the values of the others no range is known.
_WIDE_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_SIXTEEN_BITS = (0.0, 65535.0)
DICOM = (".dcm", ".dicom")


def read_image(path: Path, config: DataConfig) -> Image.Image:
    """Read a file as an upright image of the channels that the network takes; transparency is left out.

    Returns:
        Of mode RGB or L where the file has 8 bits per channel, and of mode F with values 0 to 1 where it has more or is
        DICOM, whatever the number of channels.

    Raises:
        DataError: the file is damaged or not an image, or nothing says which of its values are black and white.
    """
    try:
        if path.suffix.lower() in DICOM:
            return _between(*read_dicom(path, config.bounds))
        with Image.open(path) as image:
            if image.mode in _EIGHT_BIT_MODES:
                return ImageOps.exif_transpose(image).convert("L" if config.channels == 1 else "RGB")
            bounds = config.bounds or (_SIXTEEN_BITS if _has_sixteen_bits(image) else None)
            if image.mode not in _WIDE_MODES or bounds is None:
                raise DataError(
                    f"image {path} has pixel mode {image.mode}, of which it is not known what is black and white: "
                    "say it with data.range: [low, high], or convert it to 8 or 16 bits"
                )
            return _between(np.asarray(ImageOps.exif_transpose(image)), bounds)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and others
        raise _unreadable(path, error) from error


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Tell whether values go from 0 to 65535; Pillow has read some PNG of 16 bits as mode I."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _between(values: np.ndarray, bounds: tuple[float, float], inverted: bool = False) -> Image.Image:
    """An image of mode F, 0 at the lower bound and 1 at the upper one, the other way round where it is inverted."""
    low, high = bounds
    shares = ((values.astype(np.float64) - low) / (high - low)).clip(0, 1)
    return Image.fromarray((1 - shares if inverted else shares).astype(np.float32))


def pixels_of(image: Image.Image, config: DataConfig) -> np.ndarray:
    """Bring an image to the size that a network sees.

    Returns:
        Shape (channels, height, width): uint8, or uint16 where the image is of mode F, with 65535 for 1.
    """
    channels, height, width = config.shape
    sized = _resized(image, (width, height), config.resize, config.resize_to)
    if image.mode == "RGB":
        return np.asarray(sized).transpose(2, 0, 1)
    pixels = np.asarray(sized)
    if image.mode == "F":
        pixels = (pixels.clip(0, 1) * 65535).round().astype(np.uint16)
    return np.repeat(pixels[None], channels, axis=0)


def _resized(image: Image.Image, size: tuple[int, int], resize: Resize, shorter: int | None) -> Image.Image:
    """Bring an image to a size, width first."""
    if shorter is not None:
        return _cut(_with_shorter_side(image, shorter), size)
    if resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if resize == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=0)
    return image.resize(size, Image.Resampling.BILINEAR)


def _with_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Bring the shorter side to so many pixels, as torchvision's ``Resize(side)`` does."""
    width, height = image.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    return image.resize(size, Image.Resampling.BILINEAR)


def _cut(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut out the centre, as torchvision's ``CenterCrop`` does; ``size`` is width first."""
    left, top = round((image.width - size[0]) / 2), round((image.height - size[1]) / 2)
    return image.crop((left, top, left + size[0], top + size[1]))


def seen(image: Image.Image) -> Image.Image:
    """An image from :func:`read_image` as RGB of 8 bits, as it looks on a screen."""
    if image.mode == "F":
        image = Image.fromarray((np.asarray(image) * 255).round().astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


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
