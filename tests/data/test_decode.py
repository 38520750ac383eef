import io
import os
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hscc_search.config import DataConfig
from hscc_search.data.decode import contrast_of, file_digest, pixels_of, read_image
from hscc_search.errors import DataError
from hscc_search.evaluation.predictions import pixel_values
from hscc_search.torchvision_operators import make_importable

QUADRANTS = np.zeros((20, 30, 3), np.uint8)
QUADRANTS[:10, :15], QUADRANTS[:10, 15:], QUADRANTS[10:, :15] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def config_of(**data):
    return DataConfig(path="images", **data)


RGB = config_of()
ORIENTATION, MAKE = 0x0112, 0x010F


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_eight_bit_modes_are_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.fromarray(QUADRANTS).convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    image = read_image(path, RGB)
    assert (image.mode, image.size) == ("RGB", (30, 20))
    if mode in ("P", "RGB", "RGBA", "CMYK"):
        np.testing.assert_array_equal(np.asarray(image), QUADRANTS)
    else:
        pixels = np.asarray(image)
        assert np.array_equal(pixels[..., 0], pixels[..., 1])
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize(("suffix", "dtype"), [("tif", np.float32), ("tif", np.int32)])
def test_values_of_which_no_range_is_known_are_refused(tmp_path, suffix, dtype):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.full((8, 8), 5000, dtype)).save(path)
    with pytest.raises(DataError, match=r"image\.\w+ has pixel mode \S+, .* data\.range: \[low, high\]"):
        read_image(path, RGB)
    assert read_image(path, config_of(range=[0, 10_000])).getpixel((3, 3)) == 0.5


def values_of_sixteen_bits():
    values = np.arange(0, 65536, 37, np.uint16)[:1536].reshape(32, 48)
    values[0, 0], values[-1, -1] = 0, 65535
    return values


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_values_of_sixteen_bits_arrive_as_they_are(tmp_path, suffix, channels):
    values, config = values_of_sixteen_bits(), config_of(image_size=[32, 48], channels=channels)
    Image.fromarray(values).save(tmp_path / f"image.{suffix}")
    pixels = pixels_of(read_image(tmp_path / f"image.{suffix}", config), config)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, np.stack([values] * channels))


@pytest.mark.parametrize("said", [{"range": [1000, 5095]}, {"window": [3048, 4096]}])
def test_a_range_and_a_window_say_what_is_black_and_white(tmp_path, said):
    values, config = values_of_sixteen_bits(), config_of(image_size=[32, 48], channels=1, **said)
    Image.fromarray(values).save(tmp_path / "image.png")
    pixels = pixels_of(read_image(tmp_path / "image.png", config), config)[0]
    wanted = ((values.astype(float) - 1000) / 4095).clip(0, 1)
    np.testing.assert_allclose(pixels / 65535, wanted, atol=0.51 / 65535)


def test_eight_bits_are_the_same_whatever_the_range(tmp_path):
    Image.fromarray(QUADRANTS).save(tmp_path / "image.png")
    config = config_of(range=[0, 100])
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "image.png", config)), QUADRANTS)


def test_eight_bits_among_sixteen_are_the_same_shares():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pixel_values((every.int() * 257).to(torch.uint16)), pixel_values(every))


@pytest.mark.parametrize(
    ("resize", "rows"),
    [
        ("squeeze", {3: [50, 50, 100, 100], 28: [150, 150, 200, 200]}),
        ("crop", {3: [50, 50, 100, 100], 28: [150, 150, 200, 200]}),
        ("pad", {3: [0, 0, 0, 0], 11: [50, 50, 100, 100], 20: [150, 150, 200, 200], 28: [0, 0, 0, 0]}),
    ],
)
@pytest.mark.parametrize("mode", ["L", "F"])
def test_images_are_squeezed_cropped_or_padded(resize, rows, mode):
    """Four quarters of even shade, and behind them at either side a strip that only squeezing keeps."""
    quarters = np.kron(np.array([[50, 100], [150, 200]]), np.ones((16, 32))) / 255
    quarters[:, [0, -1]] = 1
    image = Image.fromarray(quarters.astype(np.float32) if mode == "F" else (quarters * 255).round().astype(np.uint8))
    pixels = pixels_of(image, config_of(image_size=32, channels=1, resize=resize))[0]
    whole = 65535 if mode == "F" else 255
    for row, shades in rows.items():
        np.testing.assert_allclose(pixels[row, [3, 10, 21, 28]] / whole * 255, shades, atol=0.01)
    assert (pixels[16].max() > 0.81 * whole) == (resize != "crop")


