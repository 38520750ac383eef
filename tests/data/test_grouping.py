from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from hscc_search.config import DataConfig
from hscc_search.data import check_images, load_dataset, split
from hscc_search.data.grouping import grouped, guess_groups, in_order, linked, numbered
from hscc_search.data.listing import Listed
from hscc_search.errors import DataError

NUMBERS = st.integers(0, 8)


def listed_as(*places):
    return [Listed(Path("images") / place, place.split("/")[0], place) for place in places]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30))
def test_linked_images_are_those_that_a_chain_of_either_relation_reaches(pairs):
    """The oracle joins sets until nothing changes."""
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    sets = [{index} for index in range(len(pairs))]
    for numbers in (first, second):
        for index, other in np.argwhere(numbers[:, None] == numbers):
            if sets[index] is not sets[other]:
                sets[index] |= sets[other]
                for member in sets[index]:
                    sets[member] = sets[index]
    found = linked(first, second)
    for index in range(len(pairs)):
        assert set(np.flatnonzero(found == found[index]).tolist()) == sets[index]
    np.testing.assert_array_equal(found, in_order(found))


@given(st.lists(NUMBERS, max_size=30))
def test_groups_of_their_own_change_no_number_of_copies(numbers):
    """Splits are drawn by these numbers: without groups they are those of the copies."""
    copies = in_order(np.array(numbers, np.int64))
    np.testing.assert_array_equal(linked(copies, np.arange(len(copies))), copies)
    assert list(dict.fromkeys(copies.tolist())) == list(range(len(set(numbers))))


def test_an_expression_names_groups_by_its_parentheses_or_by_all_that_it_matches():
    images = listed_as("cat/p1_1.png", "cat/p1_2.png", "dog/p2_1.png")
    assert [image.group for image in grouped(images, r"/(p\d+)_")] == ["p1", "p1", "p2"]
    assert [image.group for image in grouped(images, r"p\d+")] == ["p1", "p1", "p2"]
    assert numbered([image.group for image in grouped(images, r"p\d+")]).tolist() == [0, 0, 1]
    assert numbered([None, None]).tolist() == [0, 1]


@pytest.mark.parametrize("expression", [r"/(p\d+)_", r"p(\d+)?", r"(q)?"])
def test_paths_without_a_group_are_counted_with_examples(expression):
    images = listed_as("cat/p1_1.png", "cat/other.png", "dog/more.png")
    with pytest.raises(DataError, match=r"in [23] of 3 paths \(cat/.*dog/more\.png\)"):
        grouped(images, expression)


@pytest.mark.parametrize(
    ("names", "example"),
    [
        ("p{patient:02}_s{slice}.png", "p0"),
        ("{patient:03}-{slice}.png", "00"),
        ("patient {patient}/slice{slice}.png", "patient "),
        ("scan{patient}/axial/{slice}.png", "scan"),
        ("{patient}/{slice}.png", ""),
        ("IM-{patient:04}-{slice:04}.png", "IM-0"),
        ("s{patient} ({slice}).png", "s"),
    ],
)
def test_names_that_look_like_patients_are_told_with_an_expression_that_groups_them(names, example):
    places = [f"ill/{names.format(patient=patient, slice=slice)}" for patient in range(6) for slice in range(4)]
    guess = guess_groups(listed_as(*places))
    assert (guess.groups, guess.example.startswith(example)) == (6, True)
    found = [image.group for image in grouped(listed_as(*places), guess.expression)]
    assert found == [group for group in found[::4] for _ in range(4)]


@pytest.mark.parametrize("names", ["{}.png", "image ({}).png", "Te-gl_{:04}.jpg", "cat.{}.jpg", "2024_{}.png"])
def test_names_of_single_images_look_like_no_patients(names):
    classes = ("10", "20")
    assert (
        guess_groups(listed_as(*(f"{name}/{names.format(index)}" for name in classes for index in range(30)))) is None
    )


def patients(folder, generator, number, slices=6):
    """Images of patients that look alike within one, whose class, drawn with a coin, no image shows."""
    for patient in range(number):
        own = generator.integers(0, 256, (8, 8))
        for index in range(slices):
            mixed = 0.6 * own + 0.4 * generator.integers(0, 256, (8, 8))
            path = folder / ("ill" if patient % 2 else "healthy") / f"p{patient:03}_s{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mixed.astype(np.uint8)).resize((32, 32)).save(path)


def test_a_split_by_image_leaks_and_one_by_patient_measures_the_truth(tmp_path, monkeypatch):
    """Nothing tells the classes apart, so that the true accuracy is a half; the nearest image knows its patient."""
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))
    patients(tmp_path / "images", np.random.default_rng(0), 120)
    accuracy, error = {}, {}
    for groups in (None, r"p\d+"):
        data = DataConfig(path=tmp_path / "images", image_size=8, groups=groups, validation=0.3)
        dataset = load_dataset(data)
        parts = split(dataset, data.validation, data.test, 0)
        train, measured = (np.asarray(part.images).reshape(len(part), -1) for part in (parts.train, parts.validation))
        right = KNeighborsClassifier(1).fit(train, parts.train.labels).predict(measured) == parts.validation.labels
        by_group = np.array([right[parts.validation.groups == group].mean() for group in set(parts.validation.groups)])
        accuracy[groups], error[groups] = right.mean(), by_group.std() / np.sqrt(len(by_group))
        warned = check_images(data).notes
        assert [r"data.groups: '([^/]*\d[^/]*?)" in note for note in warned] == ([True] if groups is None else [])
        assert (dataset.notes == warned, len(set(dataset.groups.tolist()))) == (True, 720 if groups is None else 120)
    assert accuracy[None] > 0.95
    assert abs(accuracy[r"p\d+"] - 0.5) < 2 * error[r"p\d+"] < 0.25
