import random
import shlex
import shutil
import sqlite3
import subprocess
import time

import optuna
import pytest
from conftest import ROOT
from optuna.exceptions import StorageInternalError
from sqlalchemy import create_engine, exc, text

from hscc_search.errors import HsccError, StorageError
from hscc_search.report.live import application
from hscc_search.storage import existing_storage, open_storage, patiently
from hscc_search.storage_faults import explained, in_one_line, may_pass, undamaged
from hscc_search.study.catalogue import copy_study, list_studies
from hscc_search.study.stored_study import read_study

PAGE = 4096


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "my studies.db"
    shutil.copy(ROOT / "tests" / "before" / "studies-0.1.0.sqlite", path)
    return path


def read_front(url):
    study = read_study(url, "before")
    study.plan_of(study.points[0].trial)


def open_dashboard(url):
    answer = application(url)
    for path in ("/", "/front/before"):
        answer({"PATH_INFO": path, "REQUEST_METHOD": "GET"}, lambda *_: None)


COMMANDS = [
    read_front,
    list_studies,
    open_dashboard,
    lambda url: copy_study(url, "before", "copy"),
]


def outcome(command, database):
    """The message of the error of a command, None where it had none."""
    before = database.read_bytes()
    try:
        command(f"sqlite:///{database}")
    except HsccError as error:
        assert "\n" not in str(error)
        return str(error)
    finally:
        for path in database.parent.iterdir():
            path.unlink()
        database.write_bytes(before)
    return None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda values: b"overwritten" * 10 + values[110:], "file is not a database"),
        (lambda values: values[: len(values) // 2], "database disk image is malformed"),
        (lambda values: values[: 5 * PAGE] + bytes(len(values) - 5 * PAGE), "malformed"),
    ],
    ids=["header", "truncated", "pages"],
)
@pytest.mark.parametrize("command", COMMANDS, ids=["front", "studies", "dashboard", "copy"])
def test_a_damaged_database_is_named_with_a_way_to_save_what_is_left(database, damage, words, command):
    database.write_bytes(damage(database.read_bytes()))
    message = outcome(command, database)
    assert words in message
    assert f"`sqlite3 '{database}' .recover | sqlite3 '{database.parent}/my studies-saved.db'`" in message


def test_damage_anywhere_in_a_database_is_survived_or_refused_in_one_line(database):
    whole, chance = database.read_bytes(), random.Random(0)
    refused = 0
    for number in range(16):
        damaged = bytearray(whole)
        start = chance.randrange(len(whole))
        for position in range(start, min(len(whole), start + (1, 50, PAGE)[number % 3])):
            damaged[position] = chance.randrange(256)
        database.write_bytes(damaged)
        refused += outcome(COMMANDS[number % 4], database) is not None
    assert refused > 3


def test_the_way_to_save_what_is_left_can_be_pasted(database):
    values = database.read_bytes()
    database.write_bytes(values[: 10 * PAGE] + bytes(PAGE) + values[11 * PAGE :])  # the first page of the trials
    message = outcome(list_studies, database)
    command, saved = message.split("`")[1], database.with_name("my studies-saved.db")
    assert shlex.split(command) == ["sqlite3", str(database), ".recover", "|", "sqlite3", str(saved)]
    assert message.endswith(f"--storage 'sqlite:///{saved}'")
    if subprocess.run(["sqlite3", ":memory:", "SELECT 1 FROM sqlite_dbpage"], capture_output=True).returncode:
        pytest.skip("SQLite's command-line tool is not here, or cannot recover")
    subprocess.run(command, shell=True, check=True)
    assert [status.name for status in list_studies(f"sqlite:///{saved}")] == ["before"]


def test_a_full_disk_is_named_and_not_waited_for(small_disk):
    disk = small_disk(400)
    storage = open_storage(f"sqlite:///{disk}/studies.db")
    study = optuna.create_study(storage=storage, study_name="large")
    began = time.monotonic()
    words = rf"no room for storage .*{disk}/studies.db \(database or disk is full\)"
    with pytest.raises(StorageError, match=words), in_one_line(storage):
        for number in range(1000):
            patiently(study.set_user_attr)("values", "x" * 1000 * number)
    assert time.monotonic() - began < 20
    small_disk(40_000, "remount")
    study.set_user_attr("values", "x" * 100_000)
    assert list_studies(f"sqlite:///{disk}/studies.db")


