"""Some rows of an array, such as the images of a part of a split, read from disk when they are asked for."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

# Bytes of a mapped array from which on what was read is given back to the system after each reading.
_LARGE = 1 << 26


class Rows:
    """Rows of an array, in an order of their own. What is asked for is copied; nothing else is read.

    Attributes:
        shape: of all rows together.
        dtype: of the array.
        indices: of the rows in the array, int64, shape (rows,).
    """

    def __init__(self, array: np.ndarray, indices: np.ndarray) -> None:
        """Choose rows.

        Args:
            array: shape (rows, ...), in memory or mapped from a file.
            indices: of the chosen rows, int64, shape (chosen,).
        """
        self._array, self.indices = array, indices
        self.shape, self.dtype = (len(indices), *array.shape[1:]), array.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read the rows of a slice or of an array of positions, or a single one, as numpy does."""
        chosen = np.atleast_1d(self.indices[key])
        order = np.argsort(chosen, kind="stable")  # a disk reads faster onward than to and fro
        rows = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        rows[order] = self._array[chosen[order]]
        self._give_back()
        return rows[0] if np.ndim(self.indices[key]) == 0 else rows

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[position] for position in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def _give_back(self) -> None:
        """Tell the system that what was read of a large map need not stay in the memory of this process."""
        mapped = getattr(self._array, "_mmap", None)
        if isinstance(mapped, mmap.mmap) and self._array.nbytes >= _LARGE and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


# Images or other inputs of a part: all in memory, or read when they are asked for.
Images = np.ndarray | Rows
