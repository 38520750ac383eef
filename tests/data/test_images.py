import gc
import io
import os
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from hscc_search.cache import remove_entry
from hscc_search.config import DataConfig
from hscc_search.data import check_folder, load_dataset
from hscc_search.data.images import find_images, read_image
from hscc_search.errors import DataError, DiskFullError, HsccError, HsccWarning

QUADRANTS = np.zeros((20, 30, 3), np.uint8)
QUADRANTS[:10, :15], QUADRANTS[:10, 15:], QUADRANTS[10:, :15] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ORIENTATION, MAKE = 0x0112, 0x010F


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


def test_class_folders_of_equal_name_are_one_class_at_any_depth(image_folder):
    folder = image_folder({"Training/cat": 3, "Training/dog": 2, "Testing/deep/cat": 4, "Testing/dog": 1})
    assert [path.parent.name for path, _ in find_images(folder)] == [name for _, name in find_images(folder)]
    dataset, _ = read(folder)
    assert dataset.classes == ("cat", "dog")
    assert np.bincount(dataset.labels).tolist() == [7, 3]
    assert (dataset.images.shape, dataset.images.dtype) == ((10, 3, 16, 16), np.uint8)


def test_other_and_hidden_files_are_no_images(image_folder):
    folder = image_folder({"cat": 1, "dog": 1})
    (folder / "cat" / "notes.txt").write_text("a cat")
    (folder / "cat" / "._0.png").write_bytes(b"what a Mac leaves behind")
    assert [path.name for path, _ in find_images(folder)] == ["0.png", "0.png"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_eight_bit_modes_are_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.fromarray(QUADRANTS).convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (30, 20))
    if mode in ("P", "RGB", "RGBA", "CMYK"):
        np.testing.assert_array_equal(np.asarray(image), QUADRANTS)
    else:
        pixels = np.asarray(image)
        assert np.array_equal(pixels[..., 0], pixels[..., 1])
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.float32)])
def test_pixels_of_more_than_eight_bits_are_refused(tmp_path, suffix, dtype):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.full((8, 8), 5000, dtype)).save(path)
    with pytest.raises(DataError, match=r"image\.\w+ has pixel mode \S+, .* 8 bits"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
    turn_back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    image = Image.fromarray(QUADRANTS)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = image if turn_back is None else image.transpose(Image.Transpose(turn_back))
    turned.save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "image.png")), QUADRANTS)


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(QUADRANTS).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image", encoded("JPEG")[:300], encoded("PNG")[:-30]])
def test_a_file_that_is_no_whole_image_is_refused_by_name(tmp_path, content):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read image .*image\.jpg"):
        read_image(path)


def exif_of(orientation, make):
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, make
    return exif


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_damage_anywhere_in_a_file_is_survived_or_refused(tmp_path, kind):
    content = encoded(kind, exif=exif_of(6, "abc"))
    chance = random.Random(0)
    for _ in range(150):
        damaged = bytearray(content)
        damaged[chance.randrange(min(len(content), 120))] = chance.randrange(256)
        (tmp_path / "image").write_bytes(damaged)
        try:
            assert read_image(tmp_path / "image").mode == "RGB"
        except DataError as error:
            assert "image" in str(error)


@pytest.mark.parametrize(
    ("entry", "damaged"),
    [
        (b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06", b"\x01\x12\x00\x02\x00\x00\x00\x01\x00\x06"),
        (b"\x01\x0f\x00\x02", b"\x01\x00\x00\x02"),
    ],
    ids=["orientation is text", "width is text"],
)
def test_exif_entries_of_the_wrong_type_are_survived_or_refused(tmp_path, entry, damaged):
    content = encoded("JPEG", exif=exif_of(6, "abc"))
    assert entry in content
    (tmp_path / "image.jpg").write_bytes(content.replace(entry, damaged))
    try:
        assert read_image(tmp_path / "image.jpg").mode == "RGB"
    except DataError as error:
        assert "image.jpg" in str(error)


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


def flip(path, share):
    """Flip one bit at a share of a file's length."""
    damaged = bytearray(path.read_bytes())
    damaged[int(share * len(damaged))] ^= 4
    path.write_bytes(damaged)


DAMAGES = {
    "a pixel": lambda entry: flip(entry / "images.npy", 0.9),
    "a group": lambda entry: flip(entry / "groups.npy", 0.95),
    "a header": lambda entry: flip(entry / "groups.npy", 0.1),
    "no groups": lambda entry: (entry / "groups.npy").unlink(),
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
    (folder / "Testing" / "cat").mkdir(parents=True)
    (folder / "cat" / "0.png").rename(folder / "Testing" / "cat" / "zebra.png")
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
