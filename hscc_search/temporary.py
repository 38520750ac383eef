"""Temporary files and folders: they go with the process that makes them, however it ends.

What is being written has a temporary name beside its own, and beside that a lock file which its process holds locked.
The system releases the lock of a process that ends in whatever way, so whoever gets the lock knows that its process is
gone. Where locks do not reach other machines, as on some network folders, a lock that was taken on another machine
proves nothing: what that machine left is removed a day after it was last written to.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hscc_search.errors import DiskFullError, HsccError, UnwritableError

# Errors of a disk, a quota or a file size that is used up.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Suffix of the lock file of something temporary, and the most characters of a name that a temporary name repeats: a
# name may have 255 bytes, of which UTF-8 takes up to four for a character.
_LOCK, _REPEATED = ".hscc-lock", 40
# Seconds without a change after which something temporary counts as abandoned where no lock tells.
_ABANDONED_SECONDS = 24 * 3600
# Seconds after which a lock file without the name of a machine, which is written at once, is abandoned if unlocked.
_NAMELESS_SECONDS = 10
# Bytes that are written to find out whether a disk is full.
_PROBE = 1 << 20


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield an unused temporary path beside ``path``; what is there at the end of the block is removed.

    First removes what killed processes left of the same ``path``.

    Raises:
        UnwritableError: nothing can be written beside ``path``.
        DiskFullError: there is no room for what the block writes.
    """
    remove_abandoned(path.parent, path.name)
    try:
        temporary, handle = _claim(path.parent, path.name)
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(f"no room for {path}: {path.parent} is full: make room, and try again") from error
        raise UnwritableError(f"cannot write to {path} ({error.strerror}): name another place") from error
    try:
        yield temporary
    except Exception as error:
        if isinstance(error, DiskFullError) or not _is_full(error, path.parent):
            raise
        megabytes = (_size(temporary) + shutil.disk_usage(path.parent).free) / 1e6
        raise DiskFullError(
            f"no room for {path}: it needs more than the {megabytes:.1f} MB that are free in {path.parent}: make room, "
            "and the same command continues"
        ) from error
    finally:
        _remove(temporary)
        _release(temporary, handle)


class TemporaryFolder:
    """A folder that is removed with this object, or when the process ends; what killed processes left of the same name.

    Attributes:
        path: of the folder.
    """

    def __init__(self, name: str) -> None:
        """Make the folder among the system's temporary ones.

        Raises:
            UnwritableError: there is no such place.
            DiskFullError: there is no room in it.
        """
        try:
            parent = Path(tempfile.gettempdir())
            remove_abandoned(parent, name)
            self.path, handle = _claim(parent, name)
            self.path.mkdir(mode=0o700)
        except OSError as error:
            if error.errno in FULL:
                raise _no_room(Path(tempfile.gettempdir())) from error
            raise UnwritableError(f"no temporary folder ({error.strerror}): set TMPDIR to a folder") from error
        # tempfile.TemporaryDirectory does the same, but warns where nobody called its cleanup.
        self._remove = weakref.finalize(self, _discard, self.path, handle)

    def remove(self) -> None:
        """Remove the folder now."""
        self._remove()


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Yield a :class:`TemporaryFolder`'s path, and remove it at the end of the block.

    Raises:
        UnwritableError: there is no place for it.
        DiskFullError: there is no room for what the block writes.
    """
    folder = TemporaryFolder(name)
    try:
        yield folder.path
    except Exception as error:
        if isinstance(error, DiskFullError) or not _is_full(error, folder.path.parent):
            raise
        folder.remove()  # so that the error tells what is free for others
        raise _no_room(folder.path.parent) from error
    finally:
        folder.remove()


def _no_room(parent: Path) -> DiskFullError:
    return DiskFullError(
        f"no room for temporary files: {shutil.disk_usage(parent).free / 1e6:.1f} MB are free in {parent}: make room, "
        "or set TMPDIR to another folder, and the same command continues"
    )


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Remove what killed processes left in ``folder`` when they wrote something whole.

    Args:
        folder: which may not exist.
        name: of what they wrote; by default, everything is removed that killed processes left.
    """
    with contextlib.suppress(OSError):  # no such folder, or one that this user may not read
        prefix = f".{name[:_REPEATED]}." if name else "."
        for lock in [path for path in folder.iterdir() if path.name.startswith(prefix) and path.suffix == _LOCK]:
            temporary = lock.with_suffix("")
            handle = _take_over(lock, temporary)
            if handle is not None:
                _remove(temporary)
                _release(temporary, handle)


