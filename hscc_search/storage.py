"""Open the databases of studies: any that Optuna's RDB storage supports, or Optuna's proxy in front of one."""

import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from filelock import FileLock
from grpc import RpcError
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage, run_grpc_proxy_server
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from tenacity import RetryCallState, retry, retry_if_exception, stop_after_delay, wait_random_exponential

from hscc_search.errors import StorageError, one_line, quoted
from hscc_search.sqlite_files import check_file, check_room_for_study, check_writable, read_only_url, unwritable
from hscc_search.storage_faults import explained, may_pass

# Seconds to wait for another writer's lock (SQLite), and for a server to answer (PostgreSQL, proxy).
BUSY_SECONDS = 60
CONNECT_SECONDS = 10
# Seconds after which a call gives up waiting for a database; one that restarts is back earlier.
PATIENCE_SECONDS = 180

# PostgreSQL's advisory locks are numbers that all programs on a database share. These begin with "hscc" in ASCII and
# end with the number of a lock, where 0 stands for opening the database.
_FIRST_LOCK, _OPENING_LOCK = 0x68736363_00000000, 0

P = ParamSpec("P")
R = TypeVar("R")


def open_storage(url: str) -> BaseStorage:
    """Open a database of studies, and make its tables where there are none yet.

    SQLite is put into write-ahead mode, so that readers (a dashboard, ``front``) and a writer do not wait for each
    other, and gets a busy timeout, so that writers wait for each other.

    Args:
        url: SQLAlchemy URL, such as ``sqlite:///studies.db`` or ``postgresql://user@host/database``, or
            ``grpc://host:port`` of a proxy in front of one.

    Raises:
        StorageError: the URL is malformed, the database cannot be reached, or its tables are not Optuna's.
    """
    with _explained(url) as (parsed, options):
        if parsed.get_backend_name() == "grpc":
            return _proxy(parsed)
        if parsed.get_backend_name() == "sqlite":
            check_writable(parsed)
            _write_ahead(str(parsed.database))
        engine = create_engine(url, **options)
        try:
            with _locked(engine, _OPENING_LOCK):  # so that no other process makes the same tables now
                return RDBStorage(url, engine_kwargs=options)
        finally:
            engine.dispose()


def _is_locked(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


# SQLite refuses to change the mode beside another process at once, whatever the busy timeout.
@retry(
    retry=retry_if_exception(_is_locked),
    wait=wait_random_exponential(multiplier=0.05, max=1),
    stop=stop_after_delay(BUSY_SECONDS),
    reraise=True,
)
def _write_ahead(database: str) -> None:
    """Put an SQLite database into write-ahead mode."""
    connection = sqlite3.connect(database, timeout=BUSY_SECONDS)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def find_storage(url: str) -> BaseStorage | None:
    """Open a database of studies if there is one; where there is none, return None and make nothing.

    Raises:
        StorageError: as :func:`open_storage`.
    """
    with _explained(url) as (parsed, options):
        if parsed.get_backend_name() == "grpc":
            return _proxy(parsed)
        if parsed.get_backend_name() == "sqlite":
            if not Path(str(parsed.database)).exists():
                return None
            check_writable(parsed)
        engine = create_engine(url, **options)
        try:
            if not inspect(engine).has_table("studies"):
                return None
        finally:
            engine.dispose()
    return open_storage(url)


def existing_storage(url: str) -> BaseStorage:
    """Open a database of studies to read from it.

    Raises:
        StorageError: as :func:`open_storage`, and where there are no studies yet.
    """
    storage = find_storage(url)
    if storage is None:
        raise StorageError(
            f"no studies in {without_password(url)}: run one there first, or name another database with --storage URL"
        )
    return storage


def storage_to_read(url: str) -> BaseStorage:
    """Open a database of studies to read alone; an SQLite file that cannot be written to, such as an archive, too.

    Raises:
        StorageError: as :func:`existing_storage`.
    """
    with _explained(url) as (parsed, options):
        path = Path(str(parsed.database))
        if parsed.get_backend_name() == "sqlite" and path.exists() and unwritable(path):
            return _reading_alone(url, read_only_url(path), options)
    return existing_storage(url)


def check_storage(url: str) -> None:
    """Check that an SQLite file can be made or grow, before the work whose results it takes; nothing is made."""
    with _explained(url) as (parsed, _):
        if parsed.get_backend_name() == "sqlite":
            check_writable(parsed)
            check_room_for_study(parsed)


def _reading_alone(url: str, reading: str, options: dict[str, Any]) -> BaseStorage:
    engine = create_engine(reading, **options)
    try:
        if not inspect(engine).has_table("studies"):
            raise StorageError(f"no studies in {without_password(url)}: name another database with --storage URL")
    finally:
        engine.dispose()
    return RDBStorage(reading, engine_kwargs=options, skip_table_creation=True)


def without_password(url: str) -> str:
    """Hide the password in a database URL, for messages."""
    return make_url(url).render_as_string(hide_password=True)


def lockable(storage: BaseStorage) -> bool:
    """Tell whether :func:`locked` can hold a lock of a storage."""
    return isinstance(storage, RDBStorage) and storage.engine.url.get_backend_name() in ("sqlite", "postgresql")


def locked(storage: BaseStorage, number: int) -> AbstractContextManager[None]:
    """Hold a lock that only one process at a time can have; it is released when the process ends, even if killed.

    A server that stops releases the lock too, and its holder is not told.

    Args:
        storage: on SQLite or PostgreSQL.
        number: of the lock, 1 or more; SQLite has a single lock for all numbers.
    """
    assert isinstance(storage, RDBStorage)
    return _locked(storage.engine, number)


@contextmanager
def _locked(engine: Engine, number: int) -> Iterator[None]:
    if engine.url.get_backend_name() == "sqlite":
        with FileLock(f"{engine.url.database}.lock"):
            yield
    elif engine.url.get_backend_name() == "postgresql":
        connection = engine.connect()
        try:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _FIRST_LOCK + number})
            yield
        finally:
            with suppress(DBAPIError):  # a server that stopped has released the lock
                connection.close()
    else:
        yield


