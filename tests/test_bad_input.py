import csv
import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import command_line
import pytest
import torch
import yaml
from PIL import Image

from hscc_search import storage
from hscc_search.cli import main
from hscc_search.config import StudyConfig, find_study_file
from hscc_search.study.study import run_study

OWN = {
    "name": "own",
    "data": {"source": "folder", "path": "images", "image_size": 16},
    "model": {"name": "digits_cnn"},
    "training": {"epochs": 1},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a cache and a storage in which a short digits study is finished."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSCC_CACHE", str(folder / "cache"))
        config = StudyConfig.from_file(
            "digits",
            storage=f"sqlite:///{folder}/studies.db",
            trials=2,
            training__epochs=1,
            refine__trials="none",
            compression__calibration_images=64,
        )
        run_study(config, "cpu")
    return folder


@pytest.fixture
def refused(finished, tmp_path, monkeypatch, capfd):
    """Run a command that must be refused: one line on the error stream, and everything is left as it was.

    In this process, which has imported torch and Optuna once for all of the many cases.
    """
    terminate = signal.getsignal(signal.SIGTERM)

    def call(*arguments, report=False):
        before, stored_before = content(tmp_path), stored(finished / "studies.db")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HSCC_CACHE", str(finished / "cache"))
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setattr(storage, "CONNECT_SECONDS", 1)  # a server that is not there is waited for
        monkeypatch.setattr(sys, "argv", ["hscc-search", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        stdout, stderr = capfd.readouterr()
        assert ended.value.code == 2, stderr
        assert content(tmp_path) == before
        assert stored(finished / "studies.db") == stored_before
        assert "Traceback" not in stderr
        assert report or stdout == ""
        # Where the network is sound and something else is not, it has been said that nothing needs training.
        lines = [line for line in stderr.splitlines() if not line.startswith("training: none: ")]
        assert lines[-1].startswith("error: ")
        assert len(lines) == 1, f"more than the error:\n{stderr}"
        return lines[0]

    yield call
    signal.signal(signal.SIGTERM, terminate)


def content(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def stored(database):
    with sqlite3.connect(database) as connection:
        return list(connection.iterdump())


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def write_study(folder, **changes):
    (folder / "own.yaml").write_text(yaml.safe_dump(OWN | changes))


def malformed(folder, image_folder):
    (folder / "own.yaml").write_text("name: [own")


def unknown_key(folder, image_folder):
    write_study(folder, trails=3)


def unset_variable(folder, image_folder):
    write_study(folder, data={"path": "${HSCC_TEST_UNSET}"})


def empty_folder(folder, image_folder):
    write_study(folder)
    (folder / "images").mkdir()


def one_class(folder, image_folder):
    write_study(folder)
    image_folder({"cat": 3})


def corrupt_image(folder, image_folder):
    write_study(folder)
    image_folder({"cat": 4, "dog": 4}, suffix="jpg")
    path = folder / "images" / "dog" / "2.jpg"
    path.write_bytes(path.read_bytes()[:200])


def another_format(folder, image_folder):
    write_study(folder)
    image_folder({"cat": 4, "dog": 4})
    image_folder({"bird": 2}, suffix="gif")


def classes_of_two_levels(folder, image_folder):
    write_study(folder)
    image_folder({"2024/cat": 4, "2024/dog": 4, "2025/cat": 4})


def copies_of_one_image(folder, image_folder):
    write_study(folder)
    image_folder({"cat": 8, "dog": 8})
    for path in (folder / "images" / "dog").iterdir():
        Image.new("RGB", (20, 20)).save(path)


def unprintable_class(folder, image_folder):
    write_study(folder)
    image_folder({"cat": 4, "b\n\x1b[31m\udcff": 4})


def wrong_source(folder, image_folder):
    (folder / "images").mkdir()


def other_architecture(folder, image_folder):
    torch.save({"features.0.weight": torch.ones(2)}, folder / "weights.pt")


def dangerous_pickle(folder, image_folder):
    (folder / "weights.pt").write_bytes(pickle.dumps({"weight": Malicious()}))


def unknown_objective(folder, image_folder):
    write_study(folder, objectives=["flops", "speed"])


def one_objective(folder, image_folder):
    write_study(folder, objectives=["flops"])


def constraint_without_bound(folder, image_folder):
    write_study(folder, constraints=[{"metric": "latency"}])


def grid_without_levels(folder, image_folder):
    write_study(folder, sampler="grid")


def recall_of_no_class(folder, image_folder):
    write_study(folder, objectives=["flops", "recall:bird"])
    image_folder({"cat": 4, "dog": 4})


def start_outside(folder, image_folder):
    tree = yaml.safe_load(find_study_file("digits").read_text())
    tree |= {"name": "own", "start": [{"regions": 1, "clusters": 1, "energy": 0.1}]}
    tree["training"]["epochs"] = 1
    (folder / "own.yaml").write_text(yaml.safe_dump(tree))


def endless_grid(folder, image_folder):
    levels = {"energy": {"low": 0.5, "high": 0.9, "levels": 1000}, "regions": {"low": 1, "high": 1000}}
    write_study(folder, sampler="grid", space=levels)


def mistyped_network(folder, image_folder):
    write_study(folder, model={"name": "resnt18"})


def pipe(folder, image_folder):
    os.mkfifo(folder / "own.yaml")


def nothing(folder, image_folder):
    pass


@pytest.mark.parametrize(
    ("prepare", "arguments", "said"),
    [
        (nothing, ["run", "missing.yaml"], ["missing.yaml", "digits"]),
        (malformed, ["run", "own.yaml"], ["own.yaml", "no YAML"]),
        (unknown_key, ["run", "own.yaml"], ["trails", "3", "trials"]),
        (unset_variable, ["run", "own.yaml"], ["data.path", "HSCC_TEST_UNSET", "--data"]),
        (wrong_source, ["run", "digits", "--data", "images"], ["data", "takes no path"]),
        (nothing, ["run", "digits", "--trials", "0"], ["--trials", "0"]),
        (nothing, ["run"], ["STUDY"]),
        (nothing, ["compress"], ["compress"]),
        (empty_folder, ["run", "own.yaml"], ["no images below"]),
        (one_class, ["run", "own.yaml"], ["only one class, 'cat'"]),
        (corrupt_image, ["run", "own.yaml"], ["2.jpg", "data check"]),
        (another_format, ["run", "own.yaml"], ["class 'bird'", "2 .gif", "read are .bmp"]),
        (classes_of_two_levels, ["run", "own.yaml"], ["2024, 2025", "data.class_level: 1 or 2"]),
        (copies_of_one_image, ["run", "own.yaml"], ["'dog'", "8 images are 1 groups of copies", "data.copies"]),
        (unprintable_class, ["run", "own.yaml"], [r"b\n\x1b[31m\xff", "rename"]),
        (other_architecture, ["run", "digits", "--checkpoint", "weights.pt"], ["weights.pt", "architecture"]),
        (dangerous_pickle, ["run", "digits", "--checkpoint", "weights.pt"], ["weights.pt", "state dict"]),
        (nothing, ["run", "digits", "--storage", "postgresql://localhost:1/x"], ["postgresql://localhost:1/x"]),
        (nothing, ["run", "digits", "--storage", "studies.db"], ["studies.db", "sqlite:///"]),
        (nothing, ["front", "digits", "--storage", ":x:"], ["':x:'", "sqlite:///"]),
        (nothing, ["front", "digits"], ["hscc-studies.db", "--storage"]),
        (nothing, ["run", "digits", "--workers", "0"], ["--workers", "0"]),
        (nothing, ["worker", "digits", "--workers", "two"], ["--workers", "'two'"]),
        (nothing, ["worker", "digits"], ["hscc-studies.db", "--storage"]),
        (nothing, ["export", "digits", "--out", "new", "--select", "best"], ["'best'", "knee", "min-accuracy:X"]),
        (
            nothing,
            ["compare", "digits", "--out", "new", "--budgets", "3;6"],
            ["--budgets", "'3;6'", "numbers with commas"],
        ),
        (nothing, ["compare", "digits", "--out", "o" * 300], ["File name too long"]),
        (nothing, ["compare", "digits", "--out", "/proc/new"], ["cannot write to /proc/new"]),
        (nothing, ["compare", "digits", "--out", "new", "--seeds", "0.5"], ["--seeds", "'0.5'", "whole numbers"]),
        (nothing, ["worker", "digits", "--storage", "grpc://nowhere:1"], ["nowhere:1", "hscc-search proxy"]),
        (nothing, ["worker", "digits", "--storage", "grpc://nowhere"], ["grpc://nowhere", "grpc://HOST:PORT"]),
        (nothing, ["proxy", "--storage", "grpc://nowhere:1"], ["nowhere:1"]),
        (nothing, ["studies"], ["hscc-studies.db", "--storage"]),
        (nothing, ["studies", "rm", "digits", "--yes"], ["hscc-studies.db", "--storage"]),
        (nothing, ["studies", "copy", "digits"], ["NEW_NAME"]),
        (unknown_objective, ["run", "own.yaml"], ["objectives.1", "'speed'", "latency", "recall:CLASS"]),
        (one_objective, ["run", "own.yaml"], ["objectives", "2 items"]),
        (constraint_without_bound, ["run", "own.yaml"], ["constraints.0", "latency", "at_least or at_most"]),
        (grid_without_levels, ["run", "own.yaml"], ["sampler grid", "space.energy"]),
        (recall_of_no_class, ["run", "own.yaml"], ["recall:bird", "cat, dog"]),
        (start_outside, ["run", "own.yaml"], ["start", "energy 0.1"]),
        (endless_grid, ["run", "own.yaml"], ["sampler grid", "more than 100,000 samples"]),
        (mistyped_network, ["run", "own.yaml"], ["'resnt18'", "did you mean resnet18"]),
        (mistyped_network, ["train", "own.yaml"], ["'resnt18'", "did you mean resnet18"]),
        (pipe, ["run", "own.yaml"], ["own.yaml", "a pipe or a device"]),
        (nothing, ["run", "."], ["which is a folder"]),
        (nothing, ["run", "x" * 5000], ["no study file xxx", "digits"]),
        (nothing, ["run", "two\nlines"], ["two\\nlines"]),
        (nothing, ["compare", "digits", "--out", "new", "--budgets", "3,nan"], ["--budgets", "'3,nan'"]),
        (nothing, ["compare", "digits", "--out", "new", "--seeds", str(2**40)], ["--seeds", str(2**40), "below 2**32"]),
        (nothing, ["run", "digits", "--workers", str(10**9)], ["--workers", "1024"]),
        (nothing, ["run", "digits", "--trials", str(10**12)], ["trials", "1000000"]),
        (nothing, ["run", "digits", "--timeout", "nan"], ["timeout", "finite"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(refused, tmp_path, image_folder, prepare, arguments, said):
    prepare(tmp_path, image_folder)
    line = refused(*arguments)
    assert [words for words in said if words not in line] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "digits"], ["training.epochs: 1 -> 12", "name of its own"]),
        (["front", "absent"], ["'absent'", "digits"]),
        (["worker", "absent"], ["'absent'", "digits"]),
        (["worker", "digits", "--data", "images"], ["takes no path"]),
        (["studies", "rm", "absent"], ["'absent'", "digits"]),
        (["studies", "copy", "absent", "other"], ["'absent'", "digits"]),
        (["studies", "copy", "digits", "digits"], ["'digits'", "another name"]),
        (["studies", "copy", "digits", "two words"], ["'two words'", "pattern"]),
        (["studies", "copy", "digits", "other", "--to", "nowhere.db"], ["'nowhere.db'", "sqlite:///"]),
        (["front", "digits", "--html", "absent/front.html"], ["--html", "no folder", "absent"]),
        (["front", "digits", "--html", "h" * 300], ["--html", "File name too long"]),
        (["front", "digits", "--html", "existing"], ["--html", "not a regular file"]),
        (["front", "digits", "--html", "file/front.html"], ["--html", "no folder"]),
        (["front", "digits", "--html", "/proc/front.html"], ["--html", "cannot write to /proc/front.html"]),
        (["export", "digits", "--out", "o" * 300], ["File name too long"]),
        (["export", "digits", "--out", "/proc/new/deeper"], ["cannot write to /proc/new/deeper"]),
        (["export", "digits", "--out", "existing"], ["existing", "exists"]),
        (["export", "digits", "--out", "file/new"], ["file"]),
        (["export", "digits", "--out", "new", "--select", "best"], ["'best'", "knee", "min-accuracy:X"]),
        (["export", "digits", "--out", "new", "--select", "min-accuracy:2"], ["'min-accuracy:2'", "from 0 to 1"]),
        (["export", "digits", "--out", "new", "--select", "accuracy>=88"], ["'accuracy>=88'", "from 0 to 1"]),
        (
            ["export", "digits", "--out", "new", "--select", "flops<1 and energy<2"],
            ["trial 0 misses flops<1 by", "FLOPs"],
        ),
        (["export", "digits", "--out", "new", "--select", "acuracy>=0.5"], ["no acuracy", "did you mean accuracy"]),
        (["export", "digits", "--out", "existing", "--select", "all"], ["existing", "holds no export of a front"]),
        (["export", "digits", "--out", "file", "--select", "all"], ["file", "holds no export of a front"]),
        (["export", "digits", "--out", "o" * 300, "--select", "all"], ["File name too long"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_leaves_a_finished_study_as_it_is(refused, finished, tmp_path, arguments, said):
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing" / "precious").touch()
    (tmp_path / "file").touch()
    storage = ["--storage", f"sqlite:///{finished}/studies.db"]
    line = refused(*arguments, *storage)
    assert [words for words in said if words not in line] == []
    if arguments[0] == "studies":  # whose option may stand before the command, too
        assert refused(arguments[0], *storage, *arguments[1:]) == line


def test_a_mistyped_network_or_rule_is_answered_before_torch_is_imported(tmp_path):
    write_study(tmp_path, model={"name": "resnet81"}, data={"source": "digits"})
    network = "error: no network named 'resnet81' in torchvision or timm: did you mean resnet18"
    for command, said in (
        (["run", "own.yaml"], network),
        (["train", "own.yaml"], network),
        (["compare", "own.yaml", "--out", "new"], network),
        (
            ["export", "digits", "--select", "accuracy>=88", "--out", "new"],
            "error: cannot select 'accuracy>=88' (accuracy",
        ),
    ):
        code = (
            f"import sys; sys.argv[1:] = {command!r}\n"
            "from hscc_search.cli import main\n"
            "try: main()\n"
            "finally: print(sorted({'torch', 'torchvision', 'timm', 'optuna', 'scipy'} & sys.modules.keys()))"
        )
        before = os.times()
        ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        after = os.times()
        assert after.children_user + after.children_system - before.children_user - before.children_system < 2
        assert (ended.returncode, ended.stdout) == (2, "[]\n")
        assert ended.stderr.startswith(said)


def test_a_process_that_is_refused_ends_with_2(cli, tmp_path):
    assert cli("run", "missing.yaml", cwd=tmp_path, code=2).stderr.startswith("error: no study file missing.yaml")


def test_a_worker_of_a_finished_study_says_that_it_is_finished(cli, finished, tmp_path):
    before = stored(finished / "studies.db")
    storage = f"sqlite:///{finished}/studies.db"
    told = cli("worker", "digits", "--storage", storage, cwd=tmp_path).stdout
    assert "2 trials finished, 2 wanted, so there is nothing to do" in told
    assert stored(finished / "studies.db") == before


def test_studies_are_listed_copied_and_removed(cli, finished, tmp_path):
    storage = f"sqlite:///{finished}/studies.db"
    own = f"sqlite:///{tmp_path}/own.db"
    told = cli("studies", "copy", "digits", "mine", "--storage", storage, "--to", own, cwd=tmp_path).stdout
    assert "2 trials" in told
    listing = json.loads(cli("studies", "--storage", own, "--format", "json", cwd=tmp_path).stdout)
    (status,) = listing
    assert [status[key] for key in ("name", "finished", "wanted", "failed", "workers")] == ["mine", 2, 2, 0, 0]
    table = cli("studies", "--storage", own, cwd=tmp_path).stdout
    assert all(words in table for words in ("mine", "hypervolume", f"{status['hypervolume']:.4f}", "workers"))

    before = stored(tmp_path / "own.db")
    # Without an answer, and with the answer no, nothing is removed.
    for answer in ("", "n\n"):
        command = command_line.start("studies", "--storage", own, "rm", "mine", cwd=tmp_path, answer=answer)
        stdout, stderr = command.communicate()
        assert command.returncode != 0
        assert "Traceback" not in stderr
        assert "2 finished trials" in stdout + stderr
        assert stored(tmp_path / "own.db") == before
    # The nearest of several counts: the option before the one of the group, and that before the environment.
    named = ("studies", "--storage", storage, "rm", "mine", "--yes", "--storage", own)
    assert "removed: study mine" in cli(*named, cwd=tmp_path, env={"HSCC_STORAGE": storage}).stdout
    assert json.loads(cli("studies", "--storage", storage, "--format", "json", cwd=tmp_path).stdout) != []
    assert json.loads(cli("studies", "--storage", own, "--format", "json", cwd=tmp_path).stdout) == []


def test_the_front_as_json_and_csv_holds_what_the_table_shows(cli, finished, tmp_path):
    storage = ("--storage", f"sqlite:///{finished}/studies.db")
    tree = json.loads(cli("front", "digits", *storage, "--format", "json", cwd=tmp_path).stdout)
    assert tree["objectives"] == {"flops": "minimise", "accuracy": "maximise"}
    assert tree["reference"].keys() == tree["ideal"].keys() == tree["objectives"].keys()
    assert 0 < tree["hypervolume"] < 1
    lines = cli("front", "digits", *storage, "--format", "csv", cwd=tmp_path).stdout.splitlines()
    dense, *members = csv.DictReader(lines)
    assert dense["trial"] == "dense"
    assert [row["trial"] for row in members] == [str(point["trial"]) for point in tree["front"]]
    for row, point in zip(members, tree["front"], strict=True):
        assert {name: float(row[name]) for name in point["metrics"]} == point["metrics"]
        assert {name: float(row[f"{name}_se"]) for name in point["errors"]} == point["errors"]
        assert {name: float(row[name]) for name in point["sample"]} == point["sample"]
        assert float(row["probability"]) == point["probability"]
    assert {name: float(dense[name]) for name in tree["dense"]["metrics"]} == tree["dense"]["metrics"]
    table = cli("front", "digits", *storage, cwd=tmp_path).stdout
    assert all(f"{point['metrics']['accuracy']:.4f}" in table for point in tree["front"])
    assert f"hypervolume {tree['hypervolume']:.4f}" in table


def test_a_check_reports_a_corrupt_image_and_ends_with_its_count(refused, tmp_path, image_folder):
    corrupt_image(tmp_path, image_folder)
    assert "1 unreadable" in refused("data", "check", "images", report=True)


def test_an_image_that_cannot_be_read_leaves_other_studies_of_the_storage_alone(
    refused, finished, tmp_path, image_folder
):
    corrupt_image(tmp_path, image_folder)
    assert "2.jpg" in refused("run", "own.yaml", "--storage", f"sqlite:///{finished}/studies.db")
