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
from hscc_search.compression.layers import build, group_modules, region_modules
from hscc_search.errors import CompressionError

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@st.composite
def partitioned(draw):
    """A convolution, an input that is large enough for it, and a label map of the output without unused labels."""
    layer, x = draw(convolutions(9, bias=st.just(True)))
    raw = draw(arrays(np.int64, tuple(layer(x).shape[2:]), elements=st.integers(0, 3)))
    return layer, x, np.unique(raw, return_inverse=True)[1].reshape(raw.shape)


def layer_form(labels, ranks, groups, input_rank=None):
    """The form of a layer whose regions all have the same ranks."""
    regions = int(labels.max()) + 1
    return LayerForm(labels.shape, ((ranks,) * regions,) * groups, pieces(labels), (input_rank,) * groups)


def group_of(layer, group):
    """One group of a convolution as a convolution of its own."""
    result = nn.Conv2d(2, 3, layer.kernel_size, layer.stride, layer.padding, layer.dilation).requires_grad_(False)
    result.weight.copy_(layer.weight[3 * group : 3 * group + 3])
    result.bias.copy_(layer.bias[3 * group : 3 * group + 3])
    return result


def filters_of(regional, filters):
    """The weights of a region's filters as they apply to all input channels."""
    if regional.encoder is None:
        return filters.weight
    return torch.einsum("rehw,ei->rihw", filters.weight, regional.encoder.weight[:, :, 0, 0])


@given(case=partitioned())
@settings(max_examples=120, deadline=None)
def test_regions_of_the_same_dense_filters_are_the_plain_convolution(case):
    layer, x, labels = case
    regional = build(layer, layer_form(labels, None, layer.groups))
    groups = group_modules(regional)
    assert len(groups) == layer.groups
    for group, module in enumerate(groups):
        for region in region_modules(module):
            region.load_state_dict(group_of(layer, group).state_dict())
    torch.testing.assert_close(regional(x), layer(x), rtol=1e-5, atol=1e-5)


@given(
    case=partitioned(),
    ranks=st.lists(st.integers(1, 2), min_size=1, max_size=2).map(tuple),
    input_rank=st.sampled_from([None, 1, 2]),
)
@settings(max_examples=120, deadline=None)
@torch.no_grad()
def test_each_position_is_answered_by_the_filters_of_its_own_region(case, ranks, input_rank):
    layer, x, labels = case
    regional = build(layer, layer_form(labels, ranks, layer.groups, input_rank))
    expected = torch.empty_like(layer(x))
    for group, module in enumerate(group_modules(regional)):
        outputs = slice(3 * group, 3 * group + 3)
        whole = group_of(layer, group)
        for label, (filters, recombination) in enumerate(region_modules(module)):
            assert len(filters.weight) == sum(ranks)
            weight = filters_of(module, filters)
            whole.weight.copy_(torch.einsum("or,rihw->oihw", recombination.weight[:, :, 0, 0], weight))
            whole.bias.copy_(recombination.bias)
            mask = torch.from_numpy(labels == label)
            expected[:, outputs, mask] = whole(x[:, 2 * group : 2 * group + 2])[:, :, mask]
    torch.testing.assert_close(regional(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 2])
@pytest.mark.parametrize("rank", [None, 2])
@torch.no_grad()
def test_pieces_that_see_only_padding_answer_like_the_plain_convolution(padding, kernel, rank):
    layer = nn.Conv2d(2, 3, kernel, padding=padding)
    x = torch.randn(2, 2, 3, 3)
    expected = layer(x)
    labels = np.arange(expected[0, 0].numel()).reshape(expected.shape[2:])  # each position is a region
    regional = build(layer, layer_form(labels, None if rank is None else (rank,), 1, rank))
    for position, region in enumerate(regional.regions):
        if rank is None:
            region.load_state_dict(layer.state_dict())
        else:
            filters, recombination = region
            weight = torch.einsum("or,rihw->oihw", recombination.weight[:, :, 0, 0], filters_of(regional, filters))
            answers = nn.functional.conv2d(x, weight, recombination.bias, padding=padding)
            row, column = divmod(position, labels.shape[1])
            expected[:, :, row, column] = answers[:, :, row, column]
    torch.testing.assert_close(regional(x), expected, rtol=1e-5, atol=1e-5)


QUARTERS = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 3]])


WHOLE = np.zeros((3, 3), int)

