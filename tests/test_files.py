import os
import stat
import time
from pathlib import Path

import pytest

from hscc_search.errors import ConfigError
from hscc_search.files import folder_written_whole, mark_used, remove_abandoned, remove_unused, written_whole

HOUR = 3600


def aged(folder, name, hours):
    path = folder / name
    path.mkdir()
    (path / "content").write_text("of some kind")
    for entry in (path / "content", path):
        os.utime(entry, (time.time() - hours * HOUR,) * 2)
    return path


def test_what_nobody_used_for_a_while_is_removed(tmp_path):
    old, new, read = (aged(tmp_path, name, hours) for name, hours in (("old", 50), ("new", 40), ("read", 50)))
    mark_used(read)
    remove_unused(tmp_path, 48 * HOUR)
    assert sorted(tmp_path.iterdir()) == [new, read]
    assert not old.exists()
    assert (read / "content").read_text() == "of some kind"


def test_what_a_killed_process_left_is_removed_and_the_rest_is_not(tmp_path):
    aged(tmp_path, ".left", 30)
    others = [aged(tmp_path, ".in-work", 1), aged(tmp_path, "finished", 30)]
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == others


def test_marking_what_is_gone_is_no_error(tmp_path):
    mark_used(tmp_path / "gone")


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_appears_whole_and_readable_for_all(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    with written_whole(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "after"
    assert mode_of(path) == 0o644


def test_through_a_link_the_file_that_it_names_is_replaced(tmp_path):
    path, link = tmp_path / "page.html", tmp_path / "link.html"
    path.write_text("before")
    link.symlink_to(path)
    with written_whole(link) as temporary:
        temporary.write_text("after")
    assert link.is_symlink()
    assert path.read_text() == "after"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.mknod(path, stat.S_IFSOCK)])
def test_only_a_regular_file_is_ever_replaced(tmp_path, make):
    path = tmp_path / "page.html"
    make(path)
    before = path.stat()
    with pytest.raises(ConfigError, match="not a regular file"), written_whole(path):
        raise AssertionError("it must be refused before anything is written")
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IFMT(path.stat().st_mode) == stat.S_IFMT(before.st_mode)


@pytest.mark.parametrize("write", [written_whole, folder_written_whole])
def test_a_place_that_cannot_be_written_to_is_named(write):
    with pytest.raises(ConfigError, match=r"cannot write to /proc/made-up"), write(Path("/proc/made-up")):
        raise AssertionError("it must be refused before anything is written")


def test_a_folder_appears_whole_and_readable_for_all(tmp_path):
    path = tmp_path / "model"
    with folder_written_whole(path) as temporary:
        (temporary / "weights").touch(mode=0o600)
        assert not path.exists()
    assert list(tmp_path.iterdir()) == [path]
    assert (mode_of(path), mode_of(path / "weights")) == (0o755, 0o644)


def test_a_failure_while_writing_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(ValueError, match="once"), written_whole(path) as temporary:
        temporary.write_text("half")
        raise ValueError("once")
    with pytest.raises(ValueError, match="once"), folder_written_whole(tmp_path / "model") as folder:
        (folder / "weights").touch()
        raise ValueError("once")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "before"
