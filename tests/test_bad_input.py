import pickle
import sqlite3
from pathlib import Path

import pytest
import torch
import yaml

from hscc_search.config import StudyConfig
from hscc_search.search.study import run_study

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
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HSCC_CACHE", str(folder / "cache"))
        config = StudyConfig.from_file(
            "digits",
            storage=f"sqlite:///{folder}/studies.db",
            trials=2,
            training__epochs=1,
            compression__calibration_images=64,
        )
        run_study(config, "cpu")
    return folder


@pytest.fixture
def refused(cli, finished, tmp_path):
    """Run a command that must be refused: one line on the error stream, and everything is left as it was."""

    def call(*arguments, report=False, env=None):
        before, stored_before = content(tmp_path), stored(finished / "studies.db")
        done = cli(
            *arguments,
            cwd=tmp_path,
            code=2,
            env={"HSCC_CACHE": str(finished / "cache"), "COLUMNS": "40", "OMP_NUM_THREADS": "1", **(env or {})},
        )
        assert content(tmp_path) == before
        assert stored(finished / "studies.db") == stored_before
        assert "Traceback" not in done.stderr
        assert report or done.stdout == ""
        lines = done.stderr.splitlines()
        assert lines[-1].startswith("error: ")
        assert len(lines) == 1, f"more than the error:\n{done.stderr}"
        return lines[0]

    return call


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


def wrong_source(folder, image_folder):
    (folder / "images").mkdir()


def other_architecture(folder, image_folder):
    torch.save({"features.0.weight": torch.ones(2)}, folder / "weights.pt")


def dangerous_pickle(folder, image_folder):
    (folder / "weights.pt").write_bytes(pickle.dumps({"weight": Malicious()}))


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
        (other_architecture, ["run", "digits", "--checkpoint", "weights.pt"], ["weights.pt", "architecture"]),
        (dangerous_pickle, ["run", "digits", "--checkpoint", "weights.pt"], ["weights.pt", "state dict"]),
        (nothing, ["run", "digits", "--storage", "postgresql://localhost:1/x"], ["postgresql://localhost:1/x"]),
        (nothing, ["run", "digits", "--storage", "studies.db"], ["studies.db", "sqlite:///"]),
        (nothing, ["front", "digits", "--storage", ":x:"], ["':x:'", "sqlite:///"]),
        (nothing, ["front", "digits"], ["hscc-studies.db", "--storage"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(refused, tmp_path, image_folder, prepare, arguments, said):
    prepare(tmp_path, image_folder)
    line = refused(*arguments)
    assert [part for part in said if part not in line] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "digits"], ["training.epochs: 1 -> 12", "name of its own"]),
        (["front", "absent"], ["'absent'", "digits"]),
        (["export", "digits", "--out", "there"], ["there", "exists"]),
        (["export", "digits", "--out", "file/new"], ["file"]),
        (["export", "digits", "--out", "new", "--select", "best"], ["'best'", "knee", "min-accuracy:X"]),
        (["export", "digits", "--out", "new", "--select", "min-accuracy:2"], ["'min-accuracy:2'", "from 0 to 1"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_leaves_a_finished_study_as_it_is(refused, finished, tmp_path, arguments, said):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").touch()
    (tmp_path / "file").touch()
    line = refused(*arguments, "--storage", f"sqlite:///{finished}/studies.db")
    assert [part for part in said if part not in line] == []


def test_a_check_reports_a_corrupt_image_and_ends_with_its_count(refused, tmp_path, image_folder):
    corrupt_image(tmp_path, image_folder)
    assert "1 unreadable" in refused("data", "check", "images", report=True)


def test_an_image_that_cannot_be_read_leaves_other_studies_of_the_storage_alone(
    refused, finished, tmp_path, image_folder
):
    corrupt_image(tmp_path, image_folder)
    assert "2.jpg" in refused("run", "own.yaml", "--storage", f"sqlite:///{finished}/studies.db")
