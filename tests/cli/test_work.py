import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from hscc_search.cli import commands
from hscc_search.config import find_study_file
from hscc_search.errors import UnwritableError


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


def test_weights_that_could_not_be_kept_are_not_trained(small_disk, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(small_disk(100, "ro")))
    ended = CliRunner().invoke(commands, ["train", "digits"])
    assert isinstance(ended.exception, UnwritableError)
    assert "cannot be written to: set HSCC_CACHE to another folder" in str(ended.exception)
