import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from hscc_search.errors import DiskFullError, UnwritableError
from hscc_search.files import folder_written_whole, written_whole
from hscc_search.temporary import TemporaryFolder, lock_file, remove_abandoned, temporary_beside, temporary_folder

FORK = multiprocessing.get_context("fork")
DAY = 86400


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def write_again_and_again(folder):
    shutil.rmtree(folder / "model", ignore_errors=True)
    while True:
        with folder_written_whole(folder / "model") as temporary:
            for number in range(20):
                (temporary / f"{number}").write_bytes(bytes(10_000))
                time.sleep(0.001)
        shutil.rmtree(folder / "model")
        with written_whole(folder / "page") as temporary:
            temporary.write_bytes(bytes(100_000))


def killed_while_writing(folder, seconds):
    process = FORK.Process(target=write_again_and_again, args=(folder,))
    process.start()
    while not any(path.name[0] == "." for path in folder.iterdir()):
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_what_a_killed_process_left_is_removed_by_the_next_at_the_same_place(tmp_path):
    chance, left = random.Random(0), 0
    for _ in range(15):
        killed_while_writing(tmp_path, chance.uniform(0, 0.03))
        if (tmp_path / "page").exists():
            assert (tmp_path / "page").stat().st_size == 100_000
        left += any(name[0] == "." for name in listed(tmp_path))
        for lock in tmp_path.glob(".*.hscc-lock"):
            if not lock.read_bytes():  # killed before it wrote its name: whoever comes a little later removes it
                os.utime(lock, (time.time() - 60,) * 2)
        for name in ("model", "page"):
            with temporary_beside(tmp_path / name):
                pass
        assert [name for name in listed(tmp_path) if name[0] == "."] == []
    assert left > 2, "the processes were never killed while they wrote"


def test_what_a_living_process_writes_stays(tmp_path):
    with folder_written_whole(tmp_path / "model") as temporary:
        (temporary / "weights").touch()
        process = FORK.Process(target=remove_abandoned, args=(tmp_path,))
        process.start()
        process.join()
        assert (temporary / "weights").exists()
        with folder_written_whole(tmp_path / "other"):
            pass
        with pytest.raises(OSError, match="not empty"), folder_written_whole(tmp_path / "model") as second:
            (second / "weights").touch()
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "of a third").touch()
        assert (temporary / "weights").exists()
        (tmp_path / "model" / "of a third").unlink()
    assert listed(tmp_path) == ["model", "other"]


@pytest.mark.parametrize(("age", "stays"), [(0, True), (2 * DAY, False)])
def test_on_another_machine_only_a_day_without_a_change_proves_that_nobody_writes(tmp_path, age, stays):
    (tmp_path / ".model.abc").mkdir()
    (tmp_path / ".model.abc" / "weights").touch()
    (tmp_path / ".model.abc.hscc-lock").write_text("another machine")
    for path in (tmp_path / ".model.abc" / "weights", tmp_path / ".model.abc", tmp_path / ".model.abc.hscc-lock"):
        os.utime(path, (time.time() - age,) * 2)
    remove_abandoned(tmp_path)
    assert listed(tmp_path) == ([".model.abc", ".model.abc.hscc-lock"] if stays else [])


@pytest.mark.parametrize(("age", "stays"), [(0, True), (60, False)])
def test_a_lock_file_of_a_process_that_was_killed_before_it_wrote_its_name_goes(tmp_path, age, stays):
    (tmp_path / ".model.abc.hscc-lock").touch()
    os.utime(tmp_path / ".model.abc.hscc-lock", (time.time() - age,) * 2)
    remove_abandoned(tmp_path)
    assert listed(tmp_path) == ([".model.abc.hscc-lock"] if stays else [])


def test_nothing_without_a_lock_file_is_ever_removed(tmp_path):
    (tmp_path / ".model.precious").mkdir()
    (tmp_path / ".model").touch()
    remove_abandoned(tmp_path)
    with folder_written_whole(tmp_path / "model"):
        pass
    assert listed(tmp_path) == [".model", ".model.precious", "model"]


def test_a_temporary_folder_goes_with_its_object_and_with_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = TemporaryFolder("calibration")
    path = folder.path
    assert path.is_dir()

    def die():
        mine = TemporaryFolder("calibration")
        (mine.path / "responses").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert len(listed(tmp_path)) == 4
    other = TemporaryFolder("calibration")
    assert len(listed(tmp_path)) == 4
    del folder, other
    assert listed(tmp_path) == []


def test_names_of_255_bytes_are_written(tmp_path):
    for name in ("n" * 255, "é" * 127):
        with written_whole(tmp_path / name) as temporary:
            temporary.write_text("whole")
        assert listed(tmp_path) == [name]
        (tmp_path / name).unlink()


def test_a_lock_is_held_by_one_alone_or_shared(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    first, second = lock_file(path, exclusively=False), lock_file(path, exclusively=False)
    assert None not in (first, second)
    assert lock_file(path, exclusively=True) is None
    os.close(first)
    os.close(second)
    alone = lock_file(path, exclusively=True)
    assert lock_file(path, exclusively=False) is None
    os.close(alone)


def limited(folder, megabytes):
    """Write more than a process may write into a file, which is what a full disk looks like to it."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes * 1_000_000,) * 2)
    for write in (written_whole, folder_written_whole):
        try:
            with write(folder / "page") as temporary:
                (temporary / "weights" if temporary.is_dir() else temporary).write_bytes(bytes(3_000_000))
        except DiskFullError as error:
            if str(folder / "page") in str(error) and "MB" in str(error):
                continue
        os._exit(1)
    os._exit(0)


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path):
    process = FORK.Process(target=limited, args=(tmp_path, 2))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert listed(tmp_path) == []


@pytest.mark.parametrize("kilobytes", [40, 400, 2000])
def test_a_small_disk_is_named_with_its_size(small_disk, kilobytes):
    folder = small_disk(kilobytes)
    with pytest.raises(DiskFullError, match=rf"page: it needs more than the {kilobytes * 1.024e-3:.1f} MB .* {folder}"):
        fill(folder / "page")
    assert listed(folder) == []


def test_no_room_for_temporary_files_names_their_place(small_disk, monkeypatch):
    folder = small_disk(400)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with (
        pytest.raises(DiskFullError, match=rf"no room for temporary files: 0\.4 MB are free in {folder}: .*TMPDIR"),
        temporary_folder("hscc-trial") as temporary,
    ):
        (temporary / "model.onnx").write_bytes(bytes(3_000_000))
    assert listed(folder) == []


def fill(path):
    """Write as a library does whose error says nothing of the disk."""
    with written_whole(path) as temporary:
        try:
            temporary.write_bytes(bytes(3_000_000))
        except OSError:
            raise RuntimeError("writing failed") from None


def test_an_error_of_something_else_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="once"), written_whole(tmp_path / "page"):
        raise RuntimeError("once")


def test_a_place_that_cannot_be_written_to_is_unwritable():
    with pytest.raises(UnwritableError, match="cannot write to /proc/made-up"), temporary_beside(Path("/proc/made-up")):
        raise AssertionError("it must be refused before anything is written")
