import shutil

import numpy as np
import pytest
from own_images import divided_folder, table_of

from hscc_search.config import DataConfig, StudyConfig
from hscc_search.data import load_dataset, split
from hscc_search.data.sources import list_images
from hscc_search.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))


def data(**keys):
    return DataConfig.model_validate({"image_size": 8, **keys})


def parts_of(config):
    dataset = load_dataset(config)
    return dataset, split(dataset, config.validation, config.test, config.split_seed)


def same(first, second):
    return all(
        np.array_equal(getattr(one, name), getattr(two, name))
        for one, two in zip(vars(first).values(), vars(second).values(), strict=True)
        for name in ("images", "labels", "groups")
    )


def test_a_table_gives_the_pixels_and_the_split_of_the_folder(image_folder, tmp_path):
    folder = image_folder({"cat": 40, "dog": 30})
    by_folder, parts = parts_of(data(path=folder))
    by_table, parts_by_table = parts_of(data(source="table", path=table_of(folder, tmp_path / "images.csv")))
    assert (by_table.fingerprint, by_table.judgement) == (by_folder.fingerprint, by_folder.judgement)
    assert same(parts, parts_by_table)


def test_groups_of_a_table_and_of_paths_are_the_same(image_folder, tmp_path):
    folder = image_folder({"cat": 40, "dog": 40})
    for path in folder.rglob("*.png"):
        path.rename(path.with_name(f"p{int(path.stem) // 4}_{path.name}"))  # a patient has images of both classes
    by_path, parts = parts_of(data(path=folder, groups=r"p\d+"))
    table = table_of(folder, tmp_path / "images.csv", group=lambda image: image.name.partition("_")[0])
    by_table, parts_by_table = parts_of(data(source="table", path=table))
    assert by_path.judgement == by_table.judgement != ""
    assert same(parts, parts_by_table)
    sides = [set(part.groups.tolist()) for part in vars(parts).values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 10


@pytest.fixture
def divided(image_folder):
    return divided_folder(image_folder)


def test_a_split_of_folders_is_kept_as_a_table_with_it_is(divided, tmp_path):
    names = {"train": "Train", "validation": "val", "test": "out"}
    by_folder, parts = parts_of(data(path=divided, split=names))
    part_of = {name: part for part, name in names.items()}
    table = table_of(divided, tmp_path / "images.csv", split=lambda image: part_of[image.parent.parent.name])
    by_table, parts_by_table = parts_of(data(source="table", path=table))
    assert by_folder.judgement == by_table.judgement != ""
    assert same(parts, parts_by_table)
    assert [len(part) for part in vars(parts).values()] == [60, 16, 20]


def test_a_validation_part_is_drawn_from_train_and_the_test_part_stays(divided):
    shutil.rmtree(divided / "val")
    folders = {"train": "Train", "test": "./out/"}
    dataset, parts = parts_of(data(path=divided, split=folders, validation=0.2, test=0.2))
    assert [len(part) for part in vars(parts).values()] == [44, 16, 20]  # 0.2 to 0.6, as the shares say
    np.testing.assert_array_equal(np.asarray(parts.test.images), dataset.images[dataset.sides == 2])
    _, other = parts_of(data(path=divided, split=folders, validation=0.2, test=0.2, split_seed=1))
    assert not np.array_equal(parts.validation.images, other.validation.images)
    assert np.array_equal(parts.test.images, other.test.images)


def test_folders_that_a_split_leaves_out_or_lacks_are_named(divided):
    with pytest.raises(DataError, match=r"16 images below .* in none of the folders of data\.split \(val/cat/0\.png"):
        list_images(data(path=divided, split={"train": "Train", "test": "out"}))
    with pytest.raises(DataError, match=r"data\.split\.validation: no images below .*/valid: "):
        shutil.rmtree(divided / "val")
        list_images(data(path=divided, split={"train": "Train", "validation": "valid", "test": "out"}))


def test_a_table_without_a_test_part_is_refused(image_folder, tmp_path):
    table = table_of(image_folder({"cat": 3, "dog": 3}), tmp_path / "images.csv", split=lambda image: "train")
    with pytest.raises(DataError, match=r"no image of table .* is in the test part"):
        list_images(data(source="table", path=table))


def test_copies_across_a_split_are_counted_and_refused_unless_they_are_allowed(divided):
    shutil.copy(divided / "Train" / "cat" / "0.png", divided / "out" / "cat" / "copy.png")
    own = {"path": divided, "split": {"train": "Train", "validation": "val", "test": "out"}}
    counts = "1 of 60 images of the train part, 1 of 21 images of the test part have copies in another one"
    line = rf"{counts} \(such as .*0\.png"
    with pytest.raises(DataError, match=rf"{line}.*data\.allow_leaks: true"):
        load_dataset(data(**own))
    with pytest.raises(DataError, match=r"groups, \d+ images, stand in two"):
        load_dataset(data(**own, groups=r"(\d|copy)\.png"))
    dataset, parts = parts_of(data(**own, allow_leaks=True))
    assert "have copies in another one" in dataset.notes[0]
    assert [len(part) for part in vars(parts).values()] == [60, 16, 21]
    assert load_dataset(data(**own, copies="none")).notes == ()


def test_copies_within_a_part_that_was_given_stay_and_are_drawn_again_together(divided):
    shutil.copy(divided / "out" / "cat" / "0.png", divided / "out" / "cat" / "copy.png")
    _, parts = parts_of(data(path=divided, split={"train": "Train", "validation": "val", "test": "out"}))
    assert (len(parts.test), len(set(parts.test.groups.tolist()))) == (21, 20)


def test_classes_are_in_the_order_that_the_study_says(image_folder):
    folder = image_folder({"cat": 10, "dog": 20, "emu": 10})
    alphabetical, ordered = (load_dataset(data(path=folder, classes=order)) for order in (None, ("emu", "cat", "dog")))
    assert (alphabetical.classes, ordered.classes) == (("cat", "dog", "emu"), ("emu", "cat", "dog"))
    np.testing.assert_array_equal(np.array([1, 2, 0])[alphabetical.labels], ordered.labels)
    np.testing.assert_array_equal(alphabetical.images, ordered.images)


def test_classes_that_the_images_do_not_have_are_named(image_folder):
    folder = image_folder({"cat": 2, "dog": 2, "emu": 2})
    with pytest.raises(
        DataError, match=r"data\.classes names cow, which no image has and lacks dog, emu: .*cat, dog, emu"
    ):
        load_dataset(data(path=folder, classes=("cat", "cow")))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "digits", "groups": "a"}, "leave groups out"),
        ({"path": "x", "groups": "("}, "no regular expression"),
        ({"path": "x", "groups": "a", "columns": {"group": "who"}}, "leave one out"),
        ({"source": "table", "path": "x.csv", "split": {"train": "a", "test": "b"}}, r"say columns\.split"),
        ({"source": "table"}, "needs a path"),
        ({"source": "table", "path": "x.csv", "class_level": 2}, "leave class_level out"),
        ({"path": "x", "split": {"train": "a", "test": "./a/"}}, "a folder of its own"),
        ({"path": "x", "split": {"train": "a", "test": "../b"}}, "folders below"),
        ({"path": "x", "split": {"train": "a", "test": "b/c"}}, "equally deep"),
        ({"path": "x", "split": {"train": "a", "test": "b"}, "class_level": 1}, "leave it out"),
        ({"path": "x", "split": {"train": "a"}}, r"data\.split\.test: missing"),
        ({"path": "x", "classes": ["a", "b", "a"]}, "every class once"),
    ],
)
def test_keys_that_do_not_fit_are_refused_in_one_line(keys, message):
    with pytest.raises(ConfigError, match=message):
        StudyConfig.from_tree({"name": "mine", "model": {"name": "digits_cnn"}, "data": keys}, "study")
