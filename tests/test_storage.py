import multiprocessing
import os
import shutil
import sqlite3
import subprocess

import optuna
import pytest

from hscc_search.config import StudyConfig
from hscc_search.errors import StorageError
from hscc_search.storage import existing_storage, open_storage, storage_to_read
from hscc_search.study.catalogue import list_studies
from hscc_search.study.stored_study import read_study
from hscc_search.study.study import run_study


def message_of(url, create=True):
    with pytest.raises(StorageError) as caught:
        open_storage(url) if create else existing_storage(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sqlite_is_put_into_write_ahead_mode(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/studies.db")
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000


def test_a_reader_does_not_wait_for_a_writer(tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    optuna.create_study(study_name="one", storage=open_storage(url))
    writer = sqlite3.connect(tmp_path / "studies.db")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE studies SET study_name = 'two'")
    assert optuna.get_all_study_names(existing_storage(url)) == ["one"]
    writer.rollback()
    writer.close()


def test_reading_does_not_create_a_missing_file(tmp_path):
    assert f"{tmp_path}/missing.db" in message_of(f"sqlite:///{tmp_path}/missing.db", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("in_use", [False, True])
def test_a_database_on_a_read_only_disk_is_read(tmp_path, small_disk, in_use):
    storage, folder = open_storage(f"sqlite:///{tmp_path}/a%23b.db"), small_disk(8000)
    optuna.create_study(study_name="one", storage=storage)
    if not in_use:
        storage.engine.dispose()
    for path in tmp_path.glob("a#b.db*"):
        shutil.copy(path, folder)
    assert (folder / "a#b.db-wal").exists() == in_use, "what is in the log alone must be read, too"
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    url = f"sqlite:///{folder}/a%23b.db"
    assert optuna.get_all_study_names(storage_to_read(url)) == ["one"]
    for use in (open_storage, existing_storage):
        with pytest.raises(StorageError, match=r"cannot write to storage .*--storage URL"):
            use(url)


def test_a_read_only_database_of_something_else_holds_no_studies(small_disk):
    folder = small_disk(400)
    with sqlite3.connect(folder / "other.db") as connection:
        connection.execute("CREATE TABLE letters (text)")
    connection.close()
    (folder / "empty.db").touch()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for name in ("other", "empty"):
        with pytest.raises(StorageError, match="no studies in"):
            storage_to_read(f"sqlite:///{folder}/{name}.db")


@pytest.mark.parametrize("suffix", ["-wal", ".lock"])
@pytest.mark.parametrize("make", [os.mkdir, lambda path: path.symlink_to("nowhere")])
@pytest.mark.parametrize("create", [True, False])
def test_what_stands_in_the_place_of_a_log_or_a_lock_is_named(tmp_path, suffix, make, create):
    url = f"sqlite:///{tmp_path}/studies.db"
    open_storage(url).engine.dispose()
    (tmp_path / "studies.db.lock").unlink()
    make(tmp_path / f"studies.db{suffix}")
    assert f"studies.db{suffix} beside it is no file: remove it" in message_of(url, create)


def test_reading_leaves_a_database_of_something_else_as_it_is(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE letters (text)")
    before = (tmp_path / "other.db").read_bytes()
    assert "other.db" in message_of(f"sqlite:///{tmp_path}/other.db", create=False)
    assert (tmp_path / "other.db").read_bytes() == before


@pytest.mark.parametrize("create", [True, False])
def test_a_missing_folder_is_named_and_not_made(tmp_path, create):
    assert f"{tmp_path}/missing" in message_of(f"sqlite:///{tmp_path}/missing/studies.db", create)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path, create):
    path = tmp_path / "studies.db"
    path.write_text("letters, not a database, and enough of them to fill the header of one " * 20)
    before = path.read_bytes()
    assert "not a database" in message_of(f"sqlite:///{path}", create)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", ["x" * 300, "x" * 300 + "/studies.db", "/".join(["x" * 200] * 30), "a\0b"])
@pytest.mark.parametrize("create", [True, False])
def test_a_path_that_no_file_can_have_is_refused(path, create, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"sqlite:///{path[:9]}".partition("\0")[0] in message_of(f"sqlite:///{path}", create)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [True, False])
def test_a_device_or_a_pipe_is_no_database(tmp_path, create):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe"):
        assert f"{path} is no file" in message_of(f"sqlite:///{path}", create)


@pytest.mark.parametrize("create", [True, False])
def test_a_database_in_memory_is_refused_however_it_is_written(tmp_path, monkeypatch, create):
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"):
        assert "use sqlite:///studies.db" in message_of(url, create)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_database(tmp_path):
    assert str(tmp_path) in message_of(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "studies.db",
        "://",
        ":x:",
        "sqlite://",
        "sqlite:///:memory:",
        "nosuchdatabase:///studies",
        "postgresql+nosuchdriver://localhost/x",
        "postgresql://localhost:port/x",
        "postgresql://localhost/x?nosuchoption=1",
        "postgresql://localhost:1/x",
        "postgresql://localhost:99999/x",
        "sqlite:///\udcff.db",
        "grpc://\udcff:1",
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_in_one_line(url):
    assert "storage" in message_of(url)


def test_an_sqlite_option_of_the_wrong_type_is_refused_before_a_file_is_made(tmp_path):
    assert "timeout" in message_of(f"sqlite:///{tmp_path}/studies.db?timeout=long")
    assert list(tmp_path.iterdir()) == []


def test_an_error_does_not_show_the_password():
    assert "secret" not in message_of("postgresql://someone:secret@localhost:1/x")


def test_a_study_goes_through_postgresql(database, tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))
    config = StudyConfig.from_file(
        "digits",
        storage=database,
        trials=3,
        training__epochs=1,
        compression__calibration_images=64,
        refine__trials="none",
    )
    finished = run_study(config, "cpu")
    assert [point.trial for point in finished.points] == [0, 1, 2]
    assert finished.failures == {}

    again = read_study(database, "digits")
    assert (again.points, again.config) == (finished.points, finished.config)
    assert again.record.classes == finished.record.classes
    assert (again.record.labels == finished.record.labels).all()
    assert again.config.differences(config) == []
    (status,) = list_studies(database)
    assert (status.name, status.finished, status.wanted, status.running) == ("digits", 3, 3, 0)

    longer = run_study(config.model_copy(update={"trials": 4}), "cpu")
    assert longer.points[:3] == finished.points
    assert len(longer.points) == 4
    with pytest.raises(StorageError, match="it holds digits"):
        read_study(database, "absent")


def test_a_database_that_is_not_on_the_server_is_named(postgresql):
    assert "absent" in message_of(postgresql.get_uri(database="absent"))


def open_when_all_have_started(url, start, failures):
    start.wait()
    try:
        open_storage(url)
    except Exception as error:
        failures.put(repr(error))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_several_processes_may_make_a_database_at_once(kind, request, tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db" if kind == "sqlite" else request.getfixturevalue("database")
    context = multiprocessing.get_context("fork")
    start, failures = context.Barrier(4), context.Queue()
    processes = [context.Process(target=open_when_all_have_started, args=(url, start, failures)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failures.empty(), failures.get()
    assert optuna.get_all_study_names(existing_storage(url)) == []