def test_a_full_disk_before_the_tables_are_made_is_named(small_disk):
    disk = small_disk(40)
    with pytest.raises(StorageError, match=r"no room for storage|full"):
        open_storage(f"sqlite:///{disk}/studies.db")
    small_disk(40_000, "remount")
    assert open_storage(f"sqlite:///{disk}/studies.db")


def test_a_database_on_a_read_only_disk_is_listed_and_takes_no_study(small_disk):
    disk = small_disk(2000)
    open_storage(f"sqlite:///{disk}/studies.db").engine.dispose()
    small_disk(2000, "remount,ro")
    assert list_studies(f"sqlite:///{disk}/studies.db") == []
    with pytest.raises(StorageError, match=rf"cannot write to storage sqlite:///{disk}/studies.db: "):
        open_storage(f"sqlite:///{disk}/studies.db")


@pytest.mark.parametrize("name", ["s" * 300 + ".db", "file/studies.db"])
def test_a_file_that_cannot_be_made_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot use storage"):
        existing_storage(f"sqlite:///{tmp_path / name}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("url", ["postgresql://nowhere.invalid/studies", "grpc://nowhere.invalid:13000"])
def test_a_host_that_does_not_exist_is_named_within_seconds(url):
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"nowhere\.invalid"):
        existing_storage(url)
    assert time.monotonic() - began < 8


def error_of(engine, statement):
    with pytest.raises(exc.DBAPIError) as caught, engine.connect() as connection:
        connection.execute(text(statement))
    return caught.value


def test_errors_of_postgresql_that_stay_are_not_waited_for(postgresql):
    url = postgresql.get_uri(database="postgres")
    engine = create_engine(url)
    for statement in ("SELECT * FROM absent", "SELEKT 1", "SELECT 'abc'::varchar(2)::int", "SELECT 1/0"):
        error = error_of(engine, statement)
        assert not may_pass(error), statement
        assert "\n" not in str(explained(url, error))
    absent = create_engine(postgresql.get_uri(database="absent"))
    assert not may_pass(error_of(absent, "SELECT 1"))
    assert may_pass(error_of(create_engine("postgresql+psycopg://localhost:1/x"), "SELECT 1"))
    assert may_pass(error_of(engine, "SELECT pg_terminate_backend(pg_backend_pid())"))
    engine.dispose()


def test_a_value_that_is_too_long_for_its_column_ends_in_one_line(postgresql):
    storage = open_storage(postgresql.get_uri(database="postgres"))
    began = time.monotonic()
    with pytest.raises(StorageError, match="value too long"), in_one_line(storage):
        patiently(optuna.create_study)(storage=storage, study_name="n" * 600)
    assert time.monotonic() - began < 8
    storage.engine.dispose()


class MySQLError(Exception):
    """As drivers of MySQL raise it: a number and a text."""


@pytest.mark.parametrize(
    ("kind", "number", "passes"),
    [
        (exc.DataError, 1406, False),  # data too long for a column
        (exc.OperationalError, 1045, False),  # access denied
        (exc.OperationalError, 1049, False),  # no such database
        (exc.OperationalError, 1153, False),  # a packet that is too large
        (exc.OperationalError, 2003, True),  # nobody answers
        (exc.OperationalError, 2013, True),  # the connection was lost
        (exc.OperationalError, 1213, True),  # a deadlock
    ],
)
def test_errors_of_mysql_are_told_apart_by_their_numbers(kind, number, passes):
    error = StorageInternalError("something during the commit")
    error.__cause__ = kind("INSERT", {}, MySQLError(number, "in words"))
    assert may_pass(error) is passes
    assert "in words" in str(explained("mysql://host/db", error))


def test_an_error_of_something_else_stays_what_it_is():
    with pytest.raises(RuntimeError, match="once"), in_one_line("sqlite:///a.db"), undamaged("sqlite:///a.db"):
        raise RuntimeError("once")
    assert not may_pass(RuntimeError("once"))


def test_an_error_that_passes_says_that_the_same_command_goes_on():
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
    words = r"lost the storage sqlite:///a\.db: .* the same command continues"
    with pytest.raises(StorageError, match=words), in_one_line("sqlite:///a.db"):
        raise exc.OperationalError("SELECT", {}, busy)
