"""The user's cache folder: what can be made again, by kind.

An entry is a folder that holds ``checksums.json``, with the name of the entry and the size and CRC-32 of each of its
files, or a single file. CRC-32 tells every flipped bit and nearly every other damage, and takes half a second for a
gigabyte. An entry that is not what was written counts as missing. While a process uses an entry that is a folder, it
holds the folder's ``in-use`` file locked for sharing; see :mod:`hscc_search.temporary`.
"""

import contextlib
import json
import os
import time
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EACCES, EEXIST, ENOTEMPTY, EPERM, EROFS
from pathlib import Path

import platformdirs

from hscc_search.errors import ConfigError, HsccWarning, UnwritableError
from hscc_search.files import readable_for_all
from hscc_search.temporary import lock_file, remove_abandoned, temporary_beside

KINDS = ("calibrations", "checkpoints", "pixels")

# Suffix of the file, beside trained weights, that a process holds locked while it trains them.
TRAINING_LOCK = ".lock"

_CHECKSUMS, _IN_USE = "checksums.json", "in-use"
# Bytes that are read at once for a checksum.
_CHUNK = 1 << 22


class DamagedError(ValueError):
    """An entry of the cache is missing, or is not what was written."""


class Use:
    """The use of an entry by this process, until it is ended or this object is gone."""

    def __init__(self, entry: Path) -> None:
        """Begin the use of an entry that is a folder; where the system has no locks, nothing tells others.

        Raises:
            DamagedError: another process is removing it.
        """
        self._close: Callable[[], object] | None = None
        try:
            handle = lock_file(entry / _IN_USE, exclusively=False)
        except OSError:
            return
        if handle is None:
            raise DamagedError(f"{entry} is being removed")
        self._close = weakref.finalize(self, os.close, handle)  # also before the interpreter ends, and once only

    def end(self) -> None:
        """End the use."""
        if self._close is not None:
            self._close()


@dataclass(frozen=True)
class Entry:
    """An entry of the cache.

    Attributes:
        kind: one of ``KINDS``.
        path: a folder or a file.
        bytes: its size.
        used: when it was last written or used, in seconds since 1970.
    """

    kind: str
    path: Path
    bytes: int
    used: float


def cache_root() -> Path:
    """The user's cache folder: what ``HSCC_CACHE`` names, where that is set."""
    root = os.environ.get("HSCC_CACHE")
    return Path(root) if root else platformdirs.user_cache_path("hscc-search")


def cache_folder(kind: str) -> Path:
    """Make the folder of one kind of entries.

    Where this user may write nothing there, the folder may be missing, and writing to it raises UnwritableError.

    Raises:
        ConfigError: there can be no such folder.
    """
    folder = cache_root() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in (EACCES, EPERM, EROFS):
            raise ConfigError(
                f"cannot use {folder} as cache ({error.strerror}): set HSCC_CACHE to another folder"
            ) from error
    return folder


def warn_unwritable() -> None:
    """Warn, once in a process, that the cache cannot be written to, and what that means."""
    warnings.warn(
        f"the cache {cache_root()} cannot be written to: images are decoded, networks trained and calibrations made "
        "each time again; HSCC_CACHE names another folder",
        HsccWarning,
        stacklevel=1,
    )


