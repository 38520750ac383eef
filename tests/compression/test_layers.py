import json

import numpy as np
import pytest
import torch
from geometry import convolutions
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from hscc_search.compression.division.regions import pieces
from hscc_search.compression.form import LayerForm, Piece
from hscc_search.compression.layers import build, parts
from hscc_search.errors import CompressionError

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@st.composite
def partitioned(draw):
    """A convolution, an input that is large enough for it, and a label map of the output with every label."""
    layer, x = draw(convolutions(9, bias=st.just(True)))
    raw = draw(arrays(np.int64, tuple(layer(x).shape[2:]), elements=st.integers(0, 3)))
    return layer, x, np.unique(raw, return_inverse=True)[1].reshape(raw.shape)


def blueprint_of(labels, rank, groups, inputs=None):
    count = int(labels.max()) + 1
    return LayerForm(labels.shape, ((rank,) * count,) * groups, pieces(labels), (inputs,) * groups)


def group_of(layer, group):
    """One group of a convolution as a convolution of its own."""
    result = nn.Conv2d(2, 3, layer.kernel_size, layer.stride, layer.padding, layer.dilation).requires_grad_(False)
    result.weight.copy_(layer.weight[3 * group : 3 * group + 3])
    result.bias.copy_(layer.bias[3 * group : 3 * group + 3])
    return result


def filters_of(regional, filters):
    """The filters of a region of one group, as they see the layer's input."""
    if isinstance(regional.encoder, nn.Identity):
        return filters.weight
    return torch.einsum("rehw,ei->rihw", filters.weight, regional.encoder.weight[:, :, 0, 0])


@given(case=partitioned())
@settings(max_examples=120, deadline=None)
def test_regions_of_the_same_dense_filters_are_the_plain_convolution(case):
    layer, x, labels = case
    regional = build(layer, blueprint_of(labels, None, layer.groups))
    assert len(parts(regional)) == layer.groups
    for group, row in enumerate(parts(regional)):
        for region in row:
            region.load_state_dict(group_of(layer, group).state_dict())
    torch.testing.assert_close(regional(x), layer(x), rtol=1e-5, atol=1e-5)


@given(case=partitioned(), rank=st.integers(1, 4), inputs=st.sampled_from([None, 1, 2]))
@settings(max_examples=120, deadline=None)
@torch.no_grad()
def test_each_position_is_answered_by_the_filters_of_its_own_region(case, rank, inputs):
    layer, x, labels = case
    regional = build(layer, blueprint_of(labels, rank, layer.groups, inputs))
    expected = torch.empty_like(layer(x))
    for group, own in enumerate(regional.groups if layer.groups > 1 else [regional]):
        share = slice(3 * group, 3 * group + 3)
        whole = group_of(layer, group)
        for label, (filters, decode) in enumerate(own.regions):
            weight = filters_of(own, filters)
            whole.weight.copy_(torch.einsum("or,rihw->oihw", decode.weight[:, :, 0, 0], weight))
            whole.bias.copy_(decode.bias)
            mask = torch.from_numpy(labels == label)
            expected[:, share, mask] = whole(x[:, 2 * group : 2 * group + 2])[:, :, mask]
    torch.testing.assert_close(regional(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 2])
@pytest.mark.parametrize("rank", [None, 2])
@torch.no_grad()
def test_pieces_that_see_nothing_but_padding_answer_like_the_plain_convolution(padding, kernel, rank):
    layer = nn.Conv2d(2, 3, kernel, padding=padding)
    x = torch.randn(2, 2, 3, 3)
    expected = layer(x)
    labels = np.arange(expected[0, 0].numel()).reshape(expected.shape[2:])  # each position for itself
    regional = build(layer, blueprint_of(labels, rank, 1, rank))
    for position, region in enumerate(regional.regions):
        if rank is None:
            region.load_state_dict(layer.state_dict())
        else:
            filters, decode = region
            own = torch.einsum("or,rihw->oihw", decode.weight[:, :, 0, 0], filters_of(regional, filters))
            row, column = divmod(position, labels.shape[1])
            expected[:, :, row, column] = nn.functional.conv2d(x, own, decode.bias, padding=padding)[:, :, row, column]
    torch.testing.assert_close(regional(x), expected, rtol=1e-5, atol=1e-5)


