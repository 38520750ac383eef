import json
import os
from pathlib import Path

import pytest

from hscc_search.comparison.folder import claim, network_path, read_network, write_network
from hscc_search.comparison.record import Asked, ComparedNetwork, ComparisonRecord
from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError

ASKED = Asked("hscc", 3.0, 0, 0)


def record(epochs=0, fingerprint="fingerprint", checkpoint=None, **changes):
    return ComparisonRecord(StudyConfig.from_file("digits", **changes), epochs, fingerprint, checkpoint)


def epochs_in(out):
    return json.loads((out / "comparison.json").read_text())["finetune"]


def test_a_network_is_written_to_its_file_and_read_from_it(tmp_path):
    claim(tmp_path / "deep" / "out", record())
    network = ComparedNetwork(ASKED, failure="out of reach")
    write_network(tmp_path / "deep" / "out", network)
    path = network_path(tmp_path / "deep" / "out", ASKED)
    assert path.relative_to(tmp_path).as_posix() == "deep/out/rows/split0-hscc-3x-0epochs.json"
    assert read_network(path) == network


def test_budgets_that_differ_little_have_files_of_their_own(tmp_path):
    near = {network_path(tmp_path, Asked("hscc", budget, 0, 0)) for budget in (2.00000001, 2.00000002)}
    assert len(near) == 2


@pytest.mark.parametrize(("first", "then", "left"), [(0, 0, 0), (0, 5, 5), (5, 0, 5), (5, 5, 5)])
def test_the_same_comparison_may_ask_for_fine_tuning_or_not(tmp_path, first, then, left):
    for epochs in (first, then):
        claim(tmp_path, record(epochs))
    assert epochs_in(tmp_path) == left


def test_a_comparison_of_the_version_before_goes_on_training_its_networks(tmp_path):
    """It did not know ``training.when``, and trained whatever a function of one's own returned."""
    own = {"model__name": "own:make"}
    assert claim(tmp_path, record(**own)).training.when == "auto"
    tree = json.loads((tmp_path / "comparison.json").read_text())
    del tree["study"]["training"]["when"]
    (tmp_path / "comparison.json").write_text(json.dumps(tree))
    for epochs in (0, 5):
        assert claim(tmp_path, record(epochs, **own)).training.when == "always"
    with pytest.raises(ConfigError, match=r"training\.when: always -> auto"):
        claim(tmp_path, record(**own, training__when="auto"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "of others"}, "other images"),
        ({"checkpoint": "of another"}, "other checkpoint"),
        ({"epochs": 6}, "finetune: 5 -> 6"),
        ({"training__epochs": 77}, r"training\.epochs: \d+ -> 77"),
    ],
)
def test_another_comparison_is_refused_and_changes_nothing(tmp_path, changes, reason):
    claim(tmp_path, record(epochs=5))
    before = (tmp_path / "comparison.json").read_bytes()
    with pytest.raises(ConfigError, match=f"another comparison .{reason}.: name another output folder"):
        claim(tmp_path, record(**{"epochs": 5} | changes))
    assert (tmp_path / "comparison.json").read_bytes() == before


def test_a_folder_or_file_of_anything_else_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="no comparison: name another output folder"):
            claim(path, record())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "7", '{"format": 2}', '{"format": 2, "study": 1}', "\x00"])
def test_damaged_files_are_refused_with_what_to_do(tmp_path, text):
    claim(tmp_path, record())
    path = network_path(tmp_path, ASKED)
    path.write_text(text)
    with pytest.raises(ConfigError, match="is damaged: delete it, and it is measured again"):
        read_network(path)
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(ConfigError, match=r"comparison\.json"):
        claim(tmp_path, record())


def large(path):
    """A file of a gigabyte, which takes no room."""
    path.touch()
    os.truncate(path, 1 << 30)


def read_measured(folder):
    return read_network(network_path(folder, ASKED))


def claim_again(folder):
    return claim(folder, record())


@pytest.fixture
def measured(tmp_path):
    claim(tmp_path, record())
    write_network(tmp_path, ComparedNetwork(ASKED, failure="out of reach"))
    return tmp_path


FILES = [
    (network_path(Path(), ASKED), read_measured, ": delete it, and it is measured again$"),
    (Path("comparison.json"), claim_again, ": name another output folder$"),
]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), large])
@pytest.mark.parametrize(("file", "read", "remedy"), FILES, ids=["network", "comparison"])
def test_what_is_no_file_or_endless_is_refused_and_not_read(measured, make, file, read, remedy):
    (measured / file).unlink()
    make(measured / file)
    with pytest.raises(ConfigError, match=f" is damaged{remedy}"):
        read(measured)


@pytest.mark.parametrize(("file", "read"), [each[:2] for each in FILES], ids=["network", "comparison"])
def test_what_cannot_be_read_is_not_called_damaged(measured, file, read):
    """Who deletes what he has no right to read, or a failing disk gives back tomorrow, loses it."""
    (measured / file).unlink()
    (measured / file).symlink_to("/proc/self/mem")
    with pytest.raises(ConfigError, match=rf"^cannot read .*{file.name} \(Input/output error\): make it readable"):
        read(measured)
