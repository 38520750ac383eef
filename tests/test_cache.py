import json
import multiprocessing
import os
import random
import signal
import time

import pytest

from hscc_search.cache import (
    DamagedError,
    cache_folder,
    entries,
    entry_written,
    remove_entries,
    remove_entry,
    tidy,
    use_entry,
)
from hscc_search.errors import ConfigError, DiskFullError, UnwritableError

FORK = multiprocessing.get_context("fork")
HOUR = 3600
CONTENT = {"images.npy": bytes(range(256)) * 40, "groups.npy": b"groups", "empty": b""}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))
    return cache_folder("pixels")


def write(entry, content=CONTENT):
    with entry_written(entry) as temporary:
        for name, values in content.items():
            (temporary / name).write_bytes(values)
    return entry


def content_of(entry):
    use_entry(entry)
    return {name: (entry / name).read_bytes() for name in CONTENT}


def test_an_entry_is_used_as_it_was_written(folder):
    entry = write(folder / "a")
    assert content_of(entry) == CONTENT
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_each_flipped_bit_is_noticed(folder):
    entry = write(folder / "a")
    chance = random.Random(0)
    for path in [path for path in entry.iterdir() if path.stat().st_size]:
        whole = path.read_bytes()
        for _ in range(40):
            position = chance.randrange(len(whole))
            damaged = bytearray(whole)
            damaged[position] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            if path.name == "checksums.json" and json_of(damaged) == json.loads(whole):
                continue  # another blank says the same
            with pytest.raises(DamagedError):
                use_entry(entry)
        path.write_bytes(whole)
    assert content_of(entry) == CONTENT


def json_of(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


DAMAGES = {
    "truncated": lambda entry: os.truncate(entry / "images.npy", 100),
    "emptied": lambda entry: os.truncate(entry / "groups.npy", 0),
    "grown": lambda entry: os.truncate(entry / "empty", 3),
    "missing": lambda entry: (entry / "images.npy").unlink(),
    "one too many": lambda entry: (entry / "thumbs.db").touch(),
    "a folder in place of a file": lambda entry: ((entry / "empty").unlink(), (entry / "empty").mkdir()),
    "no checksums": lambda entry: (entry / "checksums.json").unlink(),
    "checksums of something else": lambda entry: (entry / "checksums.json").write_text("[]"),
    "nested too deeply": lambda entry: (entry / "checksums.json").write_text("[" * 5000),
    "mappings nested too deeply": lambda entry: (entry / "checksums.json").write_text('{"a":' * 5000),
    "no JSON": lambda entry: (entry / "checksums.json").write_text("{"),
    "all is gone": lambda entry: [path.unlink() for path in entry.iterdir()],
    "another entry": lambda entry: write(entry.with_name("b")).rename(move_away(entry)),
    "a file": lambda entry: move_away(entry).write_text("foreign"),
    "a link to nothing": lambda entry: move_away(entry).symlink_to("nowhere"),
}


def move_away(entry):
    entry.rename(entry.parent.parent / "away")
    return entry


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_noticed_and_replaced(folder, damage):
    entry = write(folder / "a")
    damage(entry)
    with pytest.raises(DamagedError):
        use_entry(entry)
    write(entry)
    assert content_of(entry) == CONTENT
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_an_entry_of_a_faster_process_stays(folder):
    with entry_written(folder / "a") as temporary:
        (temporary / "groups.npy").write_text("slow")
        inode = write(folder / "a").stat().st_ino
    assert (folder / "a").stat().st_ino == inode
    assert content_of(folder / "a") == CONTENT


def test_what_a_living_process_uses_is_not_removed(folder):
    write(folder / "a")
    write(folder / "b")
    ready, over = FORK.Event(), FORK.Event()

    def use():
        used = use_entry(folder / "a")
        ready.set()
        over.wait(60)
        used.end()

    process = FORK.Process(target=use)
    process.start()
    ready.wait(60)
    kept = remove_entries(entries())
    assert [entry.path.name for entry in kept] == ["a"]
    assert [path.name for path in folder.iterdir()] == ["a"]
    over.set()
    process.join()
    assert remove_entry(folder / "a")
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_used_is_removed(folder):
    write(folder / "a")

    def use_and_die():
        used = use_entry(folder / "a")
        os.kill(os.getpid(), signal.SIGKILL)
        used.end()

    process = FORK.Process(target=use_and_die)
    process.start()
    process.join()
    assert remove_entry(folder / "a")


def test_an_entry_is_used_until_its_object_is_gone(folder):
    used = use_entry(write(folder / "a"))
    assert not remove_entry(folder / "a")
    del used
    assert remove_entry(folder / "a")


def test_weights_are_not_removed_while_they_are_trained():
    from filelock import FileLock

    checkpoints = cache_folder("checkpoints")
    for name in ("net.unfinished", "net.safetensors", "other.safetensors"):
        (checkpoints / name).write_text("weights")
    with FileLock(checkpoints / "net.lock"):
        kept = remove_entries(entries())
        assert [entry.path.name for entry in kept] == ["net.safetensors", "net.unfinished"]
    assert remove_entries(entries()) == []


def test_what_nobody_used_for_a_while_is_removed(folder):
    for name, hours in (("old", 50), ("new", 40), ("read", 50)):
        write(folder / name)
        os.utime(folder / name, (time.time() - hours * HOUR,) * 2)
    use_entry(folder / "read")
    tidy(folder, 48 * HOUR)
    assert sorted(path.name for path in folder.iterdir()) == ["new", "read"]


def test_entries_are_listed_with_their_kind_size_and_last_use(folder):
    write(folder / "a")
    os.utime(folder / "a", (1000, 1000))
    (entry,) = entries()
    size = sum(path.stat().st_size for path in (folder / "a").iterdir())
    assert (entry.kind, entry.path, entry.bytes, entry.used) == ("pixels", folder / "a", size, 1000)


@pytest.mark.parametrize("root", ["file", "file/cache", "c" * 300])
def test_a_cache_that_can_be_no_folder_is_refused(tmp_path, monkeypatch, root):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / root))
    with pytest.raises(ConfigError, match="set HSCC_CACHE to another folder"):
        cache_folder("pixels")
    assert entries() == []


def test_a_read_only_cache_is_read_and_refuses_entries(small_disk, monkeypatch):
    disk = small_disk(200)
    monkeypatch.setenv("HSCC_CACHE", str(disk))
    entry = write(cache_folder("pixels") / "a")
    small_disk(200, "remount,ro")
    assert content_of(entry) == CONTENT
    with pytest.raises(UnwritableError, match="Read-only"):
        write(cache_folder("pixels") / "b")
    with pytest.raises(UnwritableError, match=r"cannot write to .*/checkpoints/b"):
        write(cache_folder("checkpoints") / "b")
    assert not remove_entry(entry)


def test_a_full_cache_is_named_and_takes_the_entry_when_there_is_room(small_disk, monkeypatch):
    disk = small_disk(400)
    monkeypatch.setenv("HSCC_CACHE", str(disk))
    entry, large = cache_folder("pixels") / "a", {"images.npy": bytes(1_000_000)}
    with pytest.raises(DiskFullError, match=str(entry)):
        write(entry, large)
    assert list(entry.parent.iterdir()) == []
    small_disk(4000, "remount")
    use_entry(write(entry, large))
