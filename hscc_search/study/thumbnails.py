"""Thumbnails of validation images, where the images of a study are at hand."""

import base64
import io
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from hscc_search.config import StudyConfig
from hscc_search.dense.opened import same_images
from hscc_search.progress import Report, silent
from hscc_search.study.record import StudyRecord

# Longest side in pixels.
_SIDE = 64

# Draws the images at positions of the validation part: a ``data:`` address of a PNG by position.
Draw = Callable[[Iterable[int]], dict[int, str]]


def thumbnails(record: StudyRecord, config: StudyConfig, report: Report = silent) -> Draw:
    """Open the images of a study, and make a function that draws validation images small.

    Args:
        record: of the study.
        config: its configuration with the paths of this machine.
        report: told of reading.

    Returns:
        The function; of inputs that are no images it draws none.

    Raises:
        HsccError: the images cannot be read, or are others than those of the study.
    """
    _, parts = same_images(config, report, record.fingerprint, record.labels)
    pixels = parts.validation.images

    def draw(images: Iterable[int]) -> dict[int, str]:
        return {image: _address(pixels[image]) for image in images} if len(pixels.shape) == 4 else {}

    return draw


def _address(pixels: np.ndarray) -> str:
    """Make the address of one image, shape (channels, height, width); grey unless it has three channels."""
    values = pixels.astype(np.float32)
    values = values.transpose(1, 2, 0) if len(values) == 3 else values.mean(axis=0)
    if pixels.dtype != np.uint8:  # from its own darkest value to its brightest
        span = np.ptp(values)
        values = 255 * (values - values.min()) / (span if span > 0 else 1)
    picture = Image.fromarray(np.rint(values).astype(np.uint8))
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
