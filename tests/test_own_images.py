"""Studies of images that come in by other ways than one folder per class."""

import json
import shutil

import pytest
import torch
from own_images import divided_folder, table_of, write_factory

from hscc_search import run_study
from hscc_search.cli.printing import show_front
from hscc_search.comparison.measure import compare
from hscc_search.config import StudyConfig
from hscc_search.dense.networks import build_network
from hscc_search.errors import ConfigError, StudyError
from hscc_search.export.export import export
from hscc_search.export.verifying import verify
from hscc_search.report.formats import front_json


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def divided(image_folder):
    return divided_folder(image_folder)


@pytest.fixture
def factory(image_folder, tmp_path, monkeypatch):
    """A folder of images, and a module that reads it."""
    folder = image_folder({"cat": 40, "dog": 30})
    write_factory(folder, tmp_path / "own_data.py")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def study_of(images, storage):
    tree = {
        "name": "study",
        "data": {"image_size": 8, **images},
        "model": {"name": "digits_cnn"},
        "training": {"epochs": 1},
        "compression": {"calibration_images": 40},
        "storage": storage,
        "refine": {"trials": "none"},
        "trials": 2,
    }
    return StudyConfig.from_tree(tree, "study")


def test_a_study_of_a_table_has_the_trials_of_the_folders_study(image_folder, tmp_path):
    folder = image_folder({"cat": 40, "dog": 30})
    table = {"source": "table", "path": table_of(folder, tmp_path / "images.csv")}
    found = []
    for number, images in enumerate(({"path": folder}, table)):
        study = run_study(study_of(images, f"sqlite:///{tmp_path}/{number}.db"))
        found.append([(point.sample, point.metrics) for point in study.points])
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_a_study_whose_images_belong_together_otherwise_does_not_go_on(image_folder, tmp_path):
    folder = image_folder({"cat": 40, "dog": 40})
    places = sorted(path.relative_to(tmp_path) for path in folder.rglob("*.png"))
    table, url = tmp_path / "images.csv", f"sqlite:///{tmp_path}/studies.db"

    def write(images_per_group):
        lines = ["path,label,group,split"]
        for number, place in enumerate(places):
            part = ("train", "validation", "test", "train")[number // 4 % 4]
            lines.append(f"{place},{place.parent.name},{number // images_per_group},{part}")
        table.write_text("\n".join(lines))

    config = study_of({"source": "table", "path": table, "copies": "none"}, url)
    write(4)
    run_study(config)
    more = config.model_copy(update={"trials": 3})
    write(2)
    with pytest.raises(StudyError, match="other groups of images"):
        run_study(more)
    write(4)
    assert len(run_study(more).points) == 3


def test_a_leak_that_is_allowed_is_told_beside_the_front_and_in_the_card(divided, tmp_path, capsys):
    shutil.copy(divided / "Train" / "cat" / "0.png", divided / "out" / "cat" / "copy.png")
    own = {"path": str(divided), "split": {"train": "Train", "validation": "val", "test": "out"}, "allow_leaks": True}
    study = run_study(study_of(own, f"sqlite:///{tmp_path}/studies.db"))
    show_front(study)
    assert "have copies in another one" in "".join(capsys.readouterr().out.split("\n"))
    assert any("have copies in another one" in line for line in json.loads(front_json(study))["notices"])
    export(study, study.points[0], study.config, tmp_path / "out")
    assert "have copies in another one" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"come with a split, which is kept, .*: give one seed"):
        compare(study.config, [2], ["hscc"], [0, 1], 0, tmp_path / "comparison")


@pytest.mark.parametrize(
    ("given", "told"), [("all", []), ("no validation", ["may have been trained"]), ("none", ["not known"])]
)
def test_weights_from_elsewhere_are_known_not_to_know_the_test_part_of_a_split_that_is_given(
    divided, tmp_path, given, told
):
    split = {"train": "Train", "validation": "val", "test": "out"}
    if given == "no validation":
        split["validation"] = None
        shutil.rmtree(divided / "val")
    own = {"path": str(divided), **({"class_level": 2} if given == "none" else {"split": split})}
    config = study_of(own, f"sqlite:///{tmp_path}/studies.db")
    torch.save(build_network("digits_cnn", 2, 8).state_dict(), tmp_path / "weights.pt")
    study = run_study(config.with_paths(None, tmp_path / "weights.pt").model_copy(update={"trials": 1}))
    lines = [line for line in study.record.notices if "were trained" in line or "been trained" in line]
    assert [word in line for word, line in zip(told, lines, strict=True)] == [True] * len(told)


def test_a_study_of_a_users_own_data_set_has_the_trials_of_the_folders_study(factory, tmp_path):
    trials = []
    for number, data in enumerate(({"path": factory}, {"source": "python", "factory": "own_data:parts"})):
        study = run_study(study_of(data, f"sqlite:///{tmp_path}/{number}.db"))
        trials.append([(point.sample, point.metrics) for point in study.points])
    assert trials[0] == trials[1]
    assert len(trials[0]) == 2


def test_a_study_of_floating_point_inputs_runs(factory, tmp_path):
    data = {"source": "python", "factory": "own_data:as_floats", "classes": ["1", "0"]}
    study = run_study(study_of(data, f"sqlite:///{tmp_path}/studies.db"))
    assert (len(study.points), study.record.classes) == (2, ("1", "0"))
    export(study, study.points[0], study.config, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Takes inputs as the study's data set gives them, float32" in card
    assert verify(tmp_path / "out").gaps.keys() == {"model.onnx", "model.safetensors"}