def lock_file(path: Path, exclusively: bool) -> int | None:
    """Open and lock a file, which is unlocked when the returned descriptor is closed or the process ends.

    Args:
        path: of a file that exists.
        exclusively: whether this process alone can have the lock; else any number can.

    Returns:
        A descriptor; None where another process has the lock.

    Raises:
        OSError: the file is not there or cannot be opened, or files cannot be locked there.
    """
    # Network folders lock exclusively only what is open for writing.
    handle = os.open(path, os.O_CLOEXEC | (os.O_RDWR if exclusively else os.O_RDONLY))
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return handle


def _claim(folder: Path, name: str) -> tuple[Path, int]:
    """Find an unused temporary name in a folder, and lock its lock file.

    Returns:
        The temporary path, at which nothing is yet, and the descriptor of the lock.

    Raises:
        OSError: the folder cannot be written to.
    """
    while True:
        handle, lock = tempfile.mkstemp(prefix=f".{name[:_REPEATED]}.", suffix=_LOCK, dir=folder)
        with contextlib.suppress(OSError):  # files cannot be locked there: their age decides
            fcntl.flock(handle, fcntl.LOCK_EX)
        temporary = Path(lock).with_suffix("")
        try:
            os.write(handle, socket.gethostname().encode())
        except OSError:
            _release(temporary, handle)
            raise
        if _is_open_at(handle, Path(lock)):
            return temporary, handle
        os.close(handle)  # another process took it for abandoned before it was locked


def _take_over(lock: Path, temporary: Path) -> int | None:
    """Open and lock the lock file of something temporary; None unless its process is certainly gone."""
    try:
        age, name = time.time() - _newest(lock, temporary), lock.read_bytes()
        old = age > _ABANDONED_SECONDS
        here = name == socket.gethostname().encode() or (not name and age > _NAMELESS_SECONDS)
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # removed meanwhile, or of another user
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = old or here
    except OSError as error:
        gone = old and not isinstance(error, BlockingIOError)  # or files cannot be locked there
    if gone and _is_open_at(handle, lock):
        return handle
    os.close(handle)
    return None


def _is_open_at(handle: int, path: Path) -> bool:
    """Tell whether a descriptor is of the file that is at ``path`` now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _newest(*paths: Path) -> float:
    """Time of the last change of any of some files and folders, or of a file in them."""
    there = [path for path in paths if path.exists()]
    inner = [file for path in there if path.is_dir() for file in path.iterdir()]
    return max((path.stat().st_mtime for path in (*there, *inner)), default=0.0)


def _discard(temporary: Path, handle: int) -> None:
    _remove(temporary)
    _release(temporary, handle)


def _release(temporary: Path, handle: int) -> None:
    """Remove the lock file of something temporary, which is gone."""
    temporary.with_name(temporary.name + _LOCK).unlink(missing_ok=True)
    os.close(handle)


def _remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder; 0 where there is neither."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())


def _is_full(error: BaseException, folder: Path) -> bool:
    """Tell whether an error comes from a full disk; many libraries raise one of their own that does not say so."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in FULL) or os.strerror(errno.ENOSPC) in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, HsccError):
        return False
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as probed:
        return probed.errno in FULL
    return False
