import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from geometry import random_images
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.calibration.eligible import MOST_GROUPS, examine_layers
from hscc_search.errors import CompressionError


def left_dense(calibration):
    """Multiply-adds and reason of each layer that is left dense."""
    return {layer.name: (layer.macs, layer.left_dense) for layer in calibration.inspection.layers if layer.left_dense}


class Odd(nn.Module):
    """One layer of each kind that cannot be compressed, and some that can."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.reused = nn.Conv2d(8, 8, 1)
        self.reflecting = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.tokens = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.widen = nn.Conv2d(8, 2 * (MOST_GROUPS + 1), 1)
        self.cardinal = nn.Conv2d(2 * (MOST_GROUPS + 1), 2 * (MOST_GROUPS + 1), 1, groups=MOST_GROUPS + 1)
        self.shared = self.alias = nn.Conv2d(2 * (MOST_GROUPS + 1), 8, 1)

    def forward(self, x):
        x = self.grouped(self.depthwise(self.plain(x)))
        x = self.reused(self.reused(self.alias(self.cardinal(self.widen(x)))))
        return self.tokens(self.reflecting(x).flatten(2).transpose(1, 2)).mean(dim=1)


def test_layers_that_cannot_be_compressed_are_left_dense_with_a_reason():
    calibration = calibrate(Odd(), random_images(side=8))
    assert [record.name for record in calibration.records] == ["plain", "grouped", "widen", "shared", "tokens"]
    assert calibration.record("grouped").groups == 2
    reasons = {name: reason for name, (_, reason) in left_dense(calibration).items()}
    assert reasons.keys() == {"depthwise", "cardinal", "reused", "reflecting", "never"}
    assert reasons["depthwise"] == "depthwise"
    assert f"{MOST_GROUPS + 1} groups" in reasons["cardinal"]
    assert "more than once" in reasons["reused"]
    assert "reflect" in reasons["reflecting"]
    assert "never called" in reasons["never"]


def test_layers_left_dense_have_fvcores_macs():
    network = Odd()
    calibration = calibrate(network, random_images(side=8))
    counted = FlopCountAnalysis(network, random_images(1, 8)).unsupported_ops_warnings(False)
    by_module = counted.uncalled_modules_warnings(False).by_module()
    for name, (macs, _) in left_dense(calibration).items():
        assert macs == by_module[name], name
    assert calibration.macs == by_module[""]


class Folded(nn.Module):
    """A fully connected layer on all positions in one list, those of each image together or apart."""

    def __init__(self, together):
        super().__init__()
        self.together = together
        self.pixels = nn.Linear(3, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        positions = x.flatten(2).movedim(0, 0 if self.together else 2)
        if self.together:
            return self.head(self.pixels(positions.transpose(1, 2).reshape(-1, 3)).reshape(len(x), -1, 8).mean(dim=1))
        return self.head(self.pixels(positions.movedim(0, 2).reshape(-1, 3)).reshape(-1, len(x), 8).mean(dim=0))


def test_a_layer_over_positions_folded_into_the_images_has_the_positions_of_each_image():
    images = random_images(side=4)
    calibration = calibrate(Folded(together=True).eval(), images)
    record = calibration.record("pixels")
    assert record.responses.shape == (16, len(images), 8)
    with torch.no_grad():
        expected = calibration.network.pixels(images.flatten(2).transpose(1, 2)).transpose(0, 1)
    assert torch.allclose(record.responses, expected, atol=1e-5)


def test_a_layer_over_positions_of_all_images_mixed_is_left_dense():
    calibration = calibrate(Folded(together=False).eval(), random_images(side=4))
    assert [record.name for record in calibration.records] == ["head"]
    macs, reason = left_dense(calibration)["pixels"]
    assert macs == 16 * 3 * 8
    assert "positions of all images" in reason


def test_a_network_that_is_one_layer_cannot_be_compressed():
    with pytest.raises(CompressionError, match="no convolution or fully connected layer"):
        calibrate(nn.Conv2d(3, 8, 3), random_images())


def test_a_network_without_a_layer_to_compress_is_an_error():
    with pytest.raises(CompressionError, match="no convolution or fully connected layer"):
        calibrate(nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Flatten()), random_images())


class ByKeyword(nn.Module):
    """A depthwise convolution that is given its input by keyword."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(3, 3, 3, groups=3)
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.head(self.depthwise(input=x))


def test_a_layer_left_dense_may_be_given_its_input_by_keyword():
    calibration = calibrate(ByKeyword(), random_images())
    assert [record.name for record in calibration.records] == ["head"]
    assert left_dense(calibration) == {"depthwise": (14 * 14 * 27, "depthwise")}


@pytest.mark.parametrize(
    ("layer", "input_shape", "output_shape"),
    [
        (nn.Conv2d(3, 6, 3, stride=2), (1, 3, 16, 16), (1, 6, 7, 7)),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), (1, 768), (1, 5)),
    ],
    ids=["convolution", "fully connected"],
)
def test_shapes_are_those_of_one_image(layer, input_shape, output_shape):
    network = nn.Sequential(layer)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    (examined,) = examine_layers(network, layers, random_images(1)).values()
    assert examined.reason is None
    assert (examined.input_shape, examined.output_shape) == (input_shape, output_shape)


def test_layers_are_in_execution_order_and_those_never_called_last():
    network = Odd().eval()
    layers = {name: module for name, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    examined = examine_layers(network, layers, random_images(1, 8))
    called = ["plain", "depthwise", "grouped", "widen", "cardinal", "shared", "reused", "reflecting", "tokens"]
    assert list(examined) == [*called, "never"]
    assert examined["never"].macs == 0
