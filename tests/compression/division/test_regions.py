import typing
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from hscc_search.compression.division.regions import STRATEGIES, check_regions, label_map, pieces
from hscc_search.config import RegionStrategy
from hscc_search.errors import CompressionError

sides = st.integers(1, 30)
counts = st.integers(1, 20)
seeds = st.integers(0, 2**32 - 1)
dividing = [strategy for strategy in STRATEGIES if strategy != "none"]
tiled = pytest.mark.parametrize("strategy", ["kmeans", "slic", "random"])
# Activations behind a ReLU: zeros, equal values, and any magnitude that float32 holds.
values = st.sampled_from([0.0, 1.0]) | st.floats(0, 2.0**100, width=32)
profiles_of_any_kind = arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=9), elements=values)


def drawn(height, width, seed=0, channels=5):
    return np.random.default_rng(seed).random((channels, height, width), dtype=np.float32)


def smooth(height, width, seed):
    """Profiles that vary smoothly over the map, as those of photographs do."""
    directions = np.random.default_rng(seed).uniform(-3, 3, (6, 3))
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    return np.stack([1 + np.sin(a * rows + b * columns + c) for a, b, c in directions]).astype(np.float32)


def assert_partition(labels, height, width, regions):
    assert labels.shape == (height, width)
    assert labels.dtype == np.int64
    present = np.unique(labels)
    assert present.tolist() == list(range(len(present)))
    assert len(present) <= regions


def test_the_strategies_are_those_that_the_study_file_names():
    assert set(STRATEGIES) == set(typing.get_args(RegionStrategy))


# Every strategy


@pytest.mark.parametrize("strategy", STRATEGIES)
class TestEveryStrategy:
    """The rules that every region strategy keeps; a new one in STRATEGIES is included."""

    @given(profiles=profiles_of_any_kind, regions=counts, seed=seeds)
    @settings(max_examples=100, deadline=None)
    def test_any_profiles_give_a_partition_without_a_warning_and_the_same_one_again(
        self, strategy, profiles, regions, seed
    ):
        before = profiles.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            labels = label_map(strategy, profiles, regions, seed)
        assert_partition(labels, *profiles.shape[1:], regions)
        assert np.array_equal(labels, label_map(strategy, profiles, regions, seed))
        assert np.array_equal(profiles, before)

    @given(height=sides, width=sides, regions=counts)
    @settings(max_examples=60, deadline=None)
    def test_maps_of_any_size_give_a_partition(self, strategy, height, width, regions):
        assert_partition(label_map(strategy, drawn(height, width), regions, 0), height, width, regions)

    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (13, 13)])
    def test_one_region_is_the_whole_map_and_one_piece(self, strategy, size):
        labels = label_map(strategy, drawn(*size), 1, 0)
        assert not labels.any()
        assert len(pieces(labels)) == 1

    def test_regions_are_numbered_in_reading_order(self, strategy):
        _, first = np.unique(label_map(strategy, drawn(12, 12), 5, 0), return_index=True)
        assert (np.diff(first) > 0).all()

    @pytest.mark.parametrize("regions", [0, -1])
    def test_fewer_than_one_region_is_an_error(self, strategy, regions):
        with pytest.raises(CompressionError, match=rf"regions must be 1 or more, not {regions}"):
            label_map(strategy, drawn(4, 4), regions, 0)
        with pytest.raises(CompressionError, match=str(regions)):
            check_regions(strategy, regions)


@pytest.mark.parametrize("strategy", dividing)
@given(height=st.integers(20, 30), width=st.integers(20, 30), regions=counts)
@settings(max_examples=40, deadline=None)
def test_a_map_with_room_gets_as_many_regions_as_asked_for(strategy, height, width, regions):
    assert len(np.unique(label_map(strategy, drawn(height, width), regions, 0))) == regions


@pytest.mark.parametrize("regions", [1, 4, 16])
def test_none_is_one_region_whatever_is_asked_for(regions):
    assert not label_map("none", drawn(9, 9), regions, 0).any()


@pytest.mark.parametrize("strategy", [strategy for strategy in dividing if strategy != "kmeans"])
@pytest.mark.parametrize("value", [0, 0.1, 1e30])
def test_regions_of_a_uniform_map_depend_on_position_alone(strategy, value):
    labels = label_map(strategy, np.full((7, 11, 13), value, np.float32), 4, 0)
    assert len(np.unique(labels)) == 4
    assert np.array_equal(labels, label_map(strategy, np.ones((2, 11, 13), np.float32), 4, 0))