@contextmanager
def entry_written(entry: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill with the files of an entry, and put it in the entry's place.

    Where another process was faster, its entry stays; one that is damaged is replaced.

    Raises:
        UnwritableError: the cache cannot be written to.
        DiskFullError: there is no room.
    """
    with temporary_beside(entry) as temporary:
        temporary.mkdir()
        yield temporary
        _seal(temporary, entry.name)
        readable_for_all(temporary)
        while not _is_intact(entry):
            try:
                _move_out(entry)
                temporary.rename(entry)
            except OSError as error:
                if error.errno not in (ENOTEMPTY, EEXIST):  # another process put its own there meanwhile
                    raise UnwritableError(f"cannot replace {entry}, which is damaged ({error.strerror})") from error


def use_entry(entry: Path) -> Use:
    """Check the files of an entry that is a folder, and use it.

    Raises:
        DamagedError: the entry is missing, or is not what was written.
    """
    use = Use(entry)
    _check(entry)
    with contextlib.suppress(OSError):  # of another user, or read-only
        os.utime(entry)
    return use


def entries() -> list[Entry]:
    """List what the cache holds, by kind and name; what is being written just now is no entry."""
    found = []
    for kind in KINDS:
        for path in _listed(cache_root() / kind):
            with contextlib.suppress(OSError):  # removed meanwhile
                files = [path, *path.rglob("*")] if path.is_dir() else [path]
                size = sum(file.stat().st_size for file in files if file.is_file())
                found.append(Entry(kind, path, size, path.stat().st_mtime))
    return found


def remove_entry(path: Path) -> bool:
    """Remove an entry unless a process uses it; return whether it is gone."""
    lock = path / _IN_USE if path.is_dir() else path.with_suffix(TRAINING_LOCK)
    try:
        handle = lock_file(lock, exclusively=True)
    except FileNotFoundError:  # of a version that had no locks, or damaged
        handle = -1
    except OSError:
        return False
    if handle is None:
        return False
    try:
        _move_out(path)
    except (OSError, UnwritableError):
        return False
    finally:
        if handle != -1:
            os.close(handle)
    return True


def remove_entries(chosen: Iterable[Entry]) -> list[Entry]:
    """Remove entries, and what killed processes left beside them; return those that are still there."""
    kept = [entry for entry in chosen if not remove_entry(entry.path)]
    for kind in KINDS:
        remove_abandoned(cache_root() / kind)
    return kept


def tidy(folder: Path, age: float) -> None:
    """Remove what killed processes left in a folder of the cache, and entries that nobody has used for some time.

    Args:
        folder: from :func:`cache_folder`.
        age: seconds without use after which an entry is removed.
    """
    remove_abandoned(folder)
    for path in _listed(folder):
        with contextlib.suppress(OSError):  # another process was faster
            if path.stat().st_mtime < time.time() - age:
                remove_entry(path)


def _listed(folder: Path) -> list[Path]:
    """The paths of the entries in a folder, by name."""
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.suffix != TRAINING_LOCK)
    except OSError:  # there is none
        return []


def _move_out(path: Path) -> None:
    """Remove an entry at once for all who look for it; files that others have mapped stay readable.

    Raises:
        OSError: it cannot be removed.
        UnwritableError: likewise.
    """
    with temporary_beside(path) as aside, contextlib.suppress(FileNotFoundError):
        path.rename(aside)


def _seal(folder: Path, name: str) -> None:
    """Complete the folder of an entry: write the checksums of its files."""
    (folder / _IN_USE).touch()
    files = [path for path in sorted(folder.iterdir()) if path.name != _IN_USE]
    sums = {path.name: [path.stat().st_size, value] for path, value in zip(files, _checksums(files), strict=True)}
    (folder / _CHECKSUMS).write_text(json.dumps({"entry": name, "files": sums}, indent=1), encoding="utf-8")


def _is_intact(entry: Path) -> bool:
    try:
        _check(entry)
    except DamagedError:
        return False
    return True


def _check(entry: Path) -> None:
    """Compare the files of an entry with what was written.

    Raises:
        DamagedError: one is missing, or holds something else.
    """
    try:
        tree = json.loads((entry / _CHECKSUMS).read_text(encoding="utf-8"))
        if tree["entry"] != entry.name:
            raise DamagedError(f"{entry} holds another entry, {tree['entry']}")
        files = [entry / name for name in tree["files"]]
        if {path.name for path in entry.iterdir()} != {*tree["files"], _CHECKSUMS, _IN_USE}:
            raise DamagedError(f"{entry} lacks a file, or has one too many")
        for path, (size, _) in zip(files, tree["files"].values(), strict=True):
            if path.stat().st_size != size:
                raise DamagedError(f"{path} is not of the size that it was written with")
        for path, (_, expected), value in zip(files, tree["files"].values(), _checksums(files), strict=True):
            if value != expected:
                raise DamagedError(f"{path} is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(str(error)) from error


def _checksums(files: list[Path]) -> list[int]:
    """CRC-32 of files, which several threads read."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_checksum, files))


def _checksum(path: Path) -> int:
    value, buffer = 0, bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            value = zlib.crc32(memoryview(buffer)[:count], value)
    return value
