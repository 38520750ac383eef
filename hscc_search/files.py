"""Files and folders that are complete or absent, even if the process that writes them is killed or the disk is full."""

import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hscc_search.errors import DiskFullError, UnwritableError
from hscc_search.temporary import FULL, temporary_beside

# Modes of finished files and folders: Python makes temporary ones that only their owner can read.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
# Links that are followed from one path; Linux follows as many.
_MOST_LINKS = 40
# How a file is opened: without waiting for the other end of a pipe, and as bytes; not all systems know either.
_READING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class IrregularFileError(ValueError):
    """A folder, a pipe or a device stands where a regular file is to be read."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` to write to, and rename it to ``path`` at the end, readable for all.

    When the block raises, the temporary file is removed and ``path`` stays as it was. A link stays: the file that it
    names is replaced.

    Raises:
        UnwritableError: ``path`` is a folder, a device or a pipe, or its folder cannot be written to.
        DiskFullError: there is no room.
    """
    path = checked_output(path)
    with temporary_beside(path) as temporary:
        temporary.touch()
        yield temporary
        temporary.chmod(_FILE_MODE)
        temporary.replace(path)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` to fill, and rename it to ``path`` at the end, readable for all.

    When the block raises, the temporary folder is removed and ``path`` is not made.

    Raises:
        UnwritableError: nothing can be written beside ``path``.
        DiskFullError: there is no room.
        OSError: ``path`` is there already and not empty.
    """
    with temporary_beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        readable_for_all(temporary)
        temporary.rename(path)


def checked_output(path: Path) -> Path:
    """Check that a file can be written at ``path``, before the work whose result it is to hold.

    Returns:
        The file that is written: where ``path`` is a link, what it names.

    Raises:
        UnwritableError: ``path`` is a folder, a device or a pipe, its name is too long, or its folder cannot be
            written to or does not exist.
    """
    given = path
    try:
        path = _named(given)
        if path.exists() and not path.is_file():
            raise UnwritableError(f"{path} is not a regular file, and only such are replaced: name another file")
    except OSError as error:  # as for a name that is too long, or links in a circle
        raise UnwritableError(f"cannot write to {given} ({error.strerror}): name another file") from error
    if not path.parent.is_dir():
        raise UnwritableError(f"cannot write to {path}: there is no folder {path.parent}")
    check_writable(path.parent, path)
    return path


def _named(path: Path) -> Path:
    """The file that a path names through all links.

    Raises:
        UnwritableError: it goes through an open file, as ``/dev/stdout`` does: who opened it would keep the old.
        OSError: there can be no such path.
    """
    for _ in range(_MOST_LINKS):
        # Not Path.resolve, which raises RuntimeError for links in a circle in Python 3.11 and 3.12.
        path = Path(os.path.realpath(path.absolute().parent)) / path.absolute().name
        if re.match(r"/(proc/.*|dev)/fd/", str(path)):
            raise UnwritableError(f"{path} is an open file, and only closed ones are replaced: name another file")
        if not path.is_symlink():
            return path.parent.parent if path.name == ".." else path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def check_new_folder(path: Path) -> None:
    """Check that a folder can be made at ``path`` with those above it, before the work whose result it is to hold.

    Raises:
        UnwritableError: its name is too long, or the nearest folder that exists is a file or cannot be written to.
    """
    whole = path.absolute()
    nearest = next(folder for folder in (whole, *whole.parents) if os.path.lexists(folder))
    try:
        for name in whole.relative_to(nearest).parts:
            with suppress(FileNotFoundError, NotADirectoryError):
                (nearest / name).stat()
    except OSError as error:  # as for a name that is too long
        raise UnwritableError(f"cannot write to {path} ({error.strerror}): name another folder") from error
    if not nearest.is_dir():
        raise UnwritableError(f"cannot write to {path}: {nearest} is a file: name another folder")
    check_writable(nearest, path)


def make_parent(path: Path) -> None:
    """Make the folder that ``path`` is to be written in, with those above it.

    Raises:
        UnwritableError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(f"cannot write to {path} ({error.strerror}): name another output folder") from error


def check_writable(folder: Path, path: Path) -> None:
    """Check that a folder exists and can be written to.

    Args:
        folder: where something temporary is made and removed.
        path: that is to be written there, for the message.

    Raises:
        UnwritableError: it cannot.
    """
    try:
        with tempfile.TemporaryFile(prefix=".", dir=folder):
            pass
    except OSError as error:
        if error.errno not in FULL:
            raise UnwritableError(f"cannot write to {path} ({error.strerror}): name another place") from error


def reserve(file: BinaryIO, size: int, content: str) -> None:
    """Take the room for ``size`` more bytes of a file, so that writing to a map of it cannot fail.

    A process that writes to a map of a file for which the disk has no room is killed by the system.

    Args:
        file: open for writing, and empty behind its position.
        size: at least 1.
        content: of the file, for the message.

    Raises:
        DiskFullError: there is no room.
    """
    try:
        file.flush()
        if sys.platform.startswith("linux"):
            os.posix_fallocate(file.fileno(), file.tell(), size)
        else:
            for start in range(0, size, 1 << 20):
                file.write(bytes(min(1 << 20, size - start)))
            file.flush()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(
            f"no room for {content}: {size / 1e6:.1f} MB do not fit into {file.name}: "
            "make room, and the same command continues"
        ) from error


def check_room(folder: Path, size: int, content: str) -> None:
    """Check that a folder has room, before work whose results it is to take.

    Args:
        folder: that exists.
        size: in bytes.
        content: what needs the room, for the message.

    Raises:
        DiskFullError: it has not; the error says how much it has and how much is needed.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DiskFullError(
            f"no room for {content}: {size / 1e6:.1f} MB are needed, and {free / 1e6:.1f} MB are free in "
            f"{folder.parent}: make room, and the same command continues"
        )


def readable_for_all(folder: Path) -> None:
    """Give a folder and its files the modes of finished ones."""
    for entry in folder.iterdir():
        if entry.is_file():
            entry.chmod(_FILE_MODE)
    folder.chmod(_FOLDER_MODE)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, or a link to one, without waiting for what may stand behind its name, such as a pipe.

    Yields:
        The file, and its size in bytes as it was opened: it may grow, and in ``/proc`` there is more in files of 0.

    Raises:
        OSError: it cannot be opened.
        IrregularFileError: it is no regular file.
    """
    descriptor = os.open(path, _READING)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IrregularFileError(f"{path} is no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file, status.st_size
    finally:
        os.close(descriptor)


def read_up_to(path: Path, most: int) -> bytes:
    """Read all of a regular file, or of a larger one the first ``most`` + 1 bytes.

    Raises:
        OSError: it cannot be read.
        IrregularFileError: it is no regular file.
    """
    with opened(path) as (file, _):
        return file.read(most + 1) or b""  # None where there is nothing yet, as in /proc/kmsg


def read_whole(path: Path, most: int) -> str:
    """Read a regular file of text, of at most ``most`` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file (IrregularFileError), larger, or no UTF-8.
    """
    content = read_up_to(path, most)
    if len(content) > most:
        raise ValueError(f"{path} has more than {most:,} bytes")
    return content.decode("utf-8")


def megabytes_of(path: Path) -> float:
    """The size of a file, in 10^6 bytes."""
    return path.stat().st_size / 1e6


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
