import io
import json
import os
import sys
import time

import pytest

from hscc_search.cache import cache_folder, entry_written, use_entry
from hscc_search.cli import main


@pytest.fixture
def hscc(tmp_path, monkeypatch, capsys):
    """Call a command in this process; returns its output. Two entries of pixels are in the cache, one of 2 MB."""
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path))
    for name, size in (("a", 2_000_000), ("b", 10)):
        with entry_written(cache_folder("pixels") / name) as temporary:
            (temporary / "images.npy").write_bytes(bytes(size))
    os.utime(tmp_path / "pixels" / "a", (time.time() - 3 * 86400,) * 2)
    (cache_folder("checkpoints") / "net.safetensors").write_bytes(bytes(500_000))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hscc-search", "cache", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return call


def test_the_table_shows_number_size_and_age_by_kind(hscc, tmp_path):
    rows = {line.split()[0]: line for line in hscc().splitlines() if line.strip()}
    assert rows["pixels"].split()[1:6] == ["2", "2.0", "3", "days", "ago"]
    assert rows["checkpoints"].split()[1:3] == ["1", "0.5"]
    assert rows["calibrations"].split()[1:] == ["0", "0.0", "-", "-"]
    assert rows["cache:"] == f"cache: {tmp_path}"


def test_json_holds_the_same(hscc, tmp_path):
    tree = json.loads(hscc("--format", "json"))
    assert tree["folder"] == str(tmp_path)
    pixels = tree["kinds"]["pixels"]
    assert pixels["entries"] == 2
    assert 2_000_000 < pixels["bytes"] < 2_001_000
    assert pixels["oldest_use_seconds"] == pytest.approx(3 * 86400, abs=60)
    assert pixels["latest_use_seconds"] == pytest.approx(0, abs=60)
    assert tree["kinds"]["calibrations"] == {
        "entries": 0,
        "bytes": 0,
        "oldest_use_seconds": None,
        "latest_use_seconds": None,
    }


def test_clearing_removes_all_but_what_is_used(hscc, tmp_path):
    used = use_entry(tmp_path / "pixels" / "b")
    said = hscc("clear", "--yes").splitlines()
    assert said[0] == "removed: 2 entries, 2.5 MB"
    assert said[1].startswith("kept: 1 entries, 0.0 MB")
    assert [path.name for path in (tmp_path / "pixels").iterdir()] == ["b"]
    used.end()
    hscc("clear", "--yes")
    assert list((tmp_path / "pixels").iterdir()) == []


def test_clearing_one_kind_leaves_the_others(hscc, tmp_path):
    assert "removed: 2 entries" in hscc("clear", "--kind", "pixels", "--yes")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["net.safetensors"]


def test_where_nobody_answers_the_option_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path))
    (cache_folder("checkpoints") / "net.safetensors").touch()
    monkeypatch.setattr(sys, "argv", ["hscc-search", "cache", "clear"])
    for answer, code, said in (("", 2, "give --yes"), ("n\n", 130, "stopped"), ("y\n", 0, "")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        assert said in capsys.readouterr().err
        assert (tmp_path / "checkpoints" / "net.safetensors").exists() == (code != 0)
