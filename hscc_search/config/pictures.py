"""The shape of images, and how a file of them becomes one."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from hscc_search.errors import quoted

# Channels, height and width.
Shape = tuple[int, ...]

# How an image is brought to size: see ``resize`` below.
Resize = Literal["squeeze", "crop", "pad"]

# Of red, green and blue, and what is nearest to them for a single channel: their means.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)

_SMALLEST_SIDE, _LARGEST_SIDE = 8, 1024
_SIDE_SCHEMA = {"type": "integer", "minimum": _SMALLEST_SIDE, "maximum": _LARGEST_SIDE}


def _image_size(value: Any) -> int | tuple[int, int]:
    """Check a side, or height and width, of which equal ones are one side: so a square is always stored alike."""
    sides = tuple(value) if isinstance(value, (list, tuple)) and len(value) == 2 else (value, value)
    for side in sides:
        if type(side) is not int or not _SMALLEST_SIDE <= side <= _LARGEST_SIDE:
            raise ValueError(
                f"{quoted(value)} is not allowed: use a whole number greater than or equal to {_SMALLEST_SIDE} and "
                f"less than or equal to {_LARGEST_SIDE}, or two of them, [height, width]"
            )
    height, width = sides
    return height if height == width else (height, width)


ImageSize = Annotated[
    int | tuple[int, int],
    PlainValidator(_image_size),
    PlainSerializer(lambda size: size if isinstance(size, int) else list(size), when_used="json"),
    WithJsonSchema({"anyOf": [_SIDE_SCHEMA, {"type": "array", "items": _SIDE_SCHEMA, "minItems": 2, "maxItems": 2}]}),
]
Level = Annotated[float, Field(ge=-1e9, le=1e9)]


def window_bounds(centre: float, width: float) -> tuple[float, float]:
    """The values that DICOM's linear window shows as black and white (PS3.3, C.11.2.1.2.1)."""
    low = centre - width / 2
    return low, low + width - 1


def shape_of(image: int | Shape) -> Shape:
    """The shape of one image: as it is given, or (3, side, side) of a square RGB image whose side is given."""
    return (3, image, image) if isinstance(image, int) else image


def sized(channels: int, image_size: int | tuple[int, int]) -> Shape:
    """The shape of one image of so many channels: its size is a side, or height and width."""
    return (channels, *((image_size, image_size) if isinstance(image_size, int) else image_size))
