from itertools import product

import numpy as np
import pytest
import torch
from dicom_files import write_dicom
from PIL import Image
from sklearn.datasets import load_sample_image

from hscc_search.compression.form import NetworkForm
from hscc_search.config import DataConfig
from hscc_search.data.decode import pixels_of, read_image
from hscc_search.evaluation.predictions import pixel_values
from hscc_search.export import run
from hscc_search.export.folder import Architecture, Pictures
from hscc_search.export.manifest import write_json

PHOTOGRAPH = load_sample_image("flower.jpg")[100:161, 200:293]
ORIENTATION = 0x0112


def config_of(**data):
    return DataConfig(path="images", image_size=[24, 40], **data)


def folder_of(tmp_path, config, dtype):
    """What the script reads of a folder, of a study whose images were of a type."""
    pictures = Pictures.of(config, np.dtype(dtype))
    shown = (0.5,) * config.channels
    write_json(
        tmp_path / "architecture.json",
        Architecture("digits_cnn", ("a", "b"), pictures, shown, shown, NetworkForm((), (), {})).stored(),
    )
    return run.Folder(tmp_path)


def pixels_by_study(path, config):
    return pixel_values(torch.from_numpy(pixels_of(read_image(path, config), config).copy()[None])).numpy()


RESIZED = ({"resize": "squeeze"}, {"resize": "crop"}, {"resize": "pad"}, {"resize": "crop", "resize_to": 47})


@pytest.mark.parametrize(("channels", "resized"), list(product((1, 3), RESIZED)))
@pytest.mark.parametrize("stated", [{}, {"range": [3000, 50_000]}, {"window": [30_000, 20_000]}])
@pytest.mark.parametrize("kind", ["8 bits", "8 bits beside 16", "16 bits", "turned"])
def test_the_script_reads_what_the_study_reads(tmp_path, channels, resized, stated, kind):
    config, path = config_of(channels=channels, **resized, **stated), tmp_path / "picture.png"
    exif = Image.Exif()
    exif[ORIENTATION] = 6 if kind == "turned" else 1
    photograph = PHOTOGRAPH if kind.startswith("8") else PHOTOGRAPH[..., 0].astype(np.uint16) * 257 + 11
    Image.fromarray(photograph).save(path, exif=exif)
    wide = kind != "8 bits"
    pixels = folder_of(tmp_path, config, np.uint16 if wide else np.uint8).read(path)
    assert (pixels.dtype, pixels.shape) == (np.float32, (1, channels, 24, 40))
    np.testing.assert_array_equal(pixels, pixels_by_study(path, config))


@pytest.mark.parametrize("stated", [{}, {"range": [-1000, 3000]}, {"window": [40, 400]}])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_script_reads_dicom_as_the_study_does(tmp_path, stated, kind, channels):
    config = config_of(channels=channels, **stated)
    window = {"WindowCenter": [400, 1], "WindowWidth": [900, 2], "RescaleSlope": 2, "RescaleIntercept": -1024}
    path = write_dicom(tmp_path / "slice.dcm", PHOTOGRAPH[..., 0].astype(np.uint16) * 8, kind, **window)
    pixels = folder_of(tmp_path, config, np.uint16).read(path)
    assert (pixels.dtype, pixels.shape) == (np.float32, (1, channels, 24, 40))
    np.testing.assert_array_equal(pixels, pixels_by_study(path, config))
    assert len(np.unique(pixels)) > 50


@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, True), (np.int32, True), (np.float32, False)])
def test_the_script_refuses_values_of_which_no_range_is_known(tmp_path, dtype, wide):
    Image.fromarray(PHOTOGRAPH[..., 0].astype(dtype)).save(tmp_path / "picture.tif")
    folder = folder_of(tmp_path, config_of(), np.uint16 if wide else np.uint8)
    with pytest.raises(run.Refused, match=r"convert (the image|it) to 8"):
        folder.read(tmp_path / "picture.tif")
