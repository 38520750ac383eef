"""Errors of the databases of studies: which of them may pass while one waits, and all of them in one line."""

import lzma
import shlex
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grpc import RpcError
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, NotSupportedError, ProgrammingError, SQLAlchemyError

from hscc_search.errors import HsccError, StorageError, one_line

# SQLite's errors that pass: locks of others, memory that is short, a file that cannot be opened just now.
_PASSING_SQLITE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_SCHEMA,
}
_DAMAGED_SQLITE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# SQLSTATEs that stay, or the two characters of their class: of data, of authorisation, of names, of a full disk and of
# damaged tables (PostgreSQL, appendix A).
_LASTING_STATES = ("22", "28", "3D", "3F", "42", "53100", "XX001", "XX002")
# MySQL's errors that stay: no access, no such database, a full table or disk, a packet or a column that is too small.
_LASTING_MYSQL = {1021, 1044, 1045, 1049, 1114, 1153, 1406, 1698}
# What PostgreSQL says when it refuses a connection; the driver passes no SQLSTATE on then.
_LASTING_WORDS = ("authentication failed", "no pg_hba.conf entry", "does not exist", "is not permitted to log in")


def comes_from_storage(error: BaseException | None) -> bool:
    """Tell whether an error is a storage error or was raised while one was handled.

    Optuna 5 raises unrelated errors when its storage becomes unreachable.
    """
    return any(isinstance(cause, (StorageInternalError, SQLAlchemyError, RpcError)) for cause in _causes(error))


def may_pass(error: BaseException) -> bool:
    """Tell whether an error comes from a storage and may be gone after a while, as when a server restarts."""
    return comes_from_storage(error) and not any(_lasts(cause) for cause in _causes(error))


def explained(storage: str, error: BaseException) -> StorageError:
    """Say in one line why a storage cannot be used, and what helps.

    Args:
        storage: URL without a password.
        error: that its use raised.
    """
    cause = _of_driver(error)
    words, code = one_line(cause), _sqlite_code(cause)
    if code == sqlite3.SQLITE_FULL or getattr(cause, "sqlstate", None) == "53100":
        return StorageError(
            f"no room for storage {storage} ({words}): make room on its disk; finished trials are kept, and the same "
            "command continues"
        )
    if code in _DAMAGED_SQLITE:
        return damaged(storage, words)
    return StorageError(f"cannot use storage {storage}: {words}")


def damaged(storage: str, words: str) -> StorageError:
    """Say in one line that a storage is damaged, and how to save what is left.

    Args:
        storage: URL without a password.
        words: what is wrong.
    """
    if not storage.startswith("sqlite"):
        return StorageError(f"storage {storage} is damaged ({words}): restore it from a backup")
    path = Path(str(make_url(storage).database))
    saved = path.with_name(f"{path.stem}-saved.db")
    command = f"sqlite3 {shlex.quote(str(path))} .recover | sqlite3 {shlex.quote(str(saved))}"
    return StorageError(
        f"storage {storage} is damaged ({words}): `{command}` saves what is left, for "
        f"--storage {shlex.quote(f'sqlite:///{saved}')}"
    )


@contextmanager
def in_one_line(storage: str | BaseStorage) -> Iterator[None]:
    """Turn an error of a storage, given by URL or open, into a StorageError."""
    try:
        yield
    except HsccError:
        raise
    except Exception as error:
        if not comes_from_storage(error):
            raise
        name = name_of(storage)
        if not may_pass(error):
            raise explained(name, error) from error
        raise StorageError(
            f"lost the storage {name}: finished trials are kept, and the same command continues"
        ) from error


@contextmanager
def undamaged(storage: str | BaseStorage) -> Iterator[None]:
    """Turn an error of reading what is stored into a StorageError that says that the storage is damaged."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, zlib.error, lzma.LZMAError) as error:
        if comes_from_storage(error):
            raise
        raise damaged(name_of(storage), one_line(error, with_type=True)) from error


def name_of(storage: str | BaseStorage) -> str:
    """The URL of a storage without its password, for messages."""
    storage = getattr(storage, "_backend", storage)  # of Optuna's cache around a database
    if isinstance(storage, RDBStorage):
        return storage.engine.url.render_as_string(hide_password=True)
    return make_url(storage).render_as_string(hide_password=True) if isinstance(storage, str) else "behind a proxy"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _lasts(error: BaseException) -> bool:
    """Tell whether one error of a storage stays, however long one waits."""
    if isinstance(error, (ArgumentError, DataError, NotSupportedError, ProgrammingError)):
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = _sqlite_code(error.orig)
    if code is not None:
        return code not in _PASSING_SQLITE
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_LASTING_STATES)
    number = error.orig.args[0] if error.orig is not None and error.orig.args else None
    return number in _LASTING_MYSQL or any(words in str(error.orig) for words in _LASTING_WORDS)


def _sqlite_code(error: BaseException | None) -> int | None:
    """The primary code of SQLite in an error; None for an error of anything else."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _of_driver(error: BaseException) -> BaseException:
    """The error of a database's driver below others, or else the first one."""
    for cause in _causes(error):
        if isinstance(cause, DBAPIError):
            return cause.orig or cause
        if isinstance(cause, sqlite3.Error):
            return cause
    return error
