import json

import numpy as np
import pytest
import torch
from geometry import Residual, seeded, smooth_images
from hypothesis import given
from hypothesis import strategies as st

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.divided import SIDE, DividedLayer, coactivation_picture, with_smaller_pictures
from hscc_search.compression.division.clusters import coactivations
from hscc_search.compression.form import Piece
from hscc_search.compression.setting import Setting

WHOLE = (Piece(0, 4, 0, 4, 0),)


def layer_of(count, side=SIDE):
    pictures = tuple(np.full((side, side), number % 100 - 50, np.int8) for number in range(count))
    return DividedLayer("features.0", (4, 4), WHOLE, ((2, 1),) * count, pictures)


def equal(first, second):
    pictures = zip(first.coactivation, second.coactivation, strict=True)
    return first.pieces == second.pieces and all(np.array_equal(one, other) for one, other in pictures)


@given(st.integers(1, 100), st.integers(1, 4), st.integers(0, 9))
def test_a_picture_has_the_mean_correlation_and_blocks_in_the_order_of_clusters(channels, clusters, seed):
    labels = np.random.default_rng(seed).integers(0, clusters, channels)
    blocks = (labels[:, None] == labels).astype(float)
    picture = coactivation_picture(blocks, labels)
    assert picture.shape == (min(channels, SIDE),) * 2
    if channels <= SIDE:
        ordered = np.sort(labels)
        assert np.array_equal(picture, 127 * (ordered[:, None] == ordered))
    elif channels % SIDE == 0:
        assert picture.mean() / 127 == pytest.approx(blocks.mean(), abs=0.01)


@pytest.mark.parametrize("count", [1, 35, 400, 40_000])
def test_what_is_stored_fits_into_an_attribute_of_any_database(count):
    (small,) = with_smaller_pictures([layer_of(count)])
    assert len(small.coactivation) == count
    values = np.random.default_rng(0).integers(-127, 128, (SIDE, SIDE), np.int8)  # pictures that pack badly
    noisy = DividedLayer("features.0", (4, 4), WHOLE, ((2, 1),) * count, (values,) * count)
    pictures = [text for text in with_smaller_pictures([noisy])[0].stored()["coactivation"] if text is not None]
    assert sum(map(len, pictures)) < 60_000


def test_a_divided_layer_is_read_as_it_was_stored():
    layer = layer_of(3, side=5)
    assert equal(DividedLayer.from_stored(json.loads(json.dumps(layer.stored()))), layer)


def test_a_compressed_network_tells_its_regions_and_clusters():
    calibration = calibrate(seeded(Residual), smooth_images(32))
    setting = Setting(regions=4, clusters=3, energy=0.9)
    compressed = compress(calibration, setting)
    assert [layer.name for layer in compressed.divided] == [
        name for name, form in compressed.form.layers.items() if len(form.ranks[0]) > 1
    ]
    for layer in compressed.divided:
        form = compressed.form.layers[layer.name]
        assert (layer.pieces, layer.output_size) == (form.pieces, form.output_size)
        for ranks, sizes, picture in zip(form.ranks[0], layer.clusters, layer.coactivation, strict=True):
            assert ranks is None or len(ranks) == len(sizes)
            assert (picture is None) == (len(sizes) == 1)
    assert compress(calibration, Setting(regions=1, clusters=1, energy=0.9)).divided == ()


def test_channels_that_activate_together_are_bright_within_their_cluster():
    drawn = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    responses = drawn[:, [0, 1, 0, 1, 0, 1]]
    picture = coactivation_picture(coactivations(responses, seed=0), np.array([0, 1, 0, 1, 0, 1]))
    assert (picture[:3, :3] > 120).all() and (picture[3:, 3:] > 120).all()
    assert (np.abs(picture[:3, 3:]) < 40).all()
