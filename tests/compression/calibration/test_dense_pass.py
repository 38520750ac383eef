import math

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from geometry import OnMaps, Residual, random_images, seeded, smooth_images
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.calibration.lattice import responses_on
from hscc_search.compression.fitting.layer import fit_layer
from hscc_search.compression.form import Fold
from hscc_search.compression.ranks.choice import choose_ranks
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError, ModelError


@pytest.mark.parametrize("count", [1, 5, 64, 65])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [3, 16], ids=["map", "one position"])
def test_records_hold_responses_before_an_activation_in_place(count, memory_format, kernel):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, kernel)
    network = nn.Sequential(layer, nn.ReLU(inplace=True), nn.Flatten()).to(memory_format=memory_format)
    x = random_images(count).contiguous(memory_format=memory_format)
    calibration = calibrate(network, x)
    (record,) = calibration.records
    torch.testing.assert_close(record.responses, responses_on(layer, x, record.lattice).detach())


def test_records_of_a_linear_layer_hold_responses_before_an_activation_in_place():
    torch.manual_seed(0)
    layer = nn.Linear(48, 8)
    network = nn.Sequential(nn.Flatten(), layer, nn.ReLU(inplace=True))
    x = random_images(5, 4)
    calibration = calibrate(network, x)
    (record,) = calibration.records
    assert record.fully_connected
    torch.testing.assert_close(record.responses[0], layer(x.flatten(1)).detach())


def test_records_of_a_linear_layer_on_maps_hold_every_position():
    network = seeded(OnMaps)
    x = random_images(5)
    calibration = calibrate(network, x)
    record = calibration.record("wide")
    with torch.no_grad():
        expected = network.wide(network.stem(x).permute(0, 2, 3, 1))
    assert record.fully_connected
    assert (record.lattice.height, record.lattice.width) == (8, 8)
    torch.testing.assert_close(record.responses, expected.flatten(1, 2).transpose(0, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(record.profiles, expected.relu().mean(dim=0).permute(2, 0, 1), rtol=1e-4, atol=1e-5)
    assert record.effects.shape == (8 * 8, 64)
    assert record.macs == 8 * 8 * 24 * 64


def test_profiles_are_the_mean_activations_of_the_whole_map():
    network = DigitsCNN(10)
    x = random_images(10)
    calibration = calibrate(network, x, batch_size=3)
    record = calibration.record("2")
    assert record.lattice.positions < 16 * 16
    with torch.no_grad():
        expected = nn.Sequential(*list(network)[:4])(x).mean(dim=0)
    torch.testing.assert_close(record.profiles, expected, rtol=1e-4, atol=1e-6)
    assert record.responses.shape == (record.lattice.positions, 10, 64)
    assert record.effects.shape == (record.lattice.positions, 64)


def test_records_do_not_depend_on_the_batch_size():
    network = DigitsCNN(10)
    one_batch, four_batches = (calibrate(network, random_images(10), batch_size=size) for size in (10, 3))
    for expected, record in zip(one_batch.records, four_batches.records, strict=True):
        assert record.name == expected.name
        torch.testing.assert_close(record.responses, expected.responses, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(record.profiles, expected.profiles, rtol=1e-4, atol=1e-5)


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
    records = calibrate(network, random_images()).records
    assert [record.name for record in records] == ["first", "second", "last"]
    counted = FlopCountAnalysis(network, random_images(1)).unsupported_ops_warnings(False).by_module()
    assert {record.name: record.macs for record in records} == {record.name: counted[record.name] for record in records}


def test_weights_that_are_not_finite_are_named():
    network = DigitsCNN(10)
    with torch.no_grad():
        network[5].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ModelError, match=r"5\.weight"):
        calibrate(network, random_images())


def test_responses_that_are_not_finite_name_their_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).requires_grad_(False)
    for layer in network[:2]:
        layer.weight.fill_(1e30)
    with pytest.raises(CompressionError, match="layer 1 "):
        calibrate(network, random_images())


def test_statistics_of_a_batch_norm_that_are_not_finite_are_named():
    network = seeded(Residual)
    network.norm.running_mean[0] = math.inf
    with pytest.raises(ModelError, match=r"norm\.running_mean"):
        calibrate(network, random_images())


def test_batch_norms_are_folded_before_responses_are_recorded():
    network = seeded(Residual)
    x = smooth_images(8)
    calibration = calibrate(network, x)
    assert calibration.folds == (Fold("stem.0", "stem.1"), Fold("reduce", "norm"), Fold("mix", "norm_mix"))
    with torch.no_grad():
        torch.testing.assert_close(calibration.network(x), network(x), rtol=1e-4, atol=1e-4)
        normed = network.stem[1](network.stem[0](x))
    record = calibration.record("stem.0")
    rows, columns = record.lattice.indices
    expected = normed[:, :, rows][:, :, :, columns].flatten(2).permute(2, 0, 1)
    torch.testing.assert_close(record.responses, expected, rtol=1e-4, atol=1e-4)


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
def test_the_effect_of_a_channel_is_proportional_to_its_weight_in_the_loss(inplace):
    network = network_of_known_effects(inplace)
    convolution, _ = calibrate(network, torch.randn(70, 3, 8, 8)).records
    effects = convolution.effects
    assert effects.shape == (36, 4)
    assert effects[:, 1].min() > 0
    torch.testing.assert_close(effects[:, 0], torch.zeros(36))
    # Channels 1 and 2 have equal responses, so the activation lets both through at the same positions.
    torch.testing.assert_close(effects[:, 2], 2 * effects[:, 1])


def test_the_effect_of_an_output_is_the_fisher_information_of_its_logit():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    x = 2 * torch.randn(6000, 3, 2, 2)
    (record,) = calibrate(network, x, batch_size=500).records
    with torch.no_grad():
        p = network(x).softmax(dim=1)
    expected = (p * (1 - p)).mean(dim=0).sqrt()
    torch.testing.assert_close(record.effects[0], expected, rtol=0.05, atol=0)


def test_a_fit_leaves_its_error_in_channels_that_the_loss_does_not_depend_on():
    """With one filter for two independent channels, the one that the loss depends on is kept, though it varies less."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[0, 0], network[0].weight[1, 1] = 3, 1
        network[3].weight.copy_(torch.tensor([[0.0, 5.0], [0.0, -5.0]]))
    images = torch.randn(256, 16, 4, 4)
    calibration = calibrate(network, images)
    design = choose_ranks(calibration, Setting(energy=0.5))["0"]
    with torch.no_grad():
        module, _ = fit_layer(calibration, "0", design, 1, images)
        error = (module(images) - network[0](images)).square().mean(dim=(0, 2, 3))
    assert design.form.ranks == (((1,),),)
    assert error[1] < 0.01 * error[0]
