import shutil

import numpy as np
import pytest
from PIL import Image

from hscc_search.config import DataConfig
from hscc_search.data import check_folder, load_dataset
from hscc_search.errors import DataError, HsccError

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
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("images", "labels", "groups")
    )


@pytest.mark.parametrize("use", [read, check_folder])
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
    assert [path.name for path, _ in check_folder(folder).unreadable] == ["gone.png"]
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
