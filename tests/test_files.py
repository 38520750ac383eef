import os
import time

from hscc_search.files import remove_abandoned, remove_unused, used

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
    used(read)
    remove_unused(tmp_path, 48 * HOUR)
    assert sorted(tmp_path.iterdir()) == [new, read]
    assert not old.exists()
    assert (read / "content").read_text() == "of some kind"


def test_what_a_killed_process_left_is_removed_and_the_rest_is_not(tmp_path):
    aged(tmp_path, ".left", 30)
    kept = [aged(tmp_path, ".in-work", 1), aged(tmp_path, "finished", 30)]
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == kept


def test_marking_what_is_gone_is_no_error(tmp_path):
    used(tmp_path / "gone")