@pytest.mark.parametrize("value", [0, 0.1, 1e30])
def test_kmeans_does_not_divide_a_uniform_map(value):
    assert not label_map("kmeans", np.full((7, 11, 13), value, np.float32), 4, 0).any()


def test_kmeans_does_not_divide_a_map_by_rounding():
    profiles = 1000 * (1 + 1e-7 * drawn(12, 12).astype(np.float64))
    profiles = profiles.astype(np.float32)
    assert len(np.unique(profiles)) > 1
    assert not label_map("kmeans", profiles, 4, 0).any()


# Fixed strategies


@pytest.mark.parametrize("side", [2, 3, 4])
@given(height=sides, width=sides)
@settings(max_examples=60, deadline=None)
def test_a_square_count_is_a_square_grid_of_nearly_equal_rectangles(side, height, width):
    labels = label_map("grid", drawn(max(height, side), max(width, side)), side * side, 0)
    rectangles = pieces(labels)
    assert len(rectangles) == side * side
    assert [piece.region for piece in rectangles] == list(range(side * side))
    heights = {piece.bottom - piece.top for piece in rectangles}
    widths = {piece.right - piece.left for piece in rectangles}
    assert max(heights) - min(heights) <= 1
    assert max(widths) - min(widths) <= 1


def test_five_regions_are_a_row_of_two_above_a_row_of_three():
    assert label_map("grid", drawn(2, 6), 5, 0).tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, 3, 3, 4, 4]]


@given(height=sides, width=sides, regions=counts)
@settings(max_examples=100, deadline=None)
def test_bands_are_whole_rows_of_nearly_equal_height_in_order(height, width, regions):
    labels = label_map("bands", drawn(height, width), regions, 0)
    assert (labels == labels[:, :1]).all()
    assert (np.diff(labels[:, 0]) >= 0).all()
    heights = np.bincount(labels[:, 0])
    assert heights.max() - heights.min() <= 1


# Strategies that label tiles


