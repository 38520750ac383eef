import json

import numpy as np
import pytest

from hscc_search.study.images_record import ImagesRecord

NAMES = ["a/1.png", "b/ä 2.png", "c/new\nline.png"]


def images(count, *shape):
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 224, 100), (2, 60, 47), (3, 480, 8), (1, 1, 1000)])
def test_names_and_the_mean_are_read_as_they_were_stored(shape):
    record = ImagesRecord.of(NAMES, images(20, *shape))
    again = ImagesRecord.from_stored(json.loads(json.dumps(record.stored())))
    assert again.names == tuple(NAMES)
    assert np.array_equal(again.mean, record.mean)
    assert record.mean.min() == 0 and record.mean.max() == 255
    assert max(record.mean.shape[:2]) <= 48
    assert record.mean.ndim == (3 if shape[0] == 3 else 2)


def test_the_mean_shows_no_single_image_and_nothing_of_inputs_that_are_no_images():
    assert ImagesRecord.of(NAMES, images(15, 1, 8, 8)).mean is None
    assert ImagesRecord.of(NAMES, np.zeros((100, 7), np.float32)).mean is None
    assert not ImagesRecord.of(NAMES, np.ones((100, 1, 8, 8), np.float32)).mean.any()


def test_the_mean_is_the_mean():
    record = ImagesRecord.of(NAMES, np.tile(np.arange(100, dtype=np.uint8), (20, 1, 10, 1)))
    expected = np.array([values.mean() for values in np.split(np.arange(99), 33)] + [99])
    assert np.allclose(record.mean, 255 * (expected - 1) / 98, atol=0.51)


def test_names_that_are_too_long_together_are_left_out():
    names = [f"{number * 7919 % 100003:x}/{number * 104729 % 999983:x}" for number in range(20_000)]
    record = ImagesRecord.of(names, images(20, 1, 8, 8))
    assert ImagesRecord.from_stored(record.stored()).names == ()