CONVOLUTIONS = {
    "regions": LayerForm((3, 3), (((2,), None, (1,), (2, 1)),), pieces(QUARTERS), (None,)),
    "regions with fewer inputs": LayerForm((3, 3), (((2,), (3,), (1,), (2, 1)),), pieces(QUARTERS), (1,)),
    "one region": LayerForm((3, 3), (((2,),),), pieces(WHOLE), (None,)),
    "one dense region": LayerForm((3, 3), ((None,),), pieces(WHOLE), (None,)),
}
GROUPED = {
    "grouped regions": LayerForm(
        (3, 3), (((2,), None, (1,), (3,)), (None, (1,), (1, 1), (1,))), pieces(QUARTERS), (None, None)
    ),
    "grouped regions, one group with fewer inputs": LayerForm(
        (3, 3), (((2,), None, (1,), (3,)), ((2,), (1,), (1, 1), (1,))), pieces(QUARTERS), (None, 1)
    ),
    "grouped": LayerForm((3, 3), (((2,),), (None,)), pieces(WHOLE), (None, None)),
}
LINEAR = {
    "linear": LayerForm((1, 1), (((2,),),), (Piece(0, 1, 0, 1, 0),), (None,)),
    "dense linear": LayerForm((1, 1), ((None,),), (Piece(0, 1, 0, 1, 0),), (None,)),
}


def compressed_layers():
    """Compressed layers of every form with random weights, each with an input, its form and its dense layer."""
    torch.manual_seed(0)
    layers = [
        (nn.Conv2d(2, 5, 3, padding=1), torch.randn(4, 2, 3, 3), CONVOLUTIONS),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.randn(4, 4, 3, 3), GROUPED),
        (nn.Linear(6, 5), torch.randn(4, 6), LINEAR),
    ]
    return [
        pytest.param(build(layer, form), x, form, layer, id=name)
        for layer, x, forms in layers
        for name, form in forms.items()
    ]


@pytest.mark.parametrize(("module", "x", "form", "layer"), compressed_layers())
def test_the_form_and_the_state_dict_are_the_whole_layer(module, x, form, layer):
    again = build(layer, LayerForm.from_stored(json.loads(json.dumps(form.stored()))))
    assert not torch.equal(again(x), module(x))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module(x))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "regions with fewer inputs",
            ["encoder.weight", "regions.0.0.weight", "regions.0.1.weight", "regions.0.1.bias"],
        ),
        ("regions", ["regions.0.0.weight", "regions.0.1.weight", "regions.0.1.bias", "regions.1.weight"]),
    ],
)
def test_weights_keep_the_names_that_exported_folders_hold(name, expected):
    module = build(nn.Conv2d(2, 5, 3, padding=1), CONVOLUTIONS[name])
    assert list(module.state_dict())[:4] == expected


def test_weights_of_groups_are_read_by_the_name_that_exported_folders_of_0_1_0_hold():
    module = build(nn.Conv2d(4, 6, 3, padding=1, groups=2), GROUPED["grouped"])
    weights = {name: torch.randn_like(value) for name, value in module.state_dict().items()}
    assert list(weights) == [
        "of_group.0.regions.0.0.weight",
        "of_group.0.regions.0.1.weight",
        "of_group.0.regions.0.1.bias",
        "of_group.1.regions.0.weight",
        "of_group.1.regions.0.bias",
    ]
    whole = nn.Sequential(module)  # names begin with its own
    whole.load_state_dict({f"0.{name.replace('of_group', 'groups')}": value for name, value in weights.items()})
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(("module", "x", "form", "layer"), compressed_layers())
def test_a_gradient_reaches_every_parameter(module, x, form, layer):
    module.zero_grad()
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_whole_map_layer_takes_images_of_another_size():
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    whole = build(layer, LayerForm((4, 4), ((None,),), (Piece(0, 4, 0, 4, 0),), (None,)))
    whole.regions[0].load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, 13, 11)
    torch.testing.assert_close(whole(x), layer(x))


@pytest.mark.parametrize("size", [(5, 6), (6, 5), (7, 6), (12, 12)])
@pytest.mark.parametrize("groups", [1, 2])
def test_regions_of_a_map_refuse_an_input_of_another_size(size, groups):
    layer = nn.Conv2d(2 * groups, 3 * groups, 3, padding=1, groups=groups)
    halves = np.repeat([[0, 1]], 6, 0).repeat(3, 1)
    regional = build(layer, layer_form(halves, (1,), groups))
    assert regional(torch.randn(1, 2 * groups, 6, 6)).shape == (1, 3 * groups, 6, 6)
    with pytest.raises(CompressionError, match="regions belong to a map"):
        regional(torch.randn(1, 2 * groups, *size))


def test_a_factored_linear_layer_takes_maps_with_the_channels_last():
    layer = nn.Linear(6, 5)
    module = build(layer, LayerForm((3, 2), (((2,),),), (Piece(0, 3, 0, 2, 0),), (None,)))
    x = torch.randn(4, 3, 2, 6)
    torch.testing.assert_close(module(x)[:, 1, 1], module(x[:, 1, 1]))
    assert group_modules(module) == region_modules(module) == [module]
