"""SQLite files of studies: whether they, their logs and their locks can be used, and how they are read alone."""

import os
import shutil
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import URL

from hscc_search.errors import StorageError
from hscc_search.storage_faults import name_of

# Bytes of an SQLite file with one study, and of its log.
_LEAST_BYTES = 250_000


def check_file(url: URL) -> None:
    """Check that a URL names a file that is or can be a database, with nothing else in the place of its log and lock.

    Raises:
        StorageError: it does not.
    """
    if not url.database or url.database == ":memory:":
        raise StorageError("storage sqlite:// without a file forgets everything: use sqlite:///studies.db")
    name = name_of(str(url))
    if url.database.startswith("file:"):
        raise StorageError(f"storage {name} is an URI within an URL: use sqlite:///studies.db")
    path = Path(url.database)
    try:
        path.stat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise StorageError(f"cannot use storage {name}: there is no folder {path.parent.absolute()}") from None
    except OSError as error:  # a name that is too long, or below a file
        raise StorageError(f"cannot use storage {name}: {error.strerror}: name another file") from error
    else:
        if not path.is_file():
            raise StorageError(f"cannot use storage {name}: {path.absolute()} is no file")
    for suffix in ("-wal", "-shm", "-journal", ".lock"):
        beside = Path(f"{url.database}{suffix}")
        if os.path.lexists(beside) and (beside.is_symlink() or not beside.is_file()):
            raise StorageError(f"cannot use storage {name}: {beside.absolute()} beside it is no file: remove it")


def check_writable(url: URL) -> None:
    """Check that SQLite can write to a file and beside it.

    Raises:
        StorageError: it cannot.
    """
    reason = unwritable(Path(str(url.database)))
    if reason:
        raise StorageError(
            f"cannot write to storage {name_of(str(url))}: {reason}: name another one with --storage URL, or "
            "a copy of this one; what is in it can be read where it is"
        )


def check_room_for_study(url: URL) -> None:
    """Check that the disk of a file that may not be there yet takes a study.

    Raises:
        StorageError: it does not.
    """
    folder = Path(str(url.database)).absolute().parent
    free = shutil.disk_usage(folder).free
    if free < _LEAST_BYTES:
        raise StorageError(
            f"no room for storage {name_of(str(url))}: {free / 1e6:.2f} MB are free in {folder}, and "
            f"{_LEAST_BYTES / 1e6:g} MB are needed: make room, and the same command continues"
        )


def unwritable(path: Path) -> str:
    """Why SQLite cannot write to a file: itself, or its folder, which takes the log; empty where it can."""
    if path.exists() and not os.access(path, os.W_OK):
        return f"{path} cannot be written to"
    return "" if os.access(path.parent, os.W_OK) else f"folder {path.parent} cannot be written to"


def read_only_url(path: Path) -> str:
    """The URL by which SQLite reads a file and writes nothing beside it.

    Only where there is no log of changes that are not in the file yet, SQLite is told that nobody changes it: it would
    leave them out.
    """
    log = Path(f"{path}-wal")
    unchanging = {} if log.exists() and log.stat().st_size else {"immutable": "1"}
    query = {"mode": "ro", **unchanging, "uri": "true"}
    return URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query=query).render_as_string()
