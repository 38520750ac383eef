"""Arrays of a data set in the user's cache folder: written row by row, and mapped where they are large."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hscc_search.cache import DamagedError, entry_written, use_entry, warn_unwritable
from hscc_search.errors import UnwritableError
from hscc_search.files import check_room

Arrays = Mapping[str, np.ndarray]
# Takes the rows of a stream, one after the other.
Keep = Callable[[np.ndarray], object]
# Gives the rows of all streams to what keeps them, by name, and returns the small arrays by name.
Fill = Callable[[Mapping[str, Keep]], Arrays]


@dataclass(frozen=True)
class Stream:
    """An array that is too large for the memory.

    Attributes:
        shape: of all rows together.
        dtype: of each.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        """Size of all rows."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def arrays_of(entry: Path, streams: Mapping[str, Stream], content: str, fill: Fill) -> Arrays:
    """The arrays of an entry of the cache, which is made where there is none, or a damaged one.

    Args:
        entry: in the cache.
        streams: the large arrays by name; the one called ``images`` holds the entry in use.
        content: of the entry, for the message that there is no room for it.
        fill: makes the arrays; not called where the entry is there. Where the cache cannot be written to it is called,
            and the arrays are in memory.

    Raises:
        DiskFullError: there is no room.
    """
    stored = _read(entry, streams)
    if stored is not None:
        return stored
    try:
        with entry_written(entry) as temporary, ExitStack() as files:
            check_room(temporary, sum(stream.bytes for stream in streams.values()), content)
            keep: dict[str, Keep] = {}
            for name, stream in streams.items():
                file = files.enter_context((temporary / f"{name}.npy").open("wb"))
                _write_header(file, stream)
                keep[name] = partial(_write_row, file)
            small = fill(keep)
            files.close()
            for name, array in small.items():
                np.save(temporary / f"{name}.npy", array)
        stored = _read(entry, streams)
        if stored is not None:
            return stored
    except UnwritableError:
        warn_unwritable()
    large = {name: np.empty(stream.shape, stream.dtype) for name, stream in streams.items()}
    rows = {name: iter(array) for name, array in large.items()}
    return {**large, **fill({name: partial(_copy_row, own) for name, own in rows.items()})}


def _read(entry: Path, streams: Mapping[str, Stream]) -> Arrays | None:
    """Read an entry of the cache; None without an entry, or with a damaged one."""
    try:
        use = use_entry(entry)
    except DamagedError:
        return None
    arrays = {path.stem: np.load(path, mmap_mode="r" if path.stem in streams else None) for path in entry.glob("*.npy")}
    weakref.finalize(arrays["images"], use.end)
    return arrays


def _write_header(file: BinaryIO, stream: Stream) -> None:
    """Begin a file as np.save does."""
    header = {"descr": np.lib.format.dtype_to_descr(stream.dtype), "fortran_order": False, "shape": stream.shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write_row(file: BinaryIO, row: np.ndarray) -> None:
    file.write(row.tobytes())


def _copy_row(rows: Iterator[np.ndarray], row: np.ndarray) -> None:
    np.copyto(next(rows), row)
