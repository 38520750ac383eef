import math

import pytest
import torch
from geometry import SIDE, Residual, seeded, smooth_images
from torch import nn
from torch.nn import functional

from hscc_search.compression.calibration.activation import activation_bounds
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting

RELU = (0.0, math.inf)


class Behind(nn.Module):
    """A convolution and an operation on its responses."""

    def __init__(self, use):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.use = use

    def forward(self, x):
        return self.use(self.layer(x))


def two_readers(y):
    return y.mean() + y.relu()


def halves(y):
    return torch.cat([y[:, :2].relu(), y[:, 2:]], dim=1)


USES = {
    "relu": (torch.relu, RELU),
    "relu in place": (lambda y: y.relu_(), RELU),
    "module": (nn.ReLU(), RELU),
    "module in place": (nn.ReLU(inplace=True), RELU),
    "functional": (functional.relu, RELU),
    "relu6": (nn.ReLU6(), (0.0, 6.0)),
    "relu6 in place": (nn.ReLU6(inplace=True), (0.0, 6.0)),
    "hardtanh": (nn.Hardtanh(), (-1.0, 1.0)),
    "hardtanh of its own": (nn.Hardtanh(-2, 3), (-2.0, 3.0)),
    "clamp": (lambda y: y.clamp_min(-0.5), (-0.5, math.inf)),
    "through a view": (lambda y: y.flatten(1).relu(), RELU),
    "through dropout": (lambda y: functional.dropout(y, 0.5, training=False).relu(), RELU),
    "twice": (lambda y: y.relu() + y.clone().relu(), None),
    "twice the same": (lambda y: torch.stack([y.relu(), functional.relu(y)]), RELU),
    "read after it in place": (lambda y: y.relu_() + y.sum(), RELU),
    "in a list": (lambda y: torch.cat([y, y.relu()]), None),
    "different ones": (lambda y: y.relu() + functional.relu6(y), None),
    "two readers": (two_readers, None),
    "half of it": (halves, None),
    "pooled first": (lambda y: functional.max_pool2d(y, 2).relu(), None),
    "pooled as well": (lambda y: y.relu() + functional.max_pool2d(y, 3, 1, 1), None),
    "normed as well": (lambda y: y.relu() + functional.batch_norm(y, torch.zeros(4), torch.ones(4)), None),
    "read as a number as well": (lambda y: y.relu() * float(y.sum()), None),
    "split first": (lambda y: torch.cat([half.relu() for half in y.split(2, dim=1)]), None),
    "gelu": (functional.gelu, None),
    "leaky": (nn.LeakyReLU(), None),
    "nothing": (lambda y: y, None),
    "returned as well": (lambda y: (y, y.relu()), None),
}


@pytest.mark.parametrize("use", USES)
def test_bounds_are_those_of_an_activation_that_alone_reads_the_responses(use):
    call, expected = USES[use]
    network = Behind(call).eval()
    bounds = activation_bounds(network, {"layer": network.layer}, torch.rand(1, 3, 8, 8))
    assert bounds.get("layer") == expected


def test_a_skip_connection_is_no_clipping_activation():
    calibration = calibrate(seeded(Residual), smooth_images(8))
    # The responses of "grouped", "project" and "mix" are added to others before an activation.
    assert {record.name: record.bounds for record in calibration.records} == {
        "stem.0": RELU,
        "reduce": RELU,
        "grouped": None,
        "project": None,
        "mix": None,
    }


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()], ids=str)
def test_a_layer_is_fitted_to_its_responses_behind_the_activation(activation):
    """Most responses are clipped: a fit that knows the activation is better behind it than one that does not."""

    class Unrecognised(nn.Module):
        def forward(self, x):
            return activation(x.clone())

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 1)
    with torch.no_grad():
        layers[0].weight *= 4
        layers[0].bias.fill_(-1)
    images, fresh = torch.randn(2, 64, 3, SIDE, SIDE)

    def error(behind):
        network = nn.Sequential(layers[0], behind, layers[1]).eval()
        compressed = compress(calibrate(network, images), Setting(channel_share=0.1)).network
        with torch.no_grad():
            return float((activation(compressed[0](fresh)) - activation(network[0](fresh))).square().mean())

    assert error(activation) < 0.9 * error(Unrecognised())
