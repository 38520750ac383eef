import numpy as np
import pytest
from PIL import Image

from hscc_search.config import DataConfig
from hscc_search.data import Dataset, load_dataset, notices, split
from hscc_search.data.notices import empty_line


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))


def dataset_of(counts, contrasts=None):
    labels = np.repeat(np.arange(len(counts)), counts)
    return Dataset(
        images=np.zeros((len(labels), 3, 1, 1), np.uint8),
        labels=labels,
        classes=tuple(f"class {label}" for label in range(len(counts))),
        copies=np.arange(len(labels)),
        groups=np.arange(len(labels)),
        fingerprint="",
        contrasts=np.full(len(labels), 255, np.uint8) if contrasts is None else np.array(contrasts, np.uint8),
        names=tuple(f"{index}.png" for index in range(len(labels))),
    )


def told(dataset):
    return notices(dataset, split(dataset, 0.2, 0.2, seed=0))


def test_nothing_is_told_of_a_sound_set():
    assert told(dataset_of([25, 25])) == ()
    assert told(dataset_of([25, 1000])) == ()  # uneven, but each class can be measured


def test_classes_too_small_to_measure_are_told_with_their_counts():
    (line,) = told(dataset_of([25, 15, 3]))
    assert "class 1 (3 and 3), class 2 (1 and 1)" in line
    assert "class 0" not in line
    assert "fewer than 5" in line
    (line,) = told(dataset_of([10] * 9))
    assert line.endswith("class 4 (2 and 2) and 4 more")


def test_nearly_empty_images_are_counted_with_an_example():
    (line,) = told(dataset_of([25, 25], [255] * 20 + [15, 0] + [16] * 28))
    assert line.startswith("nearly empty images")
    assert line.endswith("2 of 50 (20.png, 21.png)")


def test_an_example_of_any_name_is_one_line():
    assert empty_line([0], ["a\n\x1b[31m\udcff.png"])[0].endswith(r"1 of 1 (a\n\x1b[31m\xff.png)")


def test_a_folder_is_told_of_with_what_was_skipped(image_folder):
    folder = image_folder({"cat": 25, "dog": 25})
    for name, shade in (("black", 2), ("white", 250)):
        Image.new("RGB", (40, 40), (shade, shade, shade)).save(folder / "dog" / f"{name}.png")
    (folder / ".DS_Store").touch()
    for _ in range(2):  # read, and from the cache
        dataset = load_dataset(DataConfig(path=folder, image_size=8, validation=0.2, test=0.2))
        skipped, empty = told(dataset)
        assert "1 hidden (.DS_Store)" in skipped
        assert "2 of 52 (" in empty
        assert "dog/black.png" in empty
        assert "dog/white.png" in empty