@tiled
@given(height=sides, width=sides, regions=counts, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_maps_are_made_of_few_tiles(strategy, height, width, regions, seed):
    labels = label_map(strategy, drawn(height, width, seed % 100), regions, seed)
    side = max(4, int(np.ceil(np.sqrt(regions))))
    assert len(pieces(labels)) <= min(side, height) * min(side, width)
    # Borders lie between tiles alone.
    assert len(np.unique(labels, axis=0)) <= side
    assert np.count_nonzero((labels[1:] != labels[:-1]).any(axis=1)) < side
    assert np.count_nonzero((labels[:, 1:] != labels[:, :-1]).any(axis=0)) < side


@pytest.mark.parametrize("axis", [0, 1])
@given(seed=seeds, level=st.floats(1e-3, 1e3), side=st.integers(2, 7))
@settings(max_examples=30, deadline=None)
def test_kmeans_separates_two_kinds_of_profile_exactly_adjacent_or_not(axis, seed, level, side):
    kinds = np.repeat([0, 1, 1, 0], side)  # outer and inner tiles, four along the axis
    expected = np.repeat(kinds[:, None] if axis == 0 else kinds[None, :], 4 * side, axis=1 - axis)
    generator = np.random.default_rng(seed)
    profiles_of_kinds = 1 + np.outer([1, -1], generator.choice([-0.5, 0.5], 8))
    profiles = level * (profiles_of_kinds.T[:, expected] + 0.05 * generator.random((8, 4 * side, 4 * side)))
    assert np.array_equal(label_map("kmeans", profiles.astype(np.float32), 2, seed), expected)


@pytest.mark.parametrize("strategy", ["kmeans", "slic"])
@given(seed=seeds, regions=st.integers(2, 9), exponent=st.integers(-10, 10))
@settings(max_examples=40, deadline=None)
def test_the_scale_of_the_activations_does_not_matter(strategy, seed, regions, exponent):
    profiles = smooth(16, 16, seed)
    scaled = profiles * np.float32(2.0**exponent)  # without rounding
    assert np.array_equal(label_map(strategy, scaled, regions, 0), label_map(strategy, profiles, regions, 0))


@pytest.mark.parametrize("strategy", ["kmeans", "slic"])
@given(seed=seeds, regions=st.integers(2, 9), level=st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_rounding_of_scaled_activations_moves_few_positions(strategy, seed, regions, level):
    profiles = smooth(16, 16, seed)
    scaled = (profiles.astype(np.float64) * level).astype(np.float32)
    # A tile may move that is as near to one region as to another, and others may follow it.
    moved, kept = (spread_within(profiles, label_map(strategy, maps, regions, 0)) for maps in (scaled, profiles))
    assert moved == pytest.approx(kept, rel=0.2)


def spread_within(profiles, labels):
    """Mean squared distance of the profiles, of equal length each, from the mean of their region."""
    units = profiles / np.maximum(np.linalg.norm(profiles, axis=0), 1e-9)
    total = sum(
        ((units[:, labels == label].T - units[:, labels == label].mean(axis=1)) ** 2).sum()
        for label in np.unique(labels)
    )
    return total / labels.size


@given(height=st.integers(4, 30), width=st.integers(4, 30), regions=st.integers(2, 12), seed=seeds)
@settings(max_examples=80, deadline=None)
def test_superpixels_are_connected_and_as_many_as_asked_for(height, width, regions, seed):
    labels = label_map("slic", smooth(height, width, seed), regions, 0)
    assert len(np.unique(labels)) == regions
    assert all(ndimage.label(labels == region)[1] == 1 for region in range(regions))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_superpixels_follow_an_edge_between_two_parts_of_the_map(channels):
    profiles = np.ones((channels, 16, 16), np.float32)
    profiles[:, :, 4:] = 5
    labels = label_map("slic", profiles, 2, 0)
    assert np.array_equal(labels, (profiles[0] > 1).astype(np.int64))


@pytest.mark.parametrize("strategy", ["kmeans", "slic"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_channels_that_are_always_off_change_nothing(strategy, channels):
    # Three channels in particular must not be taken for colours.
    for seed in range(10):
        profiles = smooth(16, 16, seed)[:channels]
        wider = np.concatenate([profiles, np.zeros((1, 16, 16), np.float32)])
        assert np.array_equal(label_map(strategy, wider, 4, 0), label_map(strategy, profiles, 4, 0))


def test_superpixels_of_a_uniform_map_are_compact():
    labels = label_map("slic", np.ones((3, 16, 16), np.float32), 4, 0)
    for region in range(4):
        rows, columns = np.nonzero(labels == region)
        assert max(np.ptp(rows), np.ptp(columns)) < 12


@pytest.mark.parametrize("size", [(8, 8), (13, 13), (55, 55)])
@pytest.mark.parametrize("regions", [2, 3, 4, 9])
def test_random_regions_are_equal_shares_of_the_tiles(size, regions):
    labels = label_map("random", drawn(*size), regions, 0)
    tiles = labels[np.ix_(*([((2 * i + 1) * length) // 8 for i in range(4)] for length in size))]
    shares = np.bincount(tiles.ravel())
    assert len(shares) == regions
    assert shares.max() - shares.min() <= 1


def test_random_regions_depend_on_the_seed_alone():
    maps = [label_map("random", drawn(16, 16, seed=seed), 4, seed) for seed in range(5)]
    assert len({labels.tobytes() for labels in maps}) == 5
    assert np.array_equal(label_map("random", drawn(16, 16, seed=9), 4, 0), maps[0])


# Pieces


@given(labels=arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 5)))
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_label_map_cover_each_position_once_with_its_label(labels):
    covered = np.zeros(labels.shape, int)
    for piece in pieces(labels):
        inside = np.s_[piece.top : piece.bottom, piece.left : piece.right]
        assert covered[inside].size > 0
        covered[inside] += 1
        assert (labels[inside] == piece.region).all()
    assert (covered == 1).all()


@given(labels=arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 2)))
@settings(max_examples=100, deadline=None)
def test_pieces_come_in_reading_order_and_bands_of_them_span_the_map(labels):
    rectangles = pieces(labels)
    corners = [(piece.top, piece.left) for piece in rectangles]
    assert corners == sorted(corners)
    for top in {piece.top for piece in rectangles}:
        band = [piece for piece in rectangles if piece.top == top]
        assert sum(piece.right - piece.left for piece in band) == labels.shape[1]
        assert len({piece.bottom for piece in band}) == 1


# Errors


def test_an_unknown_strategy_is_named_with_those_that_exist():
    with pytest.raises(CompressionError, match=r"'spiral'.*grid, bands, kmeans, slic, random, none"):
        label_map("spiral", drawn(4, 4), 2, 0)
