import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hscc_search.compression.regions import grid, label_map, pieces
from hscc_search.errors import CompressionError

STRATEGIES = ("grid", "bands")
sides = st.integers(1, 30)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(height=sides, width=sides, regions=st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_labels_run_from_0_with_none_missing(strategy, height, width, regions):
    labels = label_map(strategy, height, width, regions)
    assert labels.shape == (height, width)
    assert labels.dtype == np.int64
    found = np.unique(labels)
    assert found.tolist() == list(range(len(found)))
    assert len(found) <= regions


@given(height=st.integers(20, 30), width=st.integers(20, 30), regions=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_a_map_with_room_gets_as_many_regions_as_asked_for(height, width, regions):
    assert len(np.unique(label_map("grid", height, width, regions))) == regions
    assert len(np.unique(label_map("bands", height, width, regions))) == regions


@pytest.mark.parametrize("side", [2, 3, 4])
@given(height=sides, width=sides)
@settings(max_examples=60, deadline=None)
def test_a_square_count_is_a_square_grid_of_nearly_equal_rectangles(side, height, width):
    height, width = max(height, side), max(width, side)
    labels = grid(height, width, side * side)
    found = pieces(labels)
    assert len(found) == side * side
    assert [piece.region for piece in found] == list(range(side * side))
    for extents in ({p.bottom - p.top for p in found}, {p.right - p.left for p in found}):
        assert max(extents) - min(extents) <= 1


def test_five_regions_are_a_row_of_two_above_a_row_of_three():
    assert grid(2, 6, 5).tolist() == [[0, 0, 0, 1, 1, 1], [2, 2, 3, 3, 4, 4]]


@given(height=sides, width=sides, regions=st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_bands_are_whole_rows_of_nearly_equal_height_in_order(height, width, regions):
    labels = label_map("bands", height, width, regions)
    assert (labels == labels[:, :1]).all()
    assert (np.diff(labels[:, 0]) >= 0).all()
    heights = np.bincount(labels[:, 0])
    assert heights.max() - heights.min() <= 1


@given(labels=arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 5)))
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_label_map_cover_each_position_once_with_its_label(labels):
    covered = np.zeros(labels.shape, int)
    for piece in pieces(labels):
        place = np.s_[piece.top : piece.bottom, piece.left : piece.right]
        assert covered[place].size > 0
        covered[place] += 1
        assert (labels[place] == piece.region).all()
    assert (covered == 1).all()


@given(labels=arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 2)))
@settings(max_examples=100, deadline=None)
def test_pieces_come_in_reading_order(labels):
    corners = [(piece.top, piece.left) for piece in pieces(labels)]
    assert corners == sorted(corners)


def test_a_map_of_one_region_is_one_piece():
    assert len(pieces(label_map("grid", 13, 13, 1))) == 1


def test_an_unknown_strategy_is_named_with_those_that_exist():
    with pytest.raises(CompressionError, match=r"'spiral'.*grid.*bands"):
        label_map("spiral", 4, 4, 2)


@pytest.mark.parametrize("regions", [0, -1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fewer_than_one_region_is_an_error(strategy, regions):
    with pytest.raises(CompressionError, match=str(regions)):
        label_map(strategy, 4, 4, regions)
