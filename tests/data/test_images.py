import gc
import os
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hscc_search.cache import remove_entry
from hscc_search.config import DataConfig
from hscc_search.data import check_images, load_dataset, split
from hscc_search.errors import DataError, DiskFullError, HsccError, HsccWarning

QUADRANTS = np.zeros((20, 30, 3), np.uint8)
QUADRANTS[:10, :15], QUADRANTS[:10, 15:], QUADRANTS[10:, :15] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))


def read(folder, image_size=16):
    """The data set of a folder, and the number of images that were decoded for it."""
    steps = []
    dataset = load_dataset(DataConfig(path=folder, image_size=image_size), steps.append)
    return dataset, len(steps)


def same(first, second):
    return first.fingerprint == second.fingerprint and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("images", "labels", "copies")
    )


@pytest.mark.parametrize("use", [read, lambda folder: check_images(DataConfig(path=folder))], ids=["read", "check"])
@pytest.mark.parametrize("layout", ["missing", "empty", "outside"])
def test_a_folder_without_class_folders_is_refused_by_name(tmp_path, use, layout):
    folder = tmp_path / layout
    if layout != "missing":
        folder.mkdir()
    if layout == "outside":
        Image.fromarray(QUADRANTS).save(folder / "image.png")
    with pytest.raises(DataError, match=layout):
        use(folder)


def test_a_single_class_is_refused_by_name(image_folder):
    with pytest.raises(DataError, match="only one class, 'cat'"):
        read(image_folder({"cat": 3}))


