import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.data import Dataset, Part, split
from hscc_search.data.splits import split_indices
from hscc_search.errors import DataError

SHARES = st.tuples(st.floats(0.01, 0.49), st.floats(0.01, 0.49)).map(lambda two: (1 - sum(two), *two))
SEEDS = st.integers(0, 2**32 - 1)
# Pairs of class and group, one per image; groups may hold several classes.
MIXED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), min_size=1, max_size=80)
# Pairs of class and size, one per group; each group holds one class.
PURE = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=60)


def dataset_of(labels, copies=None, groups=None, sides=None):
    labels = np.array(labels, np.int64)
    return Dataset(
        images=np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=1),
        labels=labels,
        classes=tuple(f"class {label}" for label in range(labels.max() + 1)),
        copies=np.arange(len(labels)) if copies is None else np.array(copies, np.int64),
        groups=np.arange(len(labels)) if groups is None else np.array(groups, np.int64),
        sides=sides,
        fingerprint="",
        contrasts=np.full(len(labels), 255, np.uint8),
        names=tuple(map(str, range(len(labels)))),
    )


@settings(deadline=None)
@given(MIXED, SHARES, SEEDS)
def test_every_image_is_in_one_part_and_every_group_on_one_side(images, shares, seed):
    labels, groups = np.array(images, np.int64).T
    parts = split_indices(labels, groups, shares, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    sides = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, sides)) == len(set(groups.tolist()))
    assert all(np.all(np.diff(part) > 0) for part in parts)


@settings(deadline=None)
@given(PURE, SHARES, SEEDS)
def test_class_shares_are_met_up_to_the_largest_group(described, shares, seed):
    """A part only receives a group while it lacks images of the group's class, so it exceeds its share by less than
    one group. What it lacks is what the two other parts have in excess.
    """
    labels = np.repeat([label for label, _ in described], [size for _, size in described])
    groups = np.repeat(np.arange(len(described)), [size for _, size in described])
    parts = split_indices(labels, groups, shares, seed)
    for label in np.unique(labels):
        largest = max(size for own, size in described if own == label)
        for part, share in zip(parts, shares, strict=True):
            surplus = np.sum(labels[part] == label) - share * np.sum(labels == label)
            assert -2 * largest - 1e-6 < surplus < largest + 1e-6


@settings(deadline=None)
@given(MIXED, SHARES, SEEDS)
def test_a_split_depends_on_labels_groups_shares_and_seed_alone(images, shares, seed):
    labels, groups = np.array(images, np.int64).T
    first = split_indices(labels, groups, shares, seed)
    again = split_indices(labels.copy(), groups.copy(), shares, seed)
    for part, same_part in zip(first, again, strict=True):
        np.testing.assert_array_equal(part, same_part)


def test_other_seeds_split_otherwise():
    labels = np.arange(60) % 3
    tests = {tuple(split_indices(labels, np.arange(60), (0.7, 0.15, 0.15), seed)[2]) for seed in range(10)}
    assert len(tests) == 10


def test_parts_hold_the_images_of_their_labels():
    dataset = dataset_of(np.arange(100) % 2)
    parts = split(dataset, 0.2, 0.1, seed=3)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [70, 20, 10]
    for part in (parts.train, parts.validation, parts.test):
        np.testing.assert_array_equal(part.labels, np.asarray(part.images)[:, 0, 0, 0] % 2)
        assert np.bincount(part.labels).tolist() == [len(part) / 2] * 2


@pytest.mark.parametrize(
    ("labels", "groups"),
    [([0] * 20 + [1] * 2, range(22)), ([0] * 20 + [1] * 9, [*range(20), *[20] * 9])],
    ids=["two images", "nine copies of one image"],
)
def test_a_class_that_cannot_be_in_all_parts_is_refused_by_name(labels, groups):
    with pytest.raises(
        DataError,
        match=r"'class 1' has too few .* (validation|test) part: its \d images are \d groups of copies; .*data\.copies",
    ):
        split(dataset_of(labels, list(groups)), 0.15, 0.15, seed=0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 60), SEEDS)
def test_a_subset_holds_each_class_in_proportion(labels, count, seed):
    """Of each class the same share is drawn, to within half an image. That share differs from ``count`` over all images
    by at most half an image per class.
    """
    labels = np.array(labels)
    part = Part(np.arange(len(labels)), labels, np.arange(len(labels)))
    subset = part.subset(count, seed)
    assert len(subset) == min(count, len(part))
    assert np.all(np.diff(subset.images) > 0)
    np.testing.assert_array_equal(subset.labels, labels[subset.images])
    present = np.unique(labels)
    for label in present:
        share = np.mean(labels == label)
        assert abs(np.sum(subset.labels == label) - share * len(subset)) <= 0.5 + share * len(present) / 2 + 1e-6


def test_a_subset_is_drawn_by_its_seed():
    part = Part(np.arange(200), np.arange(200) % 4, np.arange(200))
    np.testing.assert_array_equal(part.subset(40, 1).images, part.subset(40, 1).images)
    assert not np.array_equal(part.subset(40, 1).images, part.subset(40, 2).images)
