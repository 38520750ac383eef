import os
from pathlib import Path

import pytest
import yaml

from hscc_search.config import DEFAULT_STORAGE, StudyConfig, find_study_file
from hscc_search.config.study_file import shipped_study_files


@pytest.mark.parametrize("path", shipped_study_files(), ids=lambda path: path.stem)
def test_every_shipped_study_file_is_valid_and_named_like_its_file(path, monkeypatch, tmp_path):
    monkeypatch.setenv("BRAIN_TUMOR_MRI", str(tmp_path))
    assert StudyConfig.from_file(path).name == path.stem
    assert find_study_file(path.stem) == path


@pytest.mark.parametrize("key", ["name", "data", "model"])
def test_a_missing_key_is_named(study_file, refusal, smallest, key):
    text = yaml.safe_dump({name: value for name, value in smallest.items() if name != key})
    assert f"{key}: missing" in refusal(study_file(text=text))


@pytest.mark.parametrize(
    "text",
    [
        "name: [",
        "- a list",
        "",
        "name: own\x00",
        "trials: 2020-13-45",
        "trials: !!int many",
        "trials: !!timestamp never",
        "[" * 3000,
    ],
    ids=["unclosed", "list", "empty", "control", "date", "integer", "timestamp", "deep"],
)
def test_a_file_that_is_no_mapping_of_keys_is_refused_by_name(study_file, refusal, text):
    path = study_file(text=text)
    assert str(path) in refusal(path)


def test_a_file_in_another_encoding_is_refused_by_name(tmp_path, refusal):
    path = tmp_path / "own.yaml"
    path.write_bytes("name: grün".encode("latin-1"))
    assert str(path) in refusal(path)


@pytest.mark.parametrize("name", ["nothing", "x" * 300], ids=["missing", "longer than a file name"])
def test_a_study_that_does_not_exist_is_answered_with_those_that_do(refusal, name):
    message = refusal(name)
    assert name in message
    assert "brain_tumor_alexnet, digits" in message


@pytest.mark.parametrize(("make", "said"), [(Path.mkdir, "which is a folder"), (os.mkfifo, "which is a pipe")])
def test_what_is_no_file_is_told_and_not_waited_for(tmp_path, refusal, make, said):
    make(tmp_path / "own.yaml")
    assert said in refusal(tmp_path / "own.yaml")


def test_a_folder_named_like_a_shipped_study_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert StudyConfig.from_file("digits").name == "digits"


def test_an_alias_shares_no_section_with_what_it_repeats(study_file, smallest):
    text = yaml.safe_dump(smallest) + "training: &same {epochs: 3}\nfinetuning: *same\n"
    config = StudyConfig.from_file(study_file(text=text), training__epochs=9)
    assert (config.training.epochs, config.finetuning.epochs) == (9, 3)


def test_paths_in_a_file_are_relative_to_it_from_any_folder(study_file, monkeypatch, tmp_path):
    path = study_file({"model.checkpoint": "weights.pt", "data.path": "sub/images"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = StudyConfig.from_file(Path("..") / path.name)
    assert config.data.path.is_absolute()
    assert config.data.path.resolve() == tmp_path / "sub" / "images"
    assert config.model.checkpoint.resolve() == tmp_path / "weights.pt"


def test_paths_in_a_file_may_be_absolute_or_start_at_home(study_file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = StudyConfig.from_file(study_file({"data.path": "~/images", "model.checkpoint": "/srv/weights.pt"}))
    assert config.data.path == Path("/home/someone/images")
    assert config.model.checkpoint == Path("/srv/weights.pt")


def test_the_home_of_a_user_who_does_not_exist_is_refused(study_file, refusal):
    assert "~nosuchuser" in refusal(study_file({"data.path": "~nosuchuser/images"}))
    assert r"~\x00" in refusal(study_file({"data.path": "~\0/images"}))


@pytest.mark.parametrize("variable", ["$OWN_FOLDER", "${OWN_FOLDER}"])
def test_environment_variables_may_stand_in_paths_and_in_the_storage(study_file, monkeypatch, variable):
    monkeypatch.setenv("OWN_FOLDER", "/srv/own")
    changes = {
        "data.path": f"{variable}/a",
        "model.checkpoint": f"{variable}/b",
        "storage": f"sqlite:///{variable}/c",
    }
    config = StudyConfig.from_file(study_file(changes))
    assert (config.data.path, config.model.checkpoint) == (Path("/srv/own/a"), Path("/srv/own/b"))
    assert config.storage == "sqlite:////srv/own/c"


@pytest.mark.parametrize(
    ("key", "override", "option", "value"),
    [
        ("data.path", "data__path", "--data", Path("/given")),
        ("model.checkpoint", "model__checkpoint", "--checkpoint", Path("/given")),
        ("storage", "storage", "--storage", "sqlite:////given"),
    ],
)
def test_an_unset_variable_matters_only_where_no_option_replaces_it(
    study_file, refusal, monkeypatch, key, override, option, value
):
    monkeypatch.delenv("OWN_FOLDER", raising=False)
    path = study_file({key: "${OWN_FOLDER}"})
    message = refusal(path)
    assert all(word in message for word in (key, "OWN_FOLDER", option))
    config = StudyConfig.from_file(path, **{override: value})
    assert str(value) in (str(config.data.path), str(config.model.checkpoint), config.storage)


def test_overrides_replace_what_the_file_says_and_none_replaces_nothing(study_file):
    path = study_file({"trials": 7, "training.epochs": 3})
    config = StudyConfig.from_file(path, trials=9, training__momentum=0.5, storage=None, training__epochs=None)
    assert (config.trials, config.training.momentum, config.training.epochs) == (9, 0.5, 3)
    assert config.storage == DEFAULT_STORAGE


def test_overrides_are_checked_like_the_file(study_file, refusal):
    assert "trials" in refusal(study_file(), trials=0)
    assert "data: 3" in refusal(study_file({"data": 3}), data__path=Path("images"))
