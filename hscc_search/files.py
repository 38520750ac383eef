"""Files and folders that are complete or absent, even if the process that writes them is killed, and the cache."""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from hscc_search.errors import ConfigError

# Modes of finished files and folders: Python makes temporary ones that only their owner can read.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
# Seconds without a change after which a temporary folder counts as abandoned by its process.
_ABANDONED_SECONDS = 24 * 3600


def cache_folder(kind: str) -> Path:
    """Make the user's cache folder for one kind of result, below ``HSCC_CACHE`` where that is set.

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
    """Yield a temporary file beside ``path`` to write to, and rename it to ``path`` at the end, readable for all.

    When the block raises, the temporary file is removed and ``path`` stays as it was. A link stays: the file that it
    names is replaced.

    Raises:
        ConfigError: ``path`` is a folder, a device or a pipe, or its folder cannot be written to.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is not a regular file, and only such are replaced: name another file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ConfigError(f"cannot write to {path} ({error.strerror}): name another file") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(_FILE_MODE)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` to fill, and rename it to ``path`` at the end, readable for all.

    When the block raises, the temporary folder is removed and ``path`` is not made.

    Raises:
        ConfigError: nothing can be written beside ``path``.
        OSError: ``path`` is there already and not empty.
    """
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ConfigError(f"cannot write to {path} ({error.strerror}): name another folder") from error
    try:
        yield temporary
        for entry in temporary.iterdir():
            if entry.is_file():
                entry.chmod(_FILE_MODE)
        temporary.chmod(_FOLDER_MODE)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class TemporaryFolder:
    """A folder that is removed with this object, or when the process ends.

    Attributes:
        path: of the folder.
    """

    def __init__(self, prefix: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        # tempfile.TemporaryDirectory does the same, but warns where nobody called its cleanup.
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary folders that killed processes left in ``folder``, unless they were written to within a day.

    Such folders come from :func:`folder_written_whole`.
    """
    for temporary in folder.glob(".*"):
        try:
            newest = max(path.stat().st_mtime for path in (temporary, *temporary.iterdir()))
        except OSError:  # not a folder, or just renamed
            continue
        if newest < time.time() - _ABANDONED_SECONDS:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_unused(folder: Path, age: float) -> None:
    """Remove the folders in ``folder`` that nobody has written or marked with :func:`mark_used` for some time.

    Args:
        folder: in the cache.
        age: seconds without use after which a folder is removed.
    """
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            if entry.stat().st_mtime < time.time() - age:
                shutil.rmtree(entry, ignore_errors=True)


def mark_used(folder: Path) -> None:
    """Mark a folder in the cache as used now."""
    with contextlib.suppress(OSError):  # the folder is gone, or may not be written by this user
        os.utime(folder)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
