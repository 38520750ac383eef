import torch
from geometry import smooth_images
from peers import IMAGE_SIZE, Residual, calibrated
from torch import nn

from hscc_search.compression.baselines.pruning import compress_pruning
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.dense.networks import DigitsCNN


def test_channels_without_effect_go_first_and_each_layer_loses_the_same_share():
    network = calibrated(lambda: DigitsCNN(5, IMAGE_SIZE)).network
    *hidden, _ = [layer for layer in network if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for layer in hidden:
            layer.weight[: len(layer.weight) // 2] = 0
            layer.bias[: len(layer.bias) // 2] = 0
    x = smooth_images(16)
    compressed = compress_pruning(calibrate(network, x), 2)
    torch.testing.assert_close(compressed(x), network(x), rtol=1e-4, atol=1e-5)
    *fewer, last = [layer for layer in compressed if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(last.weight) == 5
    for layer, before in zip(fewer, hidden, strict=True):
        assert 0.5 <= len(layer.weight) / len(before.weight) < 0.8


def test_frozen_parameters_stay_frozen_and_the_last_layer_keeps_its_outputs():
    calibration = calibrated(Residual).calibration
    calibration.network.stem.requires_grad_(False)
    compressed = compress_pruning(calibration, 8)
    frozen = {name for name, parameter in compressed.named_parameters() if not parameter.requires_grad}
    assert frozen == {"stem.0.weight", "stem.0.bias"}
    assert compressed.head[2].out_features == 5
    assert compressed.depthwise.groups == compressed.depthwise.in_channels < 60
