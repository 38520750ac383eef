import math

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from geometry import convolutions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.calibration import POSITIONS, calibrate, choose_lattice, responses_on
from hscc_search.compression.hscc import Setting, compress_layer
from hscc_search.errors import CompressionError
from hscc_search.models import DigitsCNN

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def images(count=4, side=16, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@given(height=st.integers(1, 400), width=st.integers(1, 400), limit=st.integers(1, 300))
@settings(max_examples=150, deadline=None)
def test_a_lattice_is_within_the_limit_inside_the_map_and_never_empty(height, width, limit):
    rows, columns = choose_lattice(height, width, limit).indices
    assert 1 <= len(rows) * len(columns) <= limit
    assert rows.min() >= 0
    assert rows.max() < height
    assert columns.min() >= 0
    assert columns.max() < width


@given(side=st.integers(1, 14))
def test_a_map_within_the_limit_is_kept_whole(side):
    rows, columns = choose_lattice(side, side).indices
    assert len(rows) == len(columns) == side


@given(side=st.integers(15, 300))
@settings(max_examples=50, deadline=None)
def test_no_finer_lattice_is_within_the_limit(side):
    lattice = choose_lattice(side, side)
    assert math.ceil(side / (lattice.step - 1)) ** 2 > POSITIONS


@given(convolution=convolutions(40), limit=st.integers(1, 200))
@settings(max_examples=150, deadline=None)
def test_responses_on_a_lattice_are_those_of_the_full_convolution(convolution, limit):
    layer, x = convolution
    full = layer(x)
    lattice = choose_lattice(*full.shape[2:], limit)
    rows, columns = lattice.indices
    expected = full[:, :, rows][:, :, :, columns].flatten(2).permute(2, 0, 1)
    torch.testing.assert_close(responses_on(layer, x, lattice), expected, rtol=1e-5, atol=1e-5)


def test_responses_of_a_linear_layer_are_one_position():
    layer = nn.Linear(5, 4)
    x = torch.randn(3, 5)
    torch.testing.assert_close(responses_on(layer, x, choose_lattice(1, 1)), layer(x)[None])


@pytest.mark.parametrize("count", [1, 5, 64, 65])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [3, 16], ids=["map", "one position"])
def test_records_hold_responses_before_an_activation_in_place(count, memory_format, kernel):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, kernel)
    network = nn.Sequential(layer, nn.ReLU(inplace=True), nn.Flatten()).to(memory_format=memory_format)
    x = images(count).contiguous(memory_format=memory_format)
    (record,) = calibrate(network, x).records
    torch.testing.assert_close(record.responses, responses_on(layer, x, record.lattice).detach())


def test_records_of_a_linear_layer_hold_responses_before_an_activation_in_place():
    torch.manual_seed(0)
    layer = nn.Linear(48, 8)
    network = nn.Sequential(nn.Flatten(), layer, nn.ReLU(inplace=True))
    x = images(5, 4)
    (record,) = calibrate(network, x).records
    torch.testing.assert_close(record.responses[0], layer(x.flatten(1)).detach())


def test_batches_do_not_show_in_the_records():
    network = DigitsCNN(10)
    whole, parts = calibrate(network, images(10)), calibrate(network, images(10), batch_size=3)
    for one, other in zip(whole.records, parts.records, strict=True):
        assert one.name == other.name
        torch.testing.assert_close(one.responses, other.responses, rtol=1e-4, atol=1e-5)


def test_records_are_in_execution_order_with_fvcores_macs():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(8, 4)
            self.second = nn.Conv2d(6, 8, 3, stride=2)
            self.first = nn.Conv2d(3, 6, (5, 3), padding=(1, 2), dilation=(2, 1))

        def forward(self, x):
            return self.last(self.second(self.first(x)).mean(dim=(2, 3)))

    network = Backwards()
    records = calibrate(network, images()).records
    assert [record.name for record in records] == ["first", "second", "last"]
    counted = FlopCountAnalysis(network, images(1)).unsupported_ops_warnings(False).by_module()
    assert {record.name: record.macs for record in records} == {record.name: counted[record.name] for record in records}


