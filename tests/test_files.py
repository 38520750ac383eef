import contextlib
import os
import stat
from pathlib import Path

import pytest

from hscc_search.errors import DiskFullError, UnwritableError
from hscc_search.files import (
    IrregularFileError,
    check_new_folder,
    check_room,
    checked_output,
    folder_written_whole,
    megabytes_of,
    opened,
    read_whole,
    reserve,
    written_whole,
)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def open_files():
    return len([*Path("/proc/self/fd").iterdir()])


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
    with pytest.raises(UnwritableError, match="not a regular file"), written_whole(path):
        raise AssertionError("it must be refused before anything is written")
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IFMT(path.stat().st_mode) == stat.S_IFMT(before.st_mode)


@pytest.mark.parametrize("write", [written_whole, folder_written_whole])
def test_a_place_that_cannot_be_written_to_is_named(write):
    with pytest.raises(UnwritableError, match=r"cannot write to /proc/made-up"), write(Path("/proc/made-up")):
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("p" * 300, "File name too long"),
        ("/".join(["folder"] * 900), "File name too long"),
        ("absent/page.html", "there is no folder"),
        ("file/page.html", "there is no folder"),
        (".", "not a regular file"),
        ("/proc/page.html", "cannot write to /proc/page.html"),
        ("/dev/null", "not a regular file"),
        ("circle", "levels of symbolic links"),
        ("circle/page.html", "there is no folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_in_one_line(tmp_path, name, said):
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to("circle")
    with pytest.raises(UnwritableError, match=said):
        checked_output(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "circle", "file"]


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
@pytest.mark.parametrize("gone", [False, True])
def test_an_open_file_is_not_replaced(tmp_path, name, gone):
    path = tmp_path / "redirected"
    with path.open("wb") as file:
        (tmp_path / "link").symlink_to(f"/dev/fd/{file.fileno()}")
        if gone:
            path.unlink()
        before = sorted(tmp_path.iterdir())
        with (
            pytest.raises(UnwritableError, match="is an open file"),
            written_whole(tmp_path / name.format(file.fileno())),
        ):
            raise AssertionError("it must be refused before anything is written")
    assert sorted(tmp_path.iterdir()) == before


def test_links_are_followed_to_a_file_that_is_not_there_yet(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "folder").symlink_to("inner")
    (tmp_path / "link").symlink_to("folder/../inner/./page")
    assert checked_output(tmp_path / "link") == tmp_path / "inner" / "page"
    assert checked_output(tmp_path / "folder" / ".." / "page") == tmp_path / "page"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m" * 300, "File name too long"),
        ("new/" + "m" * 300, "File name too long"),
        ("file/new", "is a file"),
        ("file", "is a file"),
        ("link/new", "is a file"),
        ("/proc/made/up", "cannot write to /proc/made/up"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path, name, said):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnwritableError, match=said):
        check_new_folder(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_places_that_can_be_written_to_are_left_as_they_are(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "page.html")
    assert checked_output(tmp_path / "link") == tmp_path / "page.html"
    check_new_folder(tmp_path / "new" / "deeper")
    check_new_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_read_only_disk_is_refused(small_disk):
    folder = small_disk(100, "ro")
    for check, path in ((checked_output, folder / "page.html"), (check_new_folder, folder / "new" / "deeper")):
        with pytest.raises(UnwritableError, match="Read-only"):
            check(path)


def test_room_is_taken_before_a_file_is_mapped(small_disk):
    folder = small_disk(400)
    with (folder / "fits").open("wb") as file:
        file.write(b"head")
        reserve(file, 100_000, "an array")
    assert (folder / "fits").stat().st_size == 100_004
    with (folder / "large").open("wb") as file, pytest.raises(DiskFullError, match=r"an array: 1\.0 MB do not fit"):
        reserve(file, 1_000_000, "an array")
    (folder / "large").unlink()
    check_room(folder, 100_000, "an array")
    with pytest.raises(DiskFullError, match=r"an array: 1\.0 MB are needed, and 0\.3 MB are free in"):
        check_room(folder, 1_000_000, "an array")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: None])
def test_only_a_regular_file_is_read(tmp_path, make):
    make(tmp_path / "file")
    descriptors = open_files()
    there = os.path.lexists(tmp_path / "file")
    with pytest.raises(IrregularFileError if there else FileNotFoundError, match="file"):
        read_whole(tmp_path / "file", 100)
    assert open_files() == descriptors


def test_a_file_is_read_up_to_its_bound(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_text("ä" * 50)
    link.symlink_to(path)
    assert read_whole(path, 100) == read_whole(link, 1000) == "ä" * 50
    with pytest.raises(ValueError, match="has more than 99 bytes"):
        read_whole(path, 99)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_whole(path, 99)


def test_a_file_that_has_more_than_its_size_says_is_not_cut():
    """Such are those of the system, and any file that grows meanwhile."""
    status = Path("/proc/self/status")
    assert status.stat().st_size == 0
    assert read_whole(status, 1 << 20).startswith("Name:")
    with pytest.raises(ValueError, match="has more than 10 bytes"):
        read_whole(status, 10)
    with opened(status) as (file, size):
        assert (size, file.read(5)) == (0, b"Name:")


def test_what_would_have_to_be_waited_for_is_empty():
    if not os.access("/proc/kmsg", os.R_OK):
        pytest.skip("/proc/kmsg is not there for this user")
    with contextlib.suppress(OSError):
        assert isinstance(read_whole(Path("/proc/kmsg"), 1 << 24), str)


def test_a_file_is_closed_whatever_happens_to_who_reads_it(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    descriptors = open_files()
    with pytest.raises(RuntimeError), opened(tmp_path / "file"):
        raise RuntimeError
    assert open_files() == descriptors
    assert megabytes_of(tmp_path / "file") == 4e-6
