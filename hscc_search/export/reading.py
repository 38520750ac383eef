"""The lines of a model card that read an image file as the study read its images."""

from dataclasses import dataclass

import numpy as np

from hscc_search.config import DataConfig

_IMPORTS = """\
import numpy as np, onnxruntime
from PIL import Image, ImageOps
"""
_EIGHT_BITS = """
image = ImageOps.exif_transpose(Image.open("image.jpg"))  # turned upright
assert not image.mode.startswith(("I", "F")), "convert the image to 8 bits per channel"
image = image.convert("{mode}")"""
_WIDE = """
image = ImageOps.exif_transpose(Image.open("image.png"))  # turned upright
wide = image.mode.startswith(("I", "F"))  # more than 8 bits
if wide:
    {bounds}
    image = Image.fromarray(((np.asarray(image, np.float64) - low) / (high - low)).clip(0, 1).astype(np.float32))
else:
    image = image.convert("{mode}")"""
_DICOM = """\
import pydicom
from pydicom.pixels.processing import apply_modality_lut

file = pydicom.dcmread("image.dcm")
values = apply_modality_lut(file.pixel_array, file).astype(np.float64)
{bounds}
shares = ((values - low) / (high - low)).clip(0, 1)
if file.PhotometricInterpretation == "MONOCHROME1":
    shares = 1 - shares
image = Image.fromarray(shares.astype(np.float32))"""
_SIXTEEN_BITS_ALONE = 'assert image.mode.startswith("I;16"), "convert the image to 8 or 16 bits per channel"'
_OWN_WINDOW = """\
low, high = 0, 255  # are 0 and 1, unless there is a window
if "WindowWidth" in file:
    centre, width = (float(np.ravel(value)[0]) for value in (file.WindowCenter, file.WindowWidth))
    exact = file.get("VOILUTFunction") == "LINEAR_EXACT"
    low, high = centre - width / 2, centre + width / 2 - (0 if exact else 1)
else:
    assert file.BitsStored == 8, 'give the file a window'"""
_RESIZE = {
    "squeeze": "image.resize(({width}, {height}), Image.Resampling.BILINEAR)",
    "crop": "ImageOps.fit(image, ({width}, {height}), Image.Resampling.BILINEAR)",
    "pad": "ImageOps.pad(image, ({width}, {height}), Image.Resampling.BILINEAR, color=0)",
}
_CUT = """\
size = ({shorter}, int({shorter} * image.height / image.width))
if image.width > image.height:
    size = (int({shorter} * image.width / image.height), {shorter})
image = image.resize(size, Image.Resampling.BILINEAR)
left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)
image = image.crop((left, top, left + {width}, top + {height}))"""
# How the array of an image becomes that of the network, by the channels of the image in memory.
_RGB = "np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255"
_GREY = "np.asarray(image, np.float32)[None, None] / 255"
_GREY_WIDE = "(np.asarray(image).clip(0, 1) * 65535).round()[None, None] / np.float32(65535)"


@dataclass(frozen=True)
class Files:
    """The kind of a study's images.

    Attributes:
        dtype: of the images as they are stored.
        dicom: whether some are DICOM.
    """

    dtype: np.dtype
    dicom: bool = False

    @property
    def wide(self) -> bool:
        """Whether they have more than 8 bits."""
        return self.dtype == np.uint16


EIGHT_BITS = Files(np.dtype(np.uint8))


def picture_fields(data: DataConfig, files: Files) -> dict[str, str]:
    """The fields of a model card that say what the network takes, and the code that reads a file.

    Args:
        data: of the study.
        files: that it read.
    """
    channels, height, width = data.shape
    shape = f"shape (images, {channels}, {height}, {width})"
    if files.dtype.kind == "f":
        return {
            "taken": f"inputs as the study's data set gives them, float32, {shape}.",
            "read_by": "This code runs it on one input, which is to be made as the data set made it:",
            "reading": f"{_IMPORTS}\npixels = np.zeros((1, {channels}, {height}, {width}), np.float32)",
        }
    colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    return {
        "taken": f"{colours} images of {height} x {width} pixels, float32 values 0 to 1, {shape}; normalisation is "
        f"part of the network.{_bounds_in_words(data, files)}",
        "read_by": "This code reads a file exactly as the study read its images:"
        if data.source not in ("python", "memory")
        else "This code reads a file as such an image; the images of the study were made by its own data set:",
        "reading": "\n".join(_lines(data, files)).format(
            mode="L" if channels == 1 else "RGB", height=height, width=width, shorter=data.resize_to
        ),
    }


def _lines(data: DataConfig, files: Files) -> list[str]:
    resize = f"image = {_RESIZE[data.resize]}" if data.resize_to is None else _CUT
    eight_bits = _GREY if data.channels == 1 else _RGB
    if not files.wide:
        return [_IMPORTS + _EIGHT_BITS, resize, f"pixels = {eight_bits}"]
    grey = _GREY_WIDE if data.channels == 1 else f"({_GREY_WIDE}).repeat(3, axis=1)"
    low, high = data.bounds or (0.0, 65535.0)
    bounds = f"low, high = {low!r}, {high!r}  # are 0 and 1"
    if files.dicom:
        reading = _DICOM.replace("{bounds}", bounds if data.bounds else _OWN_WINDOW)
        return [_IMPORTS + reading, resize, f"pixels = {grey}"]
    reading = _WIDE.replace("{bounds}", bounds if data.bounds else f"{_SIXTEEN_BITS_ALONE}\n    {bounds}")
    return [_IMPORTS + reading, resize, "if wide:", f"    pixels = {grey}", "else:", f"    pixels = {eight_bits}"]


def _bounds_in_words(data: DataConfig, files: Files) -> str:
    if not files.wide:
        return ""
    if data.bounds is not None:
        return " Values {:g} and {:g} of a file of more than 8 bits are 0 and 1; what is beyond is clipped.".format(
            *data.bounds
        )
    if files.dicom:
        return " Of a DICOM file, its first window goes from 0 to 1."
    return " Values 0 and 65535 of a file of 16 bits are 0 and 1."
