"""Read a table of images, CSV or Parquet: where each image lies, its class, its group and its part of a split."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hscc_search.config import ColumnsConfig
from hscc_search.data.listing import Listed, part_of
from hscc_search.errors import DataError, one_line, printable, quoted, shortened
from hscc_search.files import IrregularFileError, opened

_DELIMITERS = (",", ";", "\t")
_PARQUET = (".parquet", ".pq")
# Bytes of a table: a few million images.
_MOST_BYTES = 1 << 29


@dataclass(frozen=True)
class _Table:
    """A table as texts: the names of its columns, and its rows, each with what a message calls it."""

    path: Path
    columns: tuple[str, ...]
    rows: Iterable[tuple[str, Mapping[str, Any]]]


def images_of_table(path: Path, columns: ColumnsConfig) -> tuple[list[Listed], tuple[str, ...]]:
    """List the images of a table, in its order.

    Args:
        path: of the table: Parquet where it is called so, else CSV with a header, in UTF-8, whose cells commas,
            semicolons or tabs part.
        columns: their names.

    Returns:
        The images, and a line on columns that may hold groups or parts and are not used as such.

    Raises:
        DataError: the table cannot be read, lacks a column or a value, or names an image twice.
    """
    table = _read_parquet(path) if path.suffix.lower() in _PARQUET else _read_csv(path, columns.path)
    named = _columns_used(table, columns)
    images: list[Listed] = []
    lines: dict[str, str] = {}
    others: dict[str, set[Any]] = {name: set() for name in table.columns if name and name not in named.values()}
    for line, row in table.rows:
        for name, different in others.items():
            different.add(str(row.get(name)))
        cells = {kind: _cell(table, line, row, column) for kind, column in named.items()}
        place = cells["path"]
        if place in lines:
            raise DataError(f"table {path} names image {place} twice, in {lines[place]} and {line}: remove one")
        if printable(cells["label"]) != cells["label"]:
            raise DataError(f"the class {cells['label']} in {line} of table {path} is no plain text: rename it")
        lines[place] = line
        try:
            part = part_of(cells["split"]) if "split" in cells else None
        except ValueError as error:
            raise DataError(f"{line} of table {path}: column {named['split']}: {error}") from error
        images.append(Listed(path.parent / place, cells["label"], place, cells.get("group"), part))
    if not images:
        raise DataError(f"table {path} names no images: it needs a row for each")
    return images, _unused(table, named, others, len(images))


def _unused(table: _Table, named: Mapping[str, str], values: Mapping[str, set[Any]], count: int) -> tuple[str, ...]:
    """A line on columns that are not used where groups or parts could be among them; none otherwise."""
    missing = [f"data.columns.{kind}" for kind in ("group", "split") if kind not in named]
    if not missing or not values:
        return ()
    found = ", ".join(f"{name} ({len(different):,} values for {count:,} images)" for name, different in values.items())
    unused = f"columns of {table.path.name} that are not used: {shortened(printable(found), 500)}"
    return (f"{unused}; {', '.join(missing)} may name them",)


def _columns_used(table: _Table, columns: ColumnsConfig) -> dict[str, str]:
    """The column of each kind of value; groups and parts may have none."""
    wanted = {"path": columns.path, "label": columns.label, "group": columns.group, "split": columns.split}
    named = {kind: name or kind for kind, name in wanted.items() if name is not None or kind in table.columns}
    for kind, name in named.items():
        if table.columns.count(name) != 1:
            count = "two columns" if name in table.columns else "no column"
            raise DataError(
                f"table {table.path} has {count} {quoted(name)}: its columns are "
                f"{shortened(', '.join(table.columns), 500)}; name the right one with data.columns.{kind}"
            )
    return named


def _cell(table: _Table, line: str, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    text = "" if value is None or value != value else str(value).strip()  # NaN is what pandas writes for nothing
    if not text:
        raise DataError(f"{line} of table {table.path} has no value in column {quoted(column)}: fill it in")
    if "\0" in text:
        raise DataError(f"{line} of table {table.path} holds the character \\0 in column {quoted(column)}: remove it")
    return text


def _read_csv(path: Path, needed: str) -> _Table:
    try:
        with _opened(path) as file:
            content = file.read(_MOST_BYTES + 1) or b""  # None where there is nothing yet, as in /proc/kmsg
        _check_size(path, len(content))  # it may have grown
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"table {path} is no text in UTF-8 (byte {error.start:,}): save it as CSV in UTF-8") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    headers = {sign: _header(text, sign) for sign in _DELIMITERS}
    delimiter = next((sign for sign, names in headers.items() if needed in names), _DELIMITERS[0])
    columns = headers[delimiter]
    if not any(columns):
        raise DataError(f"table {path} is empty: it needs a header and a row for each image")
    return _Table(path, columns, _csv_rows(path, text, columns, delimiter))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a table.

    Raises:
        DataError: it is no regular file, too large, or cannot be read.
    """
    try:
        with opened(path) as (file, size):
            _check_size(path, size)
            yield file
    except IrregularFileError as error:
        raise DataError(f"table {path} is no regular file: give a CSV or Parquet file") from error
    except OSError as error:
        raise DataError(f"cannot read table {path} ({error.strerror}): give a CSV or Parquet file") from error


def _check_size(path: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise DataError(
            f"table {path} is too large: it has {size:,} bytes, and a table has at most {_MOST_BYTES:,}: leave out "
            "columns that are not needed"
        )


def _header(text: str, delimiter: str) -> tuple[str, ...]:
    try:
        return tuple(name.strip() for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))
    except csv.Error:  # told of when the rows are read
        return ()


def _csv_rows(path: Path, text: str, columns: Sequence[str], delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        next(reader)
        for cells in reader:
            if not any(map(str.strip, cells)):
                continue
            line = f"line {reader.line_num}"
            if len(cells) != len(columns):
                raise DataError(
                    f"{line} of table {path} has {len(cells)} cells and the header {len(columns)}: mend it, or put "
                    "cells that hold the delimiter in quotes"
                )
            yield line, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num} of table {path} is no CSV ({one_line(error)}): mend it") from error


def _read_parquet(path: Path) -> _Table:
    try:
        from pyarrow import parquet  # an extra, and slow to import
    except ImportError as error:
        raise DataError(
            f"reading {path} needs pyarrow: install it with `pip install 'hscc-search[parquet]'`, or save it as CSV"
        ) from error
    try:
        with _opened(path) as file:
            table = parquet.read_table(file)
        rows, names = table.to_pylist(), table.column_names
    except DataError:
        raise
    except Exception as error:  # pyarrow has its own
        raise DataError(f"cannot read table {path} ({one_line(error)}): give a CSV or Parquet file") from error
    return _Table(path, tuple(names), ((f"row {number:,}", row) for number, row in enumerate(rows, 1)))