def test_a_link_to_nothing_is_an_unreadable_image(image_folder):
    folder = image_folder({"cat": 2, "dog": 2})
    (folder / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    assert [path.name for path, _ in check_images(DataConfig(path=folder)).unreadable] == ["gone.png"]
    with pytest.raises(DataError, match=r"gone\.png"):
        read(folder)


def test_images_are_decoded_once_per_size(image_folder):
    folder = image_folder({"cat": 4, "dog": 4})
    first, decoded = read(folder)
    again, decoded_again = read(folder)
    assert (decoded, decoded_again) == (8, 0)
    assert same(first, again)
    larger, decoded_larger = read(folder, image_size=24)
    assert decoded_larger == 8
    assert larger.fingerprint == first.fingerprint


def test_an_interrupted_reading_leaves_nothing_in_the_cache(image_folder, tmp_path):
    folder = image_folder({"cat": 4, "dog": 4})
    whole = (folder / "dog" / "3.png").read_bytes()
    (folder / "dog" / "3.png").write_bytes(whole[:60])
    with pytest.raises(DataError):
        read(folder)
    assert list((tmp_path / "cache" / "pixels").iterdir()) == []
    (folder / "dog" / "3.png").write_bytes(whole)
    assert read(folder)[1] == 8


def flip(path, share):
    """Flip one bit at a share of a file's length."""
    damaged = bytearray(path.read_bytes())
    damaged[int(share * len(damaged))] ^= 4
    path.write_bytes(damaged)


DAMAGES = {
    "a pixel": lambda entry: flip(entry / "images.npy", 0.9),
    "a group": lambda entry: flip(entry / "near.npy", 0.95),
    "a contrast": lambda entry: flip(entry / "contrasts.npy", 0.95),
    "a header": lambda entry: flip(entry / "shape.npy", 0.1),
    "no groups": lambda entry: (entry / "exact.npy").unlink(),
    "emptied": lambda entry: os.truncate(entry / "images.npy", 0),
    "of version 0.1.0": lambda entry: (entry / "checksums.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_pixels_that_are_not_what_was_written_are_decoded_again(image_folder, tmp_path, damage):
    folder = image_folder({"cat": 4, "dog": 4})
    first, _ = read(folder)
    (entry,) = (tmp_path / "cache" / "pixels").iterdir()
    pixels = first.images.copy()
    damage(entry)
    again, decoded = read(folder)
    assert (decoded, read(folder)[1]) == (8, 0)
    assert np.array_equal(again.images, pixels)
    assert same(again, read(folder)[0])


def test_pixels_stay_in_the_cache_while_they_are_used(image_folder, tmp_path):
    dataset, _ = read(image_folder({"cat": 4, "dog": 4}))
    (entry,) = (tmp_path / "cache" / "pixels").iterdir()
    assert not remove_entry(entry)
    del dataset
    gc.collect()
    assert remove_entry(entry)


def test_with_a_cache_that_cannot_be_written_to_the_images_are_the_same(image_folder, small_disk, monkeypatch):
    folder = image_folder({"cat": 4, "dog": 4})
    expected, _ = read(folder)
    monkeypatch.setenv("HSCC_CACHE", str(small_disk(100, "ro")))
    with pytest.warns(HsccWarning, match="cannot be written to"):
        dataset, decoded = read(folder)
    assert decoded == 8
    assert same(dataset, expected)


def test_a_disk_without_room_is_named_before_anything_is_decoded(image_folder, small_disk, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(small_disk(40)))
    steps = []
    with pytest.raises(DiskFullError, match=r"8 decoded images: 0\.1 MB are needed, and 0\.0 MB are free"):
        load_dataset(DataConfig(path=image_folder({"cat": 4, "dog": 4}), image_size=64), steps.append)
    assert steps == []


def test_a_cache_that_cannot_be_written_is_named(image_folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(HsccError, match="HSCC_CACHE"):
        read(image_folder({"cat": 2, "dog": 2}))


def test_neither_names_nor_folders_of_files_matter(image_folder, tmp_path, monkeypatch):
    folder = image_folder({"cat": 5, "dog": 5})
    before, _ = read(folder)
    (folder / "cat" / "deeper").mkdir()
    (folder / "cat" / "0.png").rename(folder / "cat" / "deeper" / "zebra.png")
    (folder / "dog" / "4.png").rename(folder / "dog" / "a.png")
    shutil.move(folder, tmp_path / "elsewhere")
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "second cache"))
    after, decoded = read(tmp_path / "elsewhere")
    assert decoded == 10
    assert same(before, after)


@pytest.mark.parametrize("change", ["content", "class", "removed"])
def test_the_fingerprint_tells_other_images_apart(image_folder, change):
    folder = image_folder({"cat": 3, "dog": 3})
    before, _ = read(folder)
    path = folder / "cat" / "0.png"
    if change == "content":
        Image.fromarray(QUADRANTS).save(path)
    elif change == "class":
        path.rename(folder / "dog" / "3.png")
    else:
        path.unlink()
    assert read(folder)[0].fingerprint != before.fingerprint


def test_pixels_and_labels_belong_together(tmp_path):
    for index, value in enumerate((10, 60, 110, 160)):
        path = tmp_path / "images" / f"class {value}" / f"{9 - index}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20, 20), (value, value + 1, value + 2)).save(path)
    dataset, _ = read(tmp_path / "images", image_size=8)
    for image, label in zip(dataset.images, dataset.labels, strict=True):
        value = int(dataset.classes[label].split()[1])
        assert [np.unique(channel).tolist() for channel in image] == [[value], [value + 1], [value + 2]]


def test_the_digits_need_no_folder():
    dataset = load_dataset(DataConfig(source="digits", image_size=16))
    assert dataset.images.shape == (1797, 3, 16, 16)
    assert dataset.classes == tuple("0123456789")


def test_what_a_copy_is_is_judged_anew_from_the_same_cache(tmp_path):
    shades = {"red": (200, 40, 40), "green": (40, 200, 40)}
    for name, colour in shades.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for index, side in enumerate((64, 64, 128)):
            image = Image.new("RGB", (64, 64), "white")
            ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=colour)
            image.resize((side, side)).save(tmp_path / "images" / name / f"{index}.png")
    counts, decoded, judgements = {}, [], {}
    for kind in ("near", "shape", "exact", "none"):
        steps = []
        dataset = load_dataset(DataConfig(path=tmp_path / "images", image_size=16, copies=kind), steps.append)
        counts[kind], judgements[kind] = len(set(dataset.copies.tolist())), dataset.judgement
        decoded.append(len(steps))
    assert counts == {"near": 2, "shape": 1, "exact": 4, "none": 6}
    assert decoded == [6, 0, 0, 0]
    assert judgements["shape"] == ""
    assert len(set(judgements.values())) == 4


def test_sixty_red_and_sixty_green_discs_can_be_split(tmp_path):
    generator = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("green", (40, 200, 40))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(60):
            image = Image.new("RGB", (64, 64), "white")
            shade = tuple((np.array(colour) + generator.integers(-30, 31, 3)).tolist())
            ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=shade)
            image.save(tmp_path / "images" / name / f"{index}.png")
    data = DataConfig(path=tmp_path / "images", image_size=16)
    assert len(split(load_dataset(data), 0.15, 0.15, 0).validation) >= 14
    with pytest.raises(DataError, match=r"its 60 images are 1 groups of copies; .*data\.copies"):
        split(load_dataset(data.model_copy(update={"copies": "shape"})), 0.15, 0.15, 0)
    different = load_dataset(data.model_copy(update={"copies": "none"}))
    assert len(set(different.copies.tolist())) == 120
    assert len(split(different, 0.15, 0.15, 0).validation) == 18


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/cat/._0.png", "cat/.DS_Store"])
def test_what_is_hidden_changes_no_class_and_no_fingerprint(image_folder, hidden):
    folder = image_folder({"cat": 3, "dog": 3})
    before, _ = read(folder)
    (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "cat" / "0.png", folder / hidden)
    after, _ = read(folder)
    assert same(before, after)
    assert (before.notes, len(after.notes)) == ((), 1)


def test_the_class_level_belongs_to_a_study(image_folder):
    folder = image_folder({"2024/cat": 3, "2024/dog": 2, "2025/cat": 4})
    with pytest.raises(DataError, match=r"data\.class_level: 1 or 2"):
        read(folder)
    by_animal = load_dataset(DataConfig(path=folder, image_size=8, class_level=2))
    assert (by_animal.classes, np.bincount(by_animal.labels).tolist()) == (("cat", "dog"), [7, 2])
    by_year = load_dataset(DataConfig(path=folder, image_size=8, class_level=1))
    assert (by_year.classes, np.bincount(by_year.labels).tolist()) == (("2024", "2025"), [5, 4])


def test_a_folder_around_all_classes_is_one_class_and_refused_with_the_way_out(image_folder):
    with pytest.raises(DataError, match=r"only one class, 'pets', .*data\.class_level: 2"):
        read(image_folder({"pets/cat": 3, "pets/dog": 2}))
