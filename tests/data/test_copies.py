import hashlib
import io
import time
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from hscc_search.config import DataConfig
from hscc_search.data import copies, load_dataset
from hscc_search.data.copies import NEAR_BITS, Look, copy_groups, copy_pairs, look_of, near_pairs
from hscc_search.data.splits import split_indices

# Hashes of images, each described by one of three patterns and the bits in which it differs from that.
PATTERNS = np.random.default_rng(0).random((3, 256)) < 0.5
FLIPPED = st.lists(
    st.tuples(st.integers(0, 2), st.sets(st.integers(0, 15) | st.integers(0, 255), max_size=16)), max_size=14
)


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
    groups = copy_groups([look_of(image) for image in images])["near"]
    originals, changed = np.split(groups, 2)
    assert len(set(originals.tolist())) == len(photographs)
    np.testing.assert_array_equal(originals, changed)


@settings(deadline=None)
@given(FLIPPED)
def test_near_pairs_are_all_pairs_within_the_threshold(described):
    hashes = hashes_of(described)
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
    grey = np.full((8, 8, 3), 100, np.float32)
    groups = copy_groups([Look(bits, grey, False, str(index)) for index, bits in enumerate(hashes)])["near"]
    assert groups[0] == groups[2] == groups[3]
    assert len(set(groups.tolist())) == 3


def test_pairs_among_many_images_are_found_without_comparing_all():
    """Forty thousand hashes have 800 million pairs; those of fifty copies each, at 0 to 15 bits, are known."""
    generator = np.random.default_rng(0)
    hashes = generator.random((40_000, 256)) < 0.5
    originals, made = generator.choice(20_000, 50, replace=False), []
    for original, copy in zip(originals.tolist(), range(20_000, 40_000, 400), strict=True):
        flipped = generator.choice(256, copy // 400 % 16, replace=False)
        hashes[copy] = hashes[original] ^ np.isin(np.arange(256), flipped)
        made += [[original, copy]] * (len(flipped) <= NEAR_BITS)
    start = time.perf_counter()
    assert near_pairs(hashes).tolist() == sorted(made)
    assert time.perf_counter() - start < 5  # half a second; all pairs take minutes


def test_a_thousand_black_images_are_one_group_and_number_the_others_as_they_come():
    black, others = look_of(Image.new("RGB", (20, 20))), [look_of(image) for image in discs([(200, 40, 40)] * 3)]
    groups = copy_groups([others[0], *[black] * 1000, *others[1:], others[0]])
    assert groups["exact"].tolist() == [0, *[1] * 1000, 2, 3, 0]
    assert groups["none"].tolist() == list(range(1004))


def discs(colours, side=64):
    """Discs of equal shape, each in a shade of its own near one colour."""
    shades = np.random.default_rng(0).integers(-25, 26, (len(colours), 3))
    images = []
    for colour in np.clip(np.array(colours) + shades, 0, 255).tolist():
        image = Image.new("RGB", (side, side))
        ImageDraw.Draw(image).ellipse((side // 4, side // 4, side * 3 // 4, side * 3 // 4), fill=tuple(colour))
        images.append(image)
    return images


@pytest.mark.parametrize("side", [64, 224])
def test_discs_of_equal_shape_are_told_apart_by_their_colour(side):
    red, green = (200, 40, 40), (40, 200, 40)
    images = discs([red] * 20 + [green] * 20, side)
    looks = [look_of(image) for image in images]
    groups = {kind: numbers.tolist() for kind, numbers in copy_groups(looks).items()}
    assert len(set(groups["shape"])) == 1
    assert len(set(groups["near"])) >= 35
    assert not set(groups["near"][:20]) & set(groups["near"][20:])
    assert len(set(groups["exact"])) == len(set(groups["none"])) == 40


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((100, 100)),
        lambda image: image.resize((300, 200)),
        lambda image: as_jpeg(image, 75),
        lambda image: as_jpeg(image.resize((200, 200)), 75),
        lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    ],
    ids=["smaller", "squeezed", "encoded", "resized and encoded", "darker"],
)
def test_a_changed_drawing_is_a_copy_and_another_shade_is_none(change):
    drawn = []
    for shade in (200, 215):
        image = Image.new("RGB", (128, 128), (240, 240, 200))
        pen = ImageDraw.Draw(image)
        pen.rectangle((12, 25, 64, 102), fill=(20, 90, shade))
        pen.polygon([(76, 25), (115, 64), (70, 115)], fill=(220, 120, 30))
        drawn.append(image)
    original, other = map(look_of, drawn)
    assert original.drawn
    assert len(copy_pairs([original, look_of(change(drawn[0]))], "near")) == 1
    assert len(copy_pairs([original, other], "shape")) == 1
    assert len(copy_pairs([original, other], "near")) == 0


def turned_hue(image, degrees):
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (hue.point(lambda level: (level + degrees * 256 // 360) % 256), saturation, value))


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (Image.Image.copy, {"near", "shape", "exact"}),
        (lambda image: as_jpeg(image, 75), {"near", "shape"}),
        (lambda image: ImageEnhance.Brightness(image).enhance(0.5), {"near", "shape"}),
        (ImageOps.mirror, set()),
        (lambda image: image.rotate(90), set()),
    ],
    ids=["same pixels", "encoded", "half as bright", "mirrored", "turned"],
)
def test_what_a_copy_is(photographs, change, kinds):
    for photograph in photographs[::3]:
        looks = [look_of(photograph), look_of(change(photograph))]
        assert {kind for kind in ("near", "shape", "exact", "none") if len(copy_pairs(looks, kind))} == kinds


def test_a_turned_hue_is_another_image(photographs):
    pairs = [[look_of(image), look_of(turned_hue(image, 120).convert("RGB"))] for image in photographs]
    alike = [looks for looks in pairs if len(copy_pairs(looks, "shape"))]
    assert alike
    assert not any(len(copy_pairs(looks, "near")) for looks in alike)


def test_colours_make_no_difference_to_grey_images():
    """Of whatever brightness, so that sets of grey images are split as by version 0.1.0."""
    generator = np.random.default_rng(0)
    bits = generator.random(256) < 0.5
    cells = generator.integers(0, 256, (40, 8, 8, 1)).repeat(3, axis=3).astype(np.float32)
    cells[0], cells[1] = 0, 255
    looks = [Look(bits, own, False, str(number)) for number, own in enumerate(cells)]
    assert len(copy_pairs(looks, "near")) == len(copy_pairs(looks, "shape")) == 40 * 39 // 2


def test_pairs_are_judged_in_pieces(photographs):
    looks = [look_of(image) for image in photographs for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "_PAIRS_AT_ONCE", 5)
        pieces = copy_pairs(looks, "near").tolist()
    assert pieces == copy_pairs(looks, "near").tolist()
    assert len(pieces) == 3 * len(photographs)


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
    for (_, digest), group in zip(digests, dataset.copies.tolist(), strict=True):
        groups_of[digest].add(group)
    assert all(len(groups) == 1 for groups in groups_of.values())
    assert len(set(dataset.copies.tolist())) > 200
    for seed in range(3):
        parts = split_indices(dataset.labels, dataset.copies, (0.7, 0.15, 0.15), seed)
        sides = [{digests[index][1] for index in part} for part in parts]
        assert sum(map(len, sides)) == len(set.union(*sides))
