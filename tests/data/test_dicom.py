import numpy as np
import pytest
from dicom_files import write_dicom
from PIL import Image

from hscc_search.config import DataConfig
from hscc_search.data import check_images, load_dataset
from hscc_search.data.decode import pixels_of, read_image
from hscc_search.errors import DataError

# Every value of 12 bits once, as scanners store them.
STORED = np.arange(4096, dtype=np.uint16).reshape(64, 64)
HOUNSFIELD = {"RescaleSlope": 2, "RescaleIntercept": -1024}
LUNG = {"WindowCenter": [-600, 40], "WindowWidth": [1500, 400]}


def read(path, **data):
    config = DataConfig(path="images", image_size=64, channels=1, **data)
    pixels = pixels_of(read_image(path, config), config)
    assert (pixels.dtype, pixels.shape) == (np.uint16, (1, 64, 64))
    return pixels[0] / 65535


def shares(low, high):
    return ((STORED * 2.0 - 1024 - low) / (high - low)).clip(0, 1)


@pytest.mark.parametrize(
    ("elements", "said", "wanted"),
    [
        (LUNG, {}, shares(-1350, 149)),
        ({**LUNG, "VOILUTFunction": "LINEAR_EXACT"}, {}, shares(-1350, 150)),
        (LUNG, {"window": [40, 400]}, shares(-160, 239)),
        ({}, {"window": [40, 400]}, shares(-160, 239)),
        (LUNG, {"range": [-1024, 7166]}, STORED / 4095),
        ({**LUNG, "kind": "MONOCHROME1"}, {}, 1 - shares(-1350, 149)),
    ],
    ids=["the file's window", "exact", "the study's window", "no window", "the study's range", "inverted"],
)
def test_values_arrive_rescaled_and_windowed(tmp_path, elements, said, wanted):
    path = write_dicom(tmp_path / "slice.dcm", STORED, **HOUNSFIELD, **elements)
    np.testing.assert_allclose(read(path, **said), wanted, atol=0.51 / 65535)


def test_plain_eight_bits_need_no_window(tmp_path):
    values = STORED.astype(np.uint8)
    np.testing.assert_allclose(read(write_dicom(tmp_path / "scan.dcm", values)), values / 255, atol=0.51 / 65535)


def test_signed_values_are_read(tmp_path):
    values = STORED.astype(np.int16) - 2048
    path = write_dicom(tmp_path / "slice.dcm", values, WindowCenter=0, WindowWidth=4096)
    np.testing.assert_allclose(read(path), STORED / 4095, atol=0.51 / 65535)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"NumberOfFrames": 2}, r"slice\.dcm has 2 frames: write each as a file of its own"),
        ({"kind": "PALETTE COLOR"}, "photometric interpretation PALETTE COLOR: MONOCHROME1 and MONOCHROME2 are read"),
        (HOUNSFIELD, r"no window: say data\.window: \[centre, width\] or data\.range: \[low, high\]"),
        ({**LUNG, "VOILUTFunction": "SIGMOID"}, r"width 1500 and function SIGMOID: say data\.window"),
        ({**LUNG, "PixelData": b"\0\0"}, r"cannot read image .*slice\.dcm \(ValueError"),
    ],
)
def test_what_is_no_grey_image_of_one_frame_with_a_window_is_refused(tmp_path, elements, said):
    with pytest.raises(DataError, match=said):
        read(write_dicom(tmp_path / "slice.dcm", STORED, **elements))


def test_what_is_no_dicom_is_refused_by_name(tmp_path):
    (tmp_path / "slice.dcm").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read image .*slice\.dcm"):
        read(tmp_path / "slice.dcm")


def test_a_folder_of_dicom_beside_eight_bits_is_read_and_checked(tmp_path):
    generator = np.random.default_rng(0)
    for label in ("ill", "well"):
        (tmp_path / label).mkdir()
        for number in range(3):
            coarse = generator.integers(0, 4096, (4, 4), np.uint16)
            write_dicom(tmp_path / label / f"{number}.dcm", coarse.repeat(4, 0).repeat(4, 1), **HOUNSFIELD, **LUNG)
    grey = generator.integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(grey).save(tmp_path / "well" / "photo.png")
    config = DataConfig(path=tmp_path, image_size=16, channels=1)
    dataset = load_dataset(config)
    (photo,) = [position for position, name in enumerate(dataset.names) if name.endswith("photo.png")]
    assert (dataset.images.shape, dataset.images.dtype) == ((7, 1, 16, 16), np.uint16)
    np.testing.assert_array_equal(dataset.images[photo, 0], grey * np.uint16(257))
    checked = check_images(config)
    assert (checked.classes, checked.unreadable, checked.empty) == ({"ill": 3, "well": 4}, [], [])
    assert check_images(DataConfig(path=tmp_path, range=[-9000, 200000])).empty  # which that range turns nearly black
