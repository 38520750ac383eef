import hashlib
import io
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from hscc_search.config import DataConfig
from hscc_search.data import copies, load_dataset
from hscc_search.data.copies import NEAR_BITS, copy_groups, near_pairs, perceptual_hash
from hscc_search.data.splits import split_indices

# Hashes of images, each described by one of three patterns and the bits in which it differs from that.
PATTERNS = np.random.default_rng(0).random((3, 256)) < 0.5
FLIPPED = st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 15), max_size=13)), max_size=14)


@pytest.fixture(scope="module")
def photographs():
    return [
        Image.fromarray(photograph[top : top + 200, left : left + 200])
        for photograph in load_sample_images().images
        for top in (0, 200)
        for left in (0, 200, 400)
    ]


def hashes_of(described):
    hashes = [PATTERNS[pattern] ^ np.isin(np.arange(256), list(bits)) for pattern, bits in described]
    return np.stack(hashes) if hashes else np.empty((0, 256), bool)


def as_jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        Image.Image.copy,
        lambda image: as_jpeg(image, 60),
        lambda image: as_jpeg(image, 75),
        lambda image: as_jpeg(image, 90),
        lambda image: image.resize((100, 100)),
        lambda image: image.resize((512, 512)),
        lambda image: image.resize((200, 150)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.7),
        lambda image: ImageEnhance.Brightness(image).enhance(1.05),
        lambda image: as_jpeg(image.resize((150, 150)), 75),
    ],
    ids=["exact", "q60", "q75", "q90", "smaller", "larger", "squeezed", "darker", "brighter", "resized and encoded"],
)
def test_a_changed_copy_joins_its_original_and_no_other_image(photographs, change):
    images = photographs + [change(image) for image in photographs]
    groups = copy_groups(np.stack([perceptual_hash(image) for image in images]))
    originals, changed = np.split(groups, 2)
    assert len(set(originals.tolist())) == len(photographs)
    np.testing.assert_array_equal(originals, changed)


@settings(deadline=None)
@given(FLIPPED, st.integers(1, 6))
def test_near_pairs_are_all_pairs_within_the_threshold(described, rows):
    hashes = hashes_of(described)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "_ROWS_AT_ONCE", rows)
        pairs = near_pairs(hashes)
    expected = [
        [first, second]
        for first in range(len(hashes))
        for second in range(first + 1, len(hashes))
        if np.sum(hashes[first] != hashes[second]) <= NEAR_BITS
    ]
    assert pairs.tolist() == expected
    assert pairs.shape == (len(expected), 2)


def test_the_threshold_itself_is_near_and_one_bit_more_is_not():
    hashes = hashes_of([(0, ()), (0, range(NEAR_BITS)), (1, ()), (1, range(NEAR_BITS + 1))])
    assert near_pairs(hashes).tolist() == [[0, 1]]


def test_groups_reach_over_chains_of_copies():
    hashes = hashes_of([(0, ()), (1, ()), (0, range(10)), (0, range(20)), (2, ())])
    assert near_pairs(hashes).tolist() == [[0, 2], [2, 3]]
    groups = copy_groups(hashes)
    assert groups[0] == groups[2] == groups[3]
    assert len(set(groups.tolist())) == 3


@pytest.fixture(scope="module")
def mri_files(mri):
    """Paths of all files by their SHA-256."""
    by_digest = defaultdict(list)
    for path in sorted(mri.rglob("*.jpg")):
        by_digest[hashlib.sha256(path.read_bytes()).hexdigest()].append(path)
    return by_digest


def test_byte_copies_of_the_real_set_are_one_group_and_never_on_two_sides(mri, mri_files, tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "cache"))
    copied = [paths for paths in mri_files.values() if len(paths) > 1]
    assert (len(copied), sum(len(paths) - 1 for paths in copied)) == (166, 237)
    single = [paths[0] for paths in mri_files.values() if len(paths) == 1][::40]
    for path in [*single, *(path for paths in copied for path in paths)]:
        link = tmp_path / "images" / path.relative_to(mri)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    dataset = load_dataset(DataConfig(path=tmp_path / "images", image_size=8))
    digests = sorted(
        (path.parent.name, digest)
        for digest, paths in mri_files.items()
        for path in paths
        if len(paths) > 1 or path in single
    )
    groups_of = defaultdict(set)
    for (_, digest), group in zip(digests, dataset.groups.tolist(), strict=True):
        groups_of[digest].add(group)
    assert all(len(groups) == 1 for groups in groups_of.values())
    assert len(set(dataset.groups.tolist())) > 200
    for seed in range(3):
        parts = split_indices(dataset.labels, dataset.groups, (0.7, 0.15, 0.15), seed)
        sides = [{digests[index][1] for index in part} for part in parts]
        assert sum(map(len, sides)) == len(set.union(*sides))
