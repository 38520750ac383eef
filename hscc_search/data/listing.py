"""An image before it is read: where it lies, and what is said of it."""

from dataclasses import dataclass
from pathlib import Path

# The parts of a split, in their order; a side is a position here.
PARTS = ("train", "validation", "test")
_NAMES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
_NAMES |= {"val": "validation", "test": "test", "testing": "test"}


@dataclass(frozen=True)
class Listed:
    """An image that a folder or a table names.

    Attributes:
        path: of the file.
        class_name: its class.
        place: its path below the folder, or as the table has it.
        group: name of the images that belong together; None where nothing says.
        part: one of ``PARTS`` in a split of the user's own; None where one is drawn.
    """

    path: Path
    class_name: str
    place: str
    group: str | None = None
    part: str | None = None


def part_of(text: str) -> str:
    """The part that a text names, such as ``Training`` or ``val``.

    Raises:
        ValueError: none.
    """
    try:
        return _NAMES[text.lower()]
    except KeyError:
        raise ValueError(f"{text!r} is no part of a split: say {', '.join(PARTS)}") from None
