from itertools import product

import numpy as np
import pytest
import torch
from dicom_files import write_dicom
from PIL import Image
from sklearn.datasets import load_sample_image

from hscc_search.config import DataConfig
from hscc_search.data.decode import pixels_of, read_image
from hscc_search.evaluation.predictions import pixel_values
from hscc_search.export.reading import Files, picture_fields

PHOTOGRAPH = load_sample_image("flower.jpg")[100:161, 200:293]
ORIENTATION = 0x0112


def config_of(**data):
    return DataConfig(path="images", image_size=[24, 40], **data)


def pixels_by_card(path, config, files):
    """The pixels that the code of a card reads from a file."""
    code, variables = picture_fields(config, files)["reading"], {}
    for name in ("image.jpg", "image.png", "image.dcm"):
        code = code.replace(f'"{name}"', repr(str(path)))
    exec(code, variables)
    return variables["pixels"]


def pixels_by_study(path, config):
    return pixel_values(torch.from_numpy(pixels_of(read_image(path, config), config).copy()[None])).numpy()


RESIZED = ({"resize": "squeeze"}, {"resize": "crop"}, {"resize": "pad"}, {"resize": "crop", "resize_to": 47})


@pytest.mark.parametrize(("channels", "resized"), list(product((1, 3), RESIZED)))
@pytest.mark.parametrize("stated", [{}, {"range": [3000, 50_000]}, {"window": [30_000, 20_000]}])
@pytest.mark.parametrize("kind", ["8 bits", "8 bits beside 16", "16 bits", "turned"])
def test_the_code_of_a_card_reads_what_the_study_reads(tmp_path, channels, resized, stated, kind):
    config, path = config_of(channels=channels, **resized, **stated), tmp_path / "picture.png"
    exif = Image.Exif()
    exif[ORIENTATION] = 6 if kind == "turned" else 1
    photograph = PHOTOGRAPH if kind.startswith("8") else PHOTOGRAPH[..., 0].astype(np.uint16) * 257 + 11
    Image.fromarray(photograph).save(path, exif=exif)
    wide = kind != "8 bits"
    pixels = pixels_by_card(path, config, Files(np.dtype(np.uint16 if wide else np.uint8)))
    assert (pixels.dtype, pixels.shape) == (np.float32, (1, channels, 24, 40))
    np.testing.assert_array_equal(pixels, pixels_by_study(path, config))


@pytest.mark.parametrize("stated", [{}, {"range": [-1000, 3000]}, {"window": [40, 400]}])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_code_of_a_card_reads_dicom_as_the_study_does(tmp_path, stated, kind, channels):
    config = config_of(channels=channels, **stated)
    window = {"WindowCenter": [400, 1], "WindowWidth": [900, 2], "RescaleSlope": 2, "RescaleIntercept": -1024}
    path = write_dicom(tmp_path / "slice.dcm", PHOTOGRAPH[..., 0].astype(np.uint16) * 8, kind, **window)
    pixels = pixels_by_card(path, config, Files(np.dtype(np.uint16), dicom=True))
    assert (pixels.dtype, pixels.shape) == (np.float32, (1, channels, 24, 40))
    np.testing.assert_array_equal(pixels, pixels_by_study(path, config))
    assert len(np.unique(pixels)) > 50


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, True), (np.int32, True), (np.float32, False)])
def test_the_code_of_a_card_refuses_values_of_which_no_range_is_known(tmp_path, dtype, wide):
    Image.fromarray(PHOTOGRAPH[..., 0].astype(dtype)).save(tmp_path / "picture.tif")
    with pytest.raises(AssertionError, match="convert the image"):
        pixels_by_card(tmp_path / "picture.tif", config_of(), Files(np.dtype(np.uint16 if wide else np.uint8)))


@pytest.mark.parametrize(
    ("data", "files", "said"),
    [
        ({}, np.uint8, "RGB images of 24 x 40 pixels, float32 values 0 to 1, shape (images, 3, 24, 40)"),
        ({"channels": 1}, np.uint16, "grey images of 24 x 40 pixels"),
        ({}, np.uint16, "Values 0 and 65535 of a file of 16 bits are 0 and 1."),
        ({"window": [40, 400]}, np.uint16, "Values -160 and 239 of a file of more than 8 bits are 0 and 1;"),
        ({}, np.float32, "inputs as the study's data set gives them, float32, shape (images, 3, 24, 40)."),
    ],
)
def test_a_card_says_what_the_network_takes(data, files, said):
    assert said in picture_fields(config_of(**data), Files(np.dtype(files)))["taken"]
