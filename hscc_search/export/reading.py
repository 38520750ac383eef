"""The lines of a model card that read an image file as the study read its images."""

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
centre, width = (float(np.ravel(value)[0]) for value in (file.WindowCenter, file.WindowWidth))
exact = file.get("VOILUTFunction") == "LINEAR_EXACT"
low, high = centre - width / 2, centre + width / 2 - (0 if exact else 1)  # are 0 and 1"""
_RESIZE = {
    "squeeze": "image.resize(({width}, {height}), Image.Resampling.BILINEAR)",
    "crop": "ImageOps.fit(image, ({width}, {height}), Image.Resampling.BILINEAR)",
    "pad": "ImageOps.pad(image, ({width}, {height}), Image.Resampling.BILINEAR, color=0)",
}
# How the array of an image becomes that of the network, by the channels of the image in memory.
_RGB = "np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255"
_GREY = "np.asarray(image, np.float32)[None, None] / 255"
_GREY_WIDE = "(np.asarray(image).clip(0, 1) * 65535).round()[None, None] / np.float32(65535)"


def picture_fields(data: DataConfig, wide: bool, dicom: bool) -> dict[str, object]:
    """The fields of a model card that say what images are, and the code that reads a file.

    Args:
        data: of the study.
        wide: whether its images have more than 8 bits.
        dicom: whether they are DICOM.
    """
    channels, height, width = data.shape
    mode = "L" if channels == 1 else "RGB"
    size = {"height": height, "width": width}
    return {
        "channels": channels,
        **size,
        "colours": {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel"),
        "bounds": _bounds_in_words(data, dicom) if wide else "",
        "reading": "\n".join(_lines(data, wide, dicom)).format(mode=mode, **size),
    }


def _lines(data: DataConfig, wide: bool, dicom: bool) -> list[str]:
    resize = f"image = {_RESIZE[data.resize]}"
    eight_bits = _GREY if data.channels == 1 else _RGB
    if not wide:
        return [_IMPORTS + _EIGHT_BITS, resize, f"pixels = {eight_bits}"]
    grey = _GREY_WIDE if data.channels == 1 else f"{_GREY_WIDE}.repeat(3, axis=1)"
    low, high = data.bounds or (0.0, 65535.0)
    bounds = f"low, high = {low!r}, {high!r}  # are 0 and 1"
    if dicom:
        reading = _DICOM.replace("{bounds}", bounds if data.bounds else _OWN_WINDOW)
        return [_IMPORTS + reading, resize, f"pixels = {grey}"]
    reading = _WIDE.replace("{bounds}", bounds if data.bounds else f"{_SIXTEEN_BITS_ALONE}\n    {bounds}")
    return [_IMPORTS + reading, resize, "if wide:", f"    pixels = {grey}", "else:", f"    pixels = {eight_bits}"]


def _bounds_in_words(data: DataConfig, dicom: bool) -> str:
    if data.bounds is not None:
        return " Values {:g} and {:g} of a file of more than 8 bits are 0 and 1; what is beyond is clipped.".format(
            *data.bounds
        )
    if dicom:
        return " Of a DICOM file, its first window goes from 0 to 1."
    return " Values 0 and 65535 of a file of 16 bits are 0 and 1."
