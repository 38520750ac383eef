"""Items of a data set of the user's own: an input, a target and perhaps a group, read and checked."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_search.errors import DataError, one_line, quoted


@dataclass(frozen=True)
class Item:
    """An item of a part, read.

    Attributes:
        input: float32 or uint8.
        target: int64 scalar, or a map of positions, int64, shape (height, width).
        group: the name of what it belongs to, such as a patient; None where nothing was said.
    """

    input: np.ndarray
    target: np.ndarray
    group: str | None

    @property
    def digest(self) -> str:
        """SHA-256 of the input."""
        return hashlib.sha256(f"{self.input.dtype} {self.input.shape} ".encode() + self.input.tobytes()).hexdigest()

    @property
    def target_digest(self) -> str:
        """The target as a text, a map as its SHA-256."""
        return str(int(self.target)) if self.target.ndim == 0 else hashlib.sha256(self.target.tobytes()).hexdigest()


def read_items(part: str, items: Any) -> Iterator[Item]:
    """Read the items of a part in their order; raises as :func:`read_item`."""
    return (read_item(part, items, position) for position in range(len(items)))


def read_item(part: str, items: Any, position: int) -> Item:
    """Read an item.

    Raises:
        DataError: the user's code raises, or the item is no input with a target, or with a target and a group.
    """
    name = f"{part}[{position}]"
    try:
        item = items[position]
    except (Exception, SystemExit) as error:  # whatever the user's code raises, to leave the program too
        raise DataError(f"cannot read {name}: {one_line(error, with_type=True)}") from error
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
        raise DataError(f"{name} is {quoted(item)}: it must be an input and a target, or these and a group")
    group = _group(name, item[2]) if len(item) == 3 else None
    return Item(_input(name, _array(name, item[0])), _target(name, _array(name, item[1])), group)


def _array(name: str, value: Any) -> np.ndarray:
    """Turn a tensor, an array or a number into an array."""
    try:
        if hasattr(value, "detach"):  # a tensor: bfloat16 is no type of numpy
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()
        return np.asarray(value)
    except Exception as error:
        raise DataError(f"{name} cannot be read as numbers: {one_line(error, with_type=True)}") from error


def _input(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8 and values.size:
        return values
    if values.dtype.kind != "f" or not values.size or not values.ndim:
        raise DataError(
            f"{name} has an input of type {values.dtype} and shape {values.shape}: floating-point numbers or uint8 are "
            "needed"
        )
    if not np.isfinite(values).all():
        raise DataError(f"{name} holds NaN or infinity: leave it out or mend it")
    return values.astype(np.float32)


def _target(name: str, values: np.ndarray) -> np.ndarray:
    values = values.reshape(()) if values.size == 1 and values.ndim < 2 else values
    if values.dtype.kind not in "iu" or values.ndim not in (0, 2) or not values.size or values.min() < 0:
        raise DataError(
            f"{name} has a target of type {values.dtype} and shape {values.shape}: the position of a class is needed, "
            "0 or more, or a map of these, shape (height, width)"
        )
    return values.astype(np.int64)


def _group(name: str, value: Any) -> str:
    """A group as a text: a text, a whole number, or an array or tensor of one."""
    group = np.asarray(value) if isinstance(value, str) else _array(name, value)
    if group.size != 1 or group.dtype.kind not in "iuU":
        raise DataError(f"{name} has the group {quoted(value)}: a text or a whole number is needed")
    if not str(group.item()):
        raise DataError(f"{name} has an empty group: name one")
    return str(group.item())
