"""Networks, calibrations and single layers for the tests of the peers."""

from types import SimpleNamespace

import torch
from geometry import smooth_images
from torch import nn
from torch.nn import functional

from hscc_search.compression.baselines.targets import Target
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.evaluation.counters import measure_cost

IMAGE_SIZE = 16


class Residual(nn.Module):
    """Batch norm, skip connection with projection, depthwise and grouped filters, strides, activation in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU(inplace=True))
        self.reduce = nn.Conv2d(48, 60, (5, 3), stride=2, padding=(2, 1), bias=False)
        self.norm = nn.BatchNorm2d(60)
        self.depthwise = nn.Conv2d(60, 60, 3, padding=1, groups=60)
        self.grouped = nn.Conv2d(60, 60, 3, padding=1, groups=4)
        self.project = nn.Conv2d(48, 60, 1, stride=2)
        self.mix = nn.Conv2d(60, 60, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(60, 30), nn.ReLU(inplace=True), nn.Linear(30, 5))

    def forward(self, x):
        x = self.stem(x)
        branch = self.depthwise(functional.relu(self.norm(self.reduce(x))))
        x = functional.relu(self.grouped(branch) + self.project(x))
        return self.head(functional.relu(x + self.mix(x)).mean(dim=(2, 3)))


class OnMaps(nn.Module):
    """Fully connected layers on maps, as ConvNeXt has them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 2, stride=2)
        self.widen, self.narrow = nn.Linear(20, 80), nn.Linear(80, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.narrow(functional.gelu(self.widen(x)))
        return self.head(x.mean(dim=(1, 2)))


def calibrated(build_network, image_size=IMAGE_SIZE, images=32):
    """A dense network with weights from a seed, its calibration, and its multiply-adds per image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network().train()
        with torch.no_grad():
            network(smooth_images(64, seed=99, side=image_size))  # sets the statistics of batch norms
    network.eval()
    return SimpleNamespace(
        network=network,
        calibration=calibrate(network, smooth_images(images, side=image_size)),
        macs=measure_cost(network, image_size).macs,
    )


def low_rank(rows, columns, rank, generator):
    """A random matrix of the given rank."""
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)


def layer_with(weight, shape, bias=True, **options):
    """A layer with the given (Cout, D) weight; the shape is (Cin, height, width) for Conv2d, () for Linear."""
    layer = (
        nn.Conv2d(shape[0], len(weight), shape[1:], bias=bias, **options)
        if shape
        else nn.Linear(weight.shape[1], len(weight), bias=bias)
    )
    with torch.no_grad():
        layer.weight.copy_(weight.view_as(layer.weight))
    return layer.requires_grad_(False)


def input_of(layer, generator):
    """Random input of a layer: three images or vectors."""
    shape = (3, layer.in_channels, 9, 8) if isinstance(layer, nn.Conv2d) else (3, layer.in_features)
    return torch.randn(shape, generator=generator)


def assert_same(answer, expected):
    """Check that two tensors are equal but for rounding errors."""
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def target_of(layer, positions):
    """The target that a peer makes of a layer with the given number of output positions."""
    return Target(SimpleNamespace(name="layer", macs=positions * layer.weight.numel()), layer)
