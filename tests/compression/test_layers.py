import json

import numpy as np
import pytest
import torch
from geometry import convolutions
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from hscc_search.compression.layers import Blueprint, build
from hscc_search.compression.regions import Piece, pieces

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@st.composite
def partitioned(draw):
    """A convolution, an input that is large enough for it, and a label map of the output with every label."""
    layer, x = draw(convolutions(9, bias=st.just(True)))
    raw = draw(arrays(np.int64, tuple(layer(x).shape[2:]), elements=st.integers(0, 3)))
    return layer, x, np.unique(raw, return_inverse=True)[1].reshape(raw.shape)


def blueprint_of(labels, rank):
    return Blueprint(labels.shape, (rank,) * (int(labels.max()) + 1), pieces(labels))


@given(case=partitioned())
@settings(max_examples=120, deadline=None)
def test_regions_of_the_same_dense_filters_are_the_plain_convolution(case):
    layer, x, labels = case
    regional = build(layer, blueprint_of(labels, None))
    for region in regional.regions:
        region.load_state_dict(layer.state_dict())
    torch.testing.assert_close(regional(x), layer(x), rtol=1e-5, atol=1e-5)


@given(case=partitioned(), rank=st.integers(1, 4))
@settings(max_examples=120, deadline=None)
@torch.no_grad()
def test_each_position_is_answered_by_the_filters_of_its_own_region(case, rank):
    layer, x, labels = case
    regional = build(layer, blueprint_of(labels, rank))
    expected = torch.empty_like(layer(x))
    for label, (encode, decode) in enumerate(regional.regions):
        whole = nn.Conv2d(2, 3, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        whole.weight.copy_(torch.einsum("or,rihw->oihw", decode.weight[:, :, 0, 0], encode.weight))
        whole.bias.copy_(decode.bias)
        mask = torch.from_numpy(labels == label)
        expected[:, :, mask] = whole(x)[:, :, mask]
    torch.testing.assert_close(regional(x), expected, rtol=1e-5, atol=1e-5)


blueprints = st.builds(
    Blueprint,
    st.tuples(st.integers(1, 99), st.integers(1, 99)),
    st.lists(st.none() | st.integers(1, 99), min_size=1).map(tuple),
    st.lists(st.builds(Piece, *[st.integers(0, 99)] * 5), min_size=1).map(tuple),
)


@given(blueprint=blueprints)
@settings(max_examples=60, deadline=None)
def test_a_blueprint_comes_back_from_json_as_it_was(blueprint):
    assert Blueprint.from_stored(json.loads(json.dumps(blueprint.stored()))) == blueprint


QUARTERS = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 3]])


def compressed_layers():
    """Layers of every form with random weights, each with an input."""
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(6, 5)
    x = torch.randn(4, 2, 3, 3)
    whole = np.zeros((3, 3), int)
    return [
        pytest.param(build(convolution, blueprint), x, blueprint, convolution, id=name)
        for name, blueprint in {
            "regions": Blueprint((3, 3), (2, None, 1, 3), pieces(QUARTERS)),
            "one region": Blueprint((3, 3), (2,), pieces(whole)),
            "one dense region": Blueprint((3, 3), (None,), pieces(whole)),
        }.items()
    ] + [
        pytest.param(build(linear, blueprint), torch.randn(4, 6), blueprint, linear, id=name)
        for name, blueprint in {
            "linear": Blueprint((1, 1), (2,), (Piece(0, 1, 0, 1, 0),)),
            "dense linear": Blueprint((1, 1), (None,), (Piece(0, 1, 0, 1, 0),)),
        }.items()
    ]


@pytest.mark.parametrize(("module", "x", "blueprint", "layer"), compressed_layers())
def test_the_blueprint_and_the_state_dict_are_the_whole_layer(module, x, blueprint, layer):
    again = build(layer, Blueprint.from_stored(json.loads(json.dumps(blueprint.stored()))))
    assert not torch.equal(again(x), module(x))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module(x))


@pytest.mark.parametrize(("module", "x", "blueprint", "layer"), compressed_layers())
def test_a_gradient_reaches_every_parameter(module, x, blueprint, layer):
    module.zero_grad()
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_whole_map_layer_takes_images_of_another_size():
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    whole = build(layer, Blueprint((4, 4), (None,), (Piece(0, 4, 0, 4, 0),)))
    whole.regions[0].load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, 13, 11)
    torch.testing.assert_close(whole(x), layer(x))
