import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hscc_search.evaluation.normalisation import channel_statistics


@given(
    dtype=st.sampled_from([np.uint8, np.uint16]),
    channels=st.integers(1, 4),
    images=st.integers(1, 130),
    seed=st.integers(0, 9),
)
def test_they_are_the_mean_and_the_standard_deviation_of_each_channel(dtype, channels, images, seed):
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (images, channels, 3, 5), dtype)
    shares = pixels.astype(np.float64) / np.iinfo(dtype).max
    mean, std = channel_statistics(pixels)
    assert mean == pytest.approx(shares.mean(axis=(0, 2, 3)), abs=1e-6)
    assert std == pytest.approx(shares.std(axis=(0, 2, 3)), abs=1e-6)


def test_neither_the_order_of_images_nor_their_number_in_memory_counts():
    pixels = np.random.default_rng(0).integers(0, 65536, (200, 1, 7, 9), np.uint16)
    assert channel_statistics(pixels) == channel_statistics(pixels[::-1])


def test_images_of_one_shade_can_still_be_divided_by_their_deviation():
    assert channel_statistics(np.full((3, 1, 8, 8), 255, np.uint8)) == ((1.0,), (1e-4,))