class Odd(nn.Module):
    """One layer of each kind that cannot be compressed, and one that can."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.reused = nn.Conv2d(8, 8, 1)
        self.reflecting = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.tokens = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)

    def forward(self, x):
        x = self.reused(self.reused(self.grouped(self.depthwise(self.plain(x)))))
        return self.tokens(self.reflecting(x).flatten(2).transpose(1, 2)).mean(dim=1)


def test_layers_that_cannot_be_compressed_are_left_dense_with_a_reason():
    calibration = calibrate(Odd(), images(side=8))
    assert [record.name for record in calibration.records] == ["plain"]
    reasons = {name: reason for name, (_, reason) in calibration.left_dense.items()}
    assert reasons.keys() == {"depthwise", "grouped", "reused", "reflecting", "tokens", "never"}
    assert reasons["depthwise"] == "depthwise"
    assert reasons["grouped"] == "grouped"
    assert "more than once" in reasons["reused"]
    assert "reflect" in reasons["reflecting"]
    assert "more than one position" in reasons["tokens"]
    assert "never called" in reasons["never"]


def test_layers_left_dense_have_fvcores_macs():
    network = Odd()
    left_dense = calibrate(network, images(side=8)).left_dense
    counted = FlopCountAnalysis(network, images(1, 8)).unsupported_ops_warnings(False)
    by_module = counted.uncalled_modules_warnings(False).by_module()
    for name, (macs, _) in left_dense.items():
        assert macs == by_module[name], name


def test_a_layer_over_positions_folded_into_the_images_is_left_dense():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.pixels = nn.Linear(3, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.pixels(x.permute(0, 2, 3, 1).reshape(-1, 3))
            return self.head(x.reshape(-1, 16, 8).mean(dim=1))

    network = Folded()
    calibration = calibrate(network, images(side=4))
    assert [record.name for record in calibration.records] == ["head"]
    assert calibration.left_dense["pixels"][0] == 16 * 3 * 8


def test_weights_that_are_not_finite_are_named():
    network = DigitsCNN(10)
    with torch.no_grad():
        network[5].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(CompressionError, match=r"5\.weight"):
        calibrate(network, images())


def test_responses_that_are_not_finite_name_their_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    network[1].running_mean[0] = math.inf
    with pytest.raises(CompressionError, match="layer 2"):
        calibrate(network, images())


def test_a_network_without_a_layer_to_compress_is_an_error():
    with pytest.raises(CompressionError, match="no convolution or fully connected layer"):
        calibrate(nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Flatten()), images())


def test_calibration_leaves_weights_and_hooks_alone_and_reports_each_batch():
    network = DigitsCNN(10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen = []
    calibrate(network, images(10), report=seen.append, batch_size=4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(layer._forward_hooks for layer in network.modules())
    assert [(step.done, step.total) for step in seen] == [(4, 10), (8, 10), (10, 10)]


def network_of_known_effects(inplace):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    with torch.no_grad():
        network[0].weight[2], network[0].bias[2] = network[0].weight[1], network[0].bias[1]
        network[4].weight[:, 0] = 0
        network[4].weight[:, 2] = 2 * network[4].weight[:, 1]
    return network


@pytest.mark.parametrize("inplace", [True, False])
def test_the_effect_of_a_channel_is_in_proportion_to_what_the_loss_makes_of_it(inplace):
    network = network_of_known_effects(inplace)
    convolution, _ = calibrate(network, torch.randn(70, 3, 8, 8)).records
    effects = convolution.effects - 1e-3
    assert effects[0].item() == pytest.approx(0, abs=1e-6)
    assert effects[2].item() == pytest.approx(2 * effects[1].item(), rel=1e-5)
    assert effects.mean().item() == pytest.approx(1, rel=1e-5)


def test_calibration_leaves_gradients_and_their_flags_alone():
    network = network_of_known_effects(True)
    network[4].bias.requires_grad_(False)
    calibrate(network, torch.randn(8, 3, 8, 8))
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, True, True, False]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_errors_go_where_the_loss_does_not_look():
    """Of two independent channels and one filter, the one that the loss hears is kept, though it varies less."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[0, 0], network[0].weight[1, 1] = 3, 1
        network[3].weight.copy_(torch.tensor([[0.0, 5.0], [0.0, -5.0]]))
    images = torch.randn(256, 16, 4, 4)
    record = calibrate(network, images).records[0]
    with torch.no_grad():
        module, plan, _ = compress_layer(network[0], images, record, Setting(1, 1, 0.5))
        error = (module(images) - network[0](images)).square().mean(dim=(0, 2, 3))
    assert plan.ranks == ((1,),)
    assert error[1] < 0.01 * error[0]
