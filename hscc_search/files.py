"""Folders and files that are whole or absent, whatever kills the process that writes them."""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from hscc_search.errors import ConfigError


def cache_folder(kind: str) -> Path:
    """The user's cache folder for one kind of result; ``HSCC_CACHE`` names another place for all of them.

    Raises:
        ConfigError: the folder cannot be made.
    """
    root = os.environ.get("HSCC_CACHE")
    folder = (Path(root) if root else platformdirs.user_cache_path("hscc-search")) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot use {folder} as cache ({error.strerror}): set HSCC_CACHE to a folder") from error
    return folder


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write to; it takes the name ``path`` at the end.

    When the block raises, the temporary file is removed and ``path`` is left as it was.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill; it takes the name ``path`` at the end.

    When the block raises, the temporary folder is removed and ``path`` does not come to exist.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(folder: Path, age: float = 86400) -> None:
    """Remove what :func:`folder_written_whole` left in ``folder`` when its process was killed.

    Args:
        folder: where it was to write.
        age: in seconds, since when nothing in a temporary folder may have been written.
    """
    for temporary in folder.glob(".*"):
        try:
            newest = max(path.stat().st_mtime for path in (temporary, *temporary.iterdir()))
        except OSError:  # it is no folder, or has just taken its name
            continue
        if newest < time.time() - age:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_unused(folder: Path, age: float) -> None:
    """Remove the folders in ``folder`` that were neither written nor, by :func:`used`, marked as used for a while.

    Args:
        folder: in the cache.
        age: of that while, in seconds.
    """
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            if entry.stat().st_mtime < time.time() - age:
                shutil.rmtree(entry, ignore_errors=True)


def used(folder: Path) -> None:
    """Mark a folder in the cache as used now."""
    with contextlib.suppress(OSError):  # a cache that only others may write
        os.utime(folder)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