@pytest.mark.parametrize("mode", ["L", "RGB", "F"])
@pytest.mark.parametrize("size", [(61, 93), (93, 61), (40, 40), (31, 300)])
@pytest.mark.parametrize(("image_size", "resize_to"), [(28, 32), ([24, 37], 43), (32, 32), (8, 77)])
def test_the_centre_is_cut_out_as_torchvision_does(mode, size, image_size, resize_to):
    make_importable()
    from torchvision.transforms import CenterCrop, Resize

    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(noise if mode == "RGB" else noise[..., 0])
    image = Image.fromarray(np.asarray(image, np.float32) / 255) if mode == "F" else image
    config = config_of(image_size=image_size, channels=3, resize="crop", resize_to=resize_to)
    by_torchvision = CenterCrop(config.shape[1:])(Resize(resize_to)(image))
    wanted = np.asarray(by_torchvision)
    wanted = (wanted.clip(0, 1) * 65535).round() if mode == "F" else wanted
    np.testing.assert_array_equal(pixels_of(image, config)[0], wanted[..., 0] if mode == "RGB" else wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
    turn_back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    image = Image.fromarray(QUADRANTS)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = image if turn_back is None else image.transpose(Image.Transpose(turn_back))
    turned.save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "image.png", RGB)), QUADRANTS)


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(QUADRANTS).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image", encoded("JPEG")[:300], encoded("PNG")[:-30]])
def test_a_file_that_is_no_whole_image_is_refused_by_name(tmp_path, content):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read image .*image\.jpg"):
        read_image(path, RGB)


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
            assert read_image(tmp_path / "image", RGB).mode == "RGB"
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
        assert read_image(tmp_path / "image.jpg", RGB).mode == "RGB"
    except DataError as error:
        assert "image.jpg" in str(error)


def test_the_upper_half_of_sixteen_bit_colours_is_read(tmp_path):
    """Pillow reads no such colours itself; what it makes of a PNG of 16 bits per channel is written out here."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"\0" + struct.pack(">6H", 0xFF12, 0x8034, 0x0056, 0x1278, 0x34FF, 0x5601)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "image.png").write_bytes(content)
    assert np.asarray(read_image(tmp_path / "image.png", RGB)).tolist() == [[[0xFF, 0x80, 0x00], [0x12, 0x34, 0x56]]]


def test_pixels_are_resized_and_their_channels_come_first():
    pixels = pixels_of(Image.fromarray(QUADRANTS), config_of(image_size=10))
    assert (pixels.shape, pixels.dtype) == ((3, 10, 10), np.uint8)
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert pixels[:, 9, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("values", "contrast"),
    [
        (np.full((100, 100, 3), 7), 0),
        (np.arange(100).reshape(10, 10, 1).repeat(3, axis=2), 98),
        (np.where(np.arange(10000).reshape(100, 100, 1) < 90, 255, 3).repeat(3, axis=2), 0),
        (np.where(np.arange(10000).reshape(100, 100, 1) < 200, 255, 3).repeat(3, axis=2), 252),
        (np.stack([np.full((10, 10), 0), np.full((10, 10), 200), np.arange(100).reshape(10, 10)], axis=2), 98),
    ],
    ids=["constant", "ramp", "less than a hundredth is bright", "two hundredths are bright", "one channel reaches far"],
)
def test_contrast_is_the_reach_of_all_but_the_outermost_values(values, contrast):
    assert contrast_of(Image.fromarray(values.astype(np.uint8))) == contrast


def test_an_empty_file_is_refused_by_name(tmp_path):
    (tmp_path / "image.png").touch()
    with pytest.raises(DataError, match=r"image\.png \(an empty file of 0 bytes\)"):
        file_digest(tmp_path / "image.png")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "image.png")
    with pytest.raises(DataError, match=r"image\.png \(not a regular file\)"):
        file_digest(tmp_path / "image.png")