def patiently(call: Callable[P, R], attempt_failed: Callable[[RetryCallState], None] | None = None) -> Callable[P, R]:
    """Make a function that repeats a call while the storage cannot be reached, and that may pass.

    Args:
        call: uses a storage.
        attempt_failed: called before each wait.

    Returns:
        The function; it raises the last error after :data:`PATIENCE_SECONDS`.
    """
    patient_call: Callable[P, R] = retry(
        retry=retry_if_exception(may_pass),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        stop=stop_after_delay(PATIENCE_SECONDS),
        before_sleep=attempt_failed,
        reraise=True,
    )(call)
    return patient_call


def serve_proxy(url: str, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve a database to workers that use ``grpc://host:port``, until interrupted.

    Args:
        url: of the database.
        host: address to listen at.
        port: number of the port to listen at.
        started: called with the proxy's URL just before it answers.

    Raises:
        StorageError: the database cannot be used, or the port is taken.
    """
    storage = open_storage(url)
    if not isinstance(storage, RDBStorage):
        raise StorageError(f"{without_password(url)} is a proxy already: name the database behind it")
    named = in_address(host)
    started(f"grpc://{named}:{port}")
    try:
        run_grpc_proxy_server(storage, host=named, port=port)
    except RuntimeError as error:
        raise StorageError(f"cannot listen at {host}:{port} ({one_line(error)}): choose another with --port") from error


def in_address(host: str) -> str:
    """A host as it stands before a port: of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def _proxy(url: URL) -> GrpcStorageProxy:
    """Connect to Optuna's proxy in front of a database."""
    if not url.host or not url.port:
        raise StorageError(f"storage {url} names no proxy: use grpc://HOST:PORT")
    try:
        socket.getaddrinfo(url.host, url.port)
    except OSError as error:
        raise StorageError(
            f"no proxy at {url.host}:{url.port} ({error.strerror}): name the host on which `hscc-search proxy` runs"
        ) from error
    proxy = GrpcStorageProxy(host=in_address(url.host), port=url.port)
    try:
        proxy.wait_server_ready(timeout=CONNECT_SECONDS)
    except (ConnectionError, TimeoutError, RpcError) as error:
        raise StorageError(
            f"no proxy answers at {url.host}:{url.port}: start one there with `hscc-search proxy`"
        ) from error
    return proxy


@contextmanager
def _explained(url: str) -> Iterator[tuple[URL, dict[str, Any]]]:
    """Check a URL, yield it parsed with its engine's options, and turn the block's errors into StorageError."""
    try:
        url.encode()
        parsed = make_url(url)
    except UnicodeEncodeError as error:  # Python holds a byte that is no UTF-8 as half a sign
        raise StorageError(f"storage {url} is no UTF-8, as each database URL must be: name another file") from error
    except (ArgumentError, ValueError) as error:
        raise StorageError(
            f"storage {quoted(url)} is not a database URL: use for instance sqlite:///studies.db"
        ) from error
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": BUSY_SECONDS}
    elif parsed.get_backend_name() == "postgresql":
        options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    try:
        if parsed.get_backend_name() == "sqlite":
            check_file(parsed)
        if parsed.get_backend_name() != "grpc":
            create_engine(url, **options).dispose()  # does not connect, but checks the URL's options
        yield parsed, options
    except (NoSuchModuleError, ImportError) as error:
        raise StorageError(f"no driver for storage {without_password(url)}: {one_line(error)}") from error
    # Tables of another Optuna version raise RuntimeError, options of the wrong type ValueError or TypeError, tables
    # without their rows AssertionError, and a lock file beside the database or a path that no file can have OSError.
    except (
        DBAPIError,
        StorageInternalError,
        sqlite3.Error,
        RuntimeError,
        ValueError,
        TypeError,
        AssertionError,
        OSError,
    ) as error:
        raise explained(without_password(url), error) from error
