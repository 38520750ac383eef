import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_search.dense.networks import build_network
from hscc_search.evaluation.counters import count_macs, measure_cost


@pytest.fixture(scope="module")
def alexnet():
    return measure_cost(build_network("alexnet", 4, 224), 224)


def test_alexnet_has_the_known_cost(alexnet):
    # Five convolutions, 655 566 528, and three fully connected layers, 54 542 336.
    assert alexnet.macs == 710_108_864
    assert alexnet.flops == 2 * alexnet.macs
    assert alexnet.parameters == 57_020_228
    assert alexnet.megabytes == pytest.approx(4 * 57.020228)


def test_operators_that_fvcore_does_not_know_are_named(alexnet):
    assert alexnet.uncounted["max_pool2d"] == 3


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("alexnet", 64), ("resnet18", 32), ("mobilenet_v3_small", 32), ("squeezenet1_1", 32), ("digits_cnn", 16)],
)
def test_fvcore_and_torch_count_the_same(name, image_size):
    network = build_network(name, 4, image_size)
    cost = measure_cost(network, image_size)
    assert cost.macs == cost.macs_torch > 0
    assert cost.flops == 2 * cost.macs
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    stored = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    assert cost.megabytes == pytest.approx(stored / 1e6)


@given(
    image_size=st.integers(5, 20),
    outputs=st.integers(1, 6),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    depthwise=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_a_convolution_costs_its_weights_at_every_position(image_size, outputs, kernel, stride, padding, depthwise):
    groups = 3 if depthwise else 1
    layer = nn.Conv2d(3, outputs * groups, kernel, stride, padding, groups=groups)
    height, width = ((image_size + 2 * padding - k) // stride + 1 for k in kernel)
    cost = measure_cost(layer, image_size)
    assert cost.macs == height * width * outputs * kernel[0] * kernel[1] * 3
    assert cost.macs_torch == cost.macs


@given(image_size=st.integers(1, 8), outputs=st.integers(1, 50), bias=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_linear_layer_costs_its_weights(image_size, outputs, bias):
    cost = measure_cost(nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, outputs, bias)), image_size)
    assert cost.macs == cost.macs_torch == 3 * image_size**2 * outputs
    assert cost.parameters == cost.macs + outputs * bias


def test_measuring_leaves_the_network_as_it_was():
    network = build_network("resnet18", 4, 32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measure_cost(network, 32)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Products(nn.Module):
    """Products of a matrix and a vector, of two vectors, and attention, by functions."""

    def __init__(self):
        super().__init__()
        self.vector, self.matrix = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        rows = x.flatten()[: 6 * 8].view(6, 8)
        products = torch.mv(rows, self.vector).sum() + torch.dot(rows[0], self.vector)
        added = torch.addmv(torch.zeros(5), self.matrix, self.vector).sum()
        tokens = rows.view(1, 2, 3, 8)  # two heads of three tokens
        return products + added + nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).sum()


def test_products_that_torchs_own_counter_misses_are_counted():
    attention = 2 * (3 * 3 * 8) * 2  # scores and their mixture, for each head
    assert count_macs(Products().eval(), torch.randn(1, 3, 4, 4))[""] == 6 * 8 + 8 + 5 * 8 + attention


def test_a_fused_attention_layer_is_counted_as_its_parts_are():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    network = nn.Sequential(nn.Flatten(2), nn.Linear(16, 8), layer)
    projections, products, wide = 3 * (4 * 8 * 8), 2 * (3 * 3 * 8), 3 * (2 * 8 * 16)
    assert count_macs(network, torch.randn(1, 3, 4, 4))[""] == 3 * 16 * 8 + projections + products + wide


def test_what_fvcore_misses_is_said_with_the_layer_and_counted():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    cost = measure_cost(network, 8)
    assert cost.macs == 8 * 8 * (3 * 4 * 9 + 4 * 4)
    assert cost.notes == ("0: fvcore misses 6,912 of 6,912 MACs, which torch counts",)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_and_bilinear_layers_are_counted(bidirectional):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = nn.LSTM(12, 8, batch_first=True, bidirectional=bidirectional)
            self.bilinear = nn.Bilinear(8, 6, 5)

        def forward(self, x):
            rows, _ = self.recurrent(x.flatten(1, 2))
            return self.bilinear(rows[:, -1, :8], x[:, 0, 0, :6])

    # Four gates, of the input and of the state before, at each of 3 x 7 rows.
    counts = count_macs(Recurrent().eval(), torch.randn(1, 3, 7, 12))
    assert counts["recurrent"] == 21 * 4 * 8 * (12 + 8) * (2 if bidirectional else 1)
    assert counts["bilinear"] == 8 * 6 * 5