blueprints = st.builds(
    LayerForm,
    st.tuples(st.integers(1, 99), st.integers(1, 99)),
    st.lists(st.lists(st.none() | st.integers(1, 99), min_size=1).map(tuple), min_size=1, max_size=4).map(tuple),
    st.lists(st.builds(Piece, *[st.integers(0, 99)] * 5), min_size=1).map(tuple),
    st.lists(st.none() | st.integers(1, 99), max_size=4).map(tuple),
)


@given(blueprint=blueprints)
@settings(max_examples=60, deadline=None)
def test_a_blueprint_comes_back_from_json_as_it_was(blueprint):
    assert LayerForm.from_stored(json.loads(json.dumps(blueprint.stored()))) == blueprint


QUARTERS = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 3]])


def compressed_layers():
    """Layers of every form with random weights, each with an input."""
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(6, 5)
    x = torch.randn(4, 2, 3, 3)
    grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    whole = np.zeros((3, 3), int)
    return (
        [
            pytest.param(build(convolution, blueprint), x, blueprint, convolution, id=name)
            for name, blueprint in {
                "regions": LayerForm((3, 3), ((2, None, 1, 3),), pieces(QUARTERS)),
                "regions with fewer inputs": LayerForm((3, 3), ((2, 3, 1, 3),), pieces(QUARTERS), (1,)),
                "one region": LayerForm((3, 3), ((2,),), pieces(whole)),
                "one dense region": LayerForm((3, 3), ((None,),), pieces(whole)),
            }.items()
        ]
        + [
            pytest.param(build(grouped, blueprint), torch.randn(4, 4, 3, 3), blueprint, grouped, id=name)
            for name, blueprint in {
                "grouped regions": LayerForm((3, 3), ((2, None, 1, 3), (None, 1, 2, 1)), pieces(QUARTERS)),
                "grouped": LayerForm((3, 3), ((2,), (None,)), pieces(whole)),
            }.items()
        ]
        + [
            pytest.param(build(linear, blueprint), torch.randn(4, 6), blueprint, linear, id=name)
            for name, blueprint in {
                "linear": LayerForm((1, 1), ((2,),), (Piece(0, 1, 0, 1, 0),)),
                "dense linear": LayerForm((1, 1), ((None,),), (Piece(0, 1, 0, 1, 0),)),
            }.items()
        ]
    )


@pytest.mark.parametrize(("module", "x", "blueprint", "layer"), compressed_layers())
def test_the_blueprint_and_the_state_dict_are_the_whole_layer(module, x, blueprint, layer):
    again = build(layer, LayerForm.from_stored(json.loads(json.dumps(blueprint.stored()))))
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
    whole = build(layer, LayerForm((4, 4), ((None,),), (Piece(0, 4, 0, 4, 0),)))
    whole.regions[0].load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, 13, 11)
    torch.testing.assert_close(whole(x), layer(x))


@pytest.mark.parametrize("size", [(5, 6), (6, 5), (7, 6), (12, 12)])
@pytest.mark.parametrize("groups", [1, 2])
def test_regions_of_a_map_refuse_an_input_of_another_size(size, groups):
    layer = nn.Conv2d(2 * groups, 3 * groups, 3, padding=1, groups=groups)
    regional = build(layer, LayerForm((6, 6), ((1, 1),) * groups, pieces(np.repeat([[0, 1]], 6, 0).repeat(3, 1))))
    assert regional(torch.randn(1, 2 * groups, 6, 6)).shape == (1, 3 * groups, 6, 6)
    with pytest.raises(CompressionError, match="regions belong to a map"):
        regional(torch.randn(1, 2 * groups, *size))


def test_a_factored_linear_layer_takes_maps_with_the_channels_last():
    layer = nn.Linear(6, 5)
    module = build(layer, LayerForm((3, 2), ((2,),), (Piece(0, 3, 0, 2, 0),)))
    x = torch.randn(4, 3, 2, 6)
    torch.testing.assert_close(module(x)[:, 1, 1], module(x[:, 1, 1]))
    assert parts(module) == [[module]]
