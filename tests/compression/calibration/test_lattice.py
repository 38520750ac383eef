import itertools
import math

import pytest
import torch
from geometry import convolutions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.calibration.lattice import POSITIONS, choose_lattice, positions_first, responses_on
from hscc_search.compression.form import Piece

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

WHOLE = math.isqrt(POSITIONS)


@given(height=st.integers(1, 400), width=st.integers(1, 400), limit=st.integers(1, 300))
@settings(max_examples=150, deadline=None)
def test_a_lattice_is_within_the_limit_inside_the_map_and_never_empty(height, width, limit):
    lattice = choose_lattice(height, width, limit)
    rows, columns = lattice.indices
    assert 1 <= len(rows) * len(columns) == lattice.positions <= limit
    assert rows.min() >= 0
    assert rows.max() < height
    assert columns.min() >= 0
    assert columns.max() < width


@given(side=st.integers(1, WHOLE))
def test_a_map_within_the_limit_is_kept_whole(side):
    rows, columns = choose_lattice(side, side).indices
    assert len(rows) == len(columns) == side


@given(side=st.integers(WHOLE + 1, 300))
@settings(max_examples=50, deadline=None)
def test_no_finer_lattice_is_within_the_limit(side):
    lattice = choose_lattice(side, side)
    assert math.ceil(side / (lattice.step - 1)) ** 2 > POSITIONS


@given(side=st.integers(WHOLE + 1, 300))
@settings(max_examples=50, deadline=None)
def test_a_lattice_is_centred(side):
    rows, _ = choose_lattice(side, side).indices
    assert abs(int(rows[0]) - (side - 1 - int(rows[-1]))) <= 1


@given(convolution=convolutions(40), limit=st.integers(1, 200))
@settings(max_examples=150, deadline=None)
def test_responses_on_a_lattice_are_those_of_the_full_convolution(convolution, limit):
    layer, x = convolution
    full = layer(x)
    lattice = choose_lattice(*full.shape[2:], limit)
    rows, columns = lattice.indices
    expected = full[:, :, rows][:, :, :, columns].flatten(2).permute(2, 0, 1)
    torch.testing.assert_close(responses_on(layer, x, lattice), expected, rtol=1e-5, atol=1e-5)


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    limit=st.integers(1, 60),
    breaks=st.tuples(*[st.sets(st.integers(1, 19), max_size=3)] * 2),
)
@settings(max_examples=100, deadline=None)
def test_rectangles_share_out_the_lattice_and_the_values_on_it(height, width, limit, breaks):
    lattice = choose_lattice(height, width, limit)
    maps = torch.arange(2 * 3 * height * width).view(2, 3, height, width)
    rows, columns = lattice.indices
    expected = maps[:, :, rows][:, :, :, columns].flatten(2).permute(2, 0, 1)
    seen = []
    row_edges, column_edges = (
        [0, *sorted(edge for edge in breaks_of_axis if edge < end), end]
        for breaks_of_axis, end in zip(breaks, (height, width), strict=True)
    )
    for top, bottom in itertools.pairwise(row_edges):
        for left, right in itertools.pairwise(column_edges):
            piece = Piece(top, bottom, left, right, 0)
            positions = lattice.within(piece)
            assert torch.equal(lattice.values_within(piece, maps[:, :, top:bottom, left:right]), expected[positions])
            seen += positions.tolist()
    assert sorted(seen) == list(range(lattice.positions))


def test_responses_of_a_linear_layer_are_one_position():
    layer = nn.Linear(5, 4)
    x = torch.randn(3, 5)
    torch.testing.assert_close(responses_on(layer, x, choose_lattice(1, 1)), layer(x)[None])


@given(height=st.integers(1, 20), width=st.integers(1, 20), limit=st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_responses_of_a_linear_layer_on_maps_are_those_of_the_convolution_of_one_pixel(height, width, limit):
    torch.manual_seed(0)
    linear, convolution = nn.Linear(5, 4).requires_grad_(False), nn.Conv2d(5, 4, 1).requires_grad_(False)
    convolution.weight.copy_(linear.weight[:, :, None, None])
    convolution.bias.copy_(linear.bias)
    x = torch.randn(3, height, width, 5)
    lattice = choose_lattice(height, width, limit)
    expected = responses_on(convolution, x.permute(0, 3, 1, 2), lattice)
    assert expected.shape == (lattice.positions, 3, 4)
    torch.testing.assert_close(responses_on(linear, x, lattice), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_positions_first_is_a_copy(size, memory_format):
    maps = torch.randn(2, 4, *size).contiguous(memory_format=memory_format)
    copied = positions_first(maps)
    expected = copied.clone()
    maps.zero_()
    assert torch.equal(copied, expected)
