"""Where studies are kept: any database that SQLAlchemy and Optuna's RDB storage speak to."""

import sqlite3
import warnings
from pathlib import Path

from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from hscc_search.errors import StorageError

# Seconds that a writer waits for another one's lock (SQLite) or for the server to answer (PostgreSQL).
BUSY_SECONDS = 60
CONNECT_SECONDS = 10
# A worker says that it is alive every so often; a trial that was silent for the grace period is given up.
HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 60


def open_storage(url: str, create: bool) -> RDBStorage:
    """Open a database of studies.

    SQLite is put into write-ahead mode, so that readers (a dashboard, ``front``) and a writer do not wait for each
    other, and with a busy timeout, so that writers wait in turn.

    Args:
        url: SQLAlchemy URL, such as ``sqlite:///studies.db`` or ``postgresql://user@host/database``.
        create: whether a missing SQLite file is made; a command that only reads leaves nothing behind.

    Raises:
        StorageError: the URL is malformed, the database cannot be reached, or it holds something else.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StorageError(f"storage {url!r} is no database URL: use for instance sqlite:///{url}") from error
    shown = parsed.render_as_string(hide_password=True)
    options: dict[str, object] = {"pool_pre_ping": True}
    if parsed.get_backend_name() == "sqlite":
        _prepare_sqlite(parsed, create)
        options["connect_args"] = {"timeout": BUSY_SECONDS}
    elif parsed.get_backend_name() == "postgresql":
        options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RDBStorage(
                url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
            )
    except (NoSuchModuleError, ImportError) as error:
        raise StorageError(f"no driver for storage {shown}: {_one_line(error)}") from error
    except DBAPIError as error:
        raise StorageError(f"cannot reach storage {shown}: {_one_line(error.orig or error)}") from error
    except RuntimeError as error:  # the tables are of another version of Optuna
        raise StorageError(f"cannot use storage {shown}: {_one_line(error)}") from error


def _prepare_sqlite(url: URL, create: bool) -> None:
    if not url.database or url.database == ":memory:":
        raise StorageError("storage sqlite:// without a file forgets everything: use sqlite:///studies.db")
    path = Path(url.database)
    if not path.exists() and not create:
        raise StorageError(f"no database at {path}: run a study there first, or name another with --storage URL")
    if not path.parent.is_dir():
        raise StorageError(f"cannot reach storage {path}: there is no folder {path.parent.absolute()}")
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise StorageError(f"cannot use storage {path}: {error}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
