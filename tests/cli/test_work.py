import re
import signal
import socket
import time
from contextlib import nullcontext
from pathlib import Path

import command_line
import pytest
import yaml
from click.testing import CliRunner

from hscc_search.cli import commands
from hscc_search.config import find_study_file
from hscc_search.errors import HsccWarning, UnwritableError


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    """The digits study with a moment of training, and an empty cache."""
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))
    tree = yaml.safe_load(find_study_file("digits").read_text())
    tree["training"]["epochs"] = 1
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_train_keeps_the_dense_network_and_says_where(study_file):
    arguments = ["train", str(study_file), "--device", "cpu"]
    told = CliRunner().invoke(commands, arguments, catch_exceptions=False).stdout
    accuracy_line, checkpoint_line, next_line = told.splitlines()
    assert re.fullmatch(r"dense digits_cnn: accuracy 0\.\d{4} on \d+ validation images", accuracy_line)
    assert next_line == f"next: hscc-search run {study_file}"
    checkpoint = Path(checkpoint_line.removeprefix("checkpoint: "))
    trained = checkpoint.read_bytes(), checkpoint.stat().st_mtime_ns
    assert CliRunner().invoke(commands, arguments, catch_exceptions=False).stdout == told
    assert (checkpoint.read_bytes(), checkpoint.stat().st_mtime_ns) == trained


def test_train_has_nothing_to_do_where_there_is_a_checkpoint(study_file):
    tree = yaml.safe_load(study_file.read_text())
    tree["model"]["checkpoint"] = "weights.pt"
    study_file.write_text(yaml.safe_dump(tree))
    told = CliRunner().invoke(commands, ["train", str(study_file)], catch_exceptions=False).output
    assert "weights.pt: there is nothing to train" in told
    assert not (study_file.parent / "cache").exists()


def test_weights_that_could_not_be_kept_are_not_trained(study_file, small_disk, monkeypatch):
    disk = small_disk(100, "ro")
    monkeypatch.setenv("HSCC_CACHE", str(disk))
    with pytest.warns(HsccWarning, match="images are decoded"):
        ended = CliRunner().invoke(commands, ["train", str(study_file), "--device", "cpu"])
    assert isinstance(ended.exception, UnwritableError)
    assert str(ended.exception) == f"{disk}/checkpoints cannot be written to: set HSCC_CACHE to another folder"
    assert "training the dense network" not in ended.stderr


def test_weights_that_are_in_the_cache_need_not_be_written(study_file, small_disk, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(small_disk(40_000)))
    arguments = ["train", str(study_file), "--device", "cpu"]
    told = CliRunner().invoke(commands, arguments, catch_exceptions=False).stdout
    small_disk(40_000, "remount,ro")
    assert CliRunner().invoke(commands, arguments, catch_exceptions=False).stdout == told


@pytest.mark.parametrize("written", [True, False], ids=["a cache", "a cache that cannot be written to"])
def test_train_keeps_the_weights_that_a_network_comes_with_and_says_so(study_file, small_disk, monkeypatch, written):
    (study_file.parent / "own_given.py").write_text(
        "from torch import nn\n\n\ndef make(classes):\n    layer = nn.Linear(768, classes)\n"
        "    nn.init.eye_(layer.weight), nn.init.zeros_(layer.bias)\n    return nn.Sequential(nn.Flatten(), layer)\n"
    )
    monkeypatch.syspath_prepend(study_file.parent)
    tree = yaml.safe_load(study_file.read_text())
    tree["model"]["name"] = "own_given:make"
    study_file.write_text(yaml.safe_dump(tree))
    if not written:
        monkeypatch.setenv("HSCC_CACHE", str(small_disk(100, "ro")))
    with nullcontext() if written else pytest.warns(HsccWarning, match="images are decoded"):
        done = CliRunner().invoke(commands, ["train", str(study_file), "--device", "cpu"], catch_exceptions=False)
    assert done.stderr.startswith("training: none: own_given:make returns the same weights under different seeds")
    accuracy_line, next_line = done.stdout.splitlines()
    assert accuracy_line.startswith("dense own_given:make: accuracy 0.")
    assert next_line.startswith("next: ")


def test_a_proxy_for_other_machines_says_what_it_opens(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    storage = f"sqlite:///{tmp_path}/studies.db"
    started = command_line.start("proxy", "--storage", storage, "--host", "0.0.0.0", "--port", port, cwd=tmp_path)
    while "proxy: grpc://" not in started.printed()[0]:
        assert started.returncode is None, started.printed()
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    started.communicate()
    assert "can read, change and remove all studies" in "".join(started.printed())


def test_a_proxy_is_reached_from_this_machine_alone_unless_it_is_told_otherwise(proxy):
    port = int(proxy.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        pass
    # Another address of this machine, at which a proxy for others would answer.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=10)
