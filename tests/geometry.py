"""Convolutions of any geometry, and small networks of any wiring, for property tests."""

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

SIDE = 16


def pair(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw, largest, bias=st.booleans(), groups=st.integers(1, 3)):  # noqa: B008
    """A convolution without gradients, and an input large enough for it of at most ``largest`` pixels a side."""
    size, kernel, dilation = draw(pair(1, largest)), draw(pair(1, 4)), draw(pair(1, 2))
    padding = draw(st.one_of(pair(0, 3), st.sampled_from(["same", "valid"])))
    stride = (1, 1) if padding == "same" else draw(pair(1, 3))
    if padding != "same":
        added = (0, 0) if padding == "valid" else padding
        assume(all(s + 2 * p >= d * (k - 1) + 1 for s, p, d, k in zip(size, added, dilation, kernel, strict=True)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    count = draw(groups)
    layer = nn.Conv2d(2 * count, 3 * count, kernel, stride, padding, dilation, count, draw(bias))
    return layer.requires_grad_(False), torch.randn(2, 2 * count, *size)


def smooth_images(count, seed=0, side=SIDE):
    """Smooth images, float (count, 3, side, side): with few degrees of freedom, so that responses have leading axes."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=(side, side), mode="bicubic")


def random_images(count=4, side=SIDE, seed=0):
    """Images of independent random values, float (count, 3, side, side)."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """A small ResNet: a projected skip connection, batch norms, activations in place; strided, grouped, dilated."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.reduce = nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.grouped = nn.Conv2d(32, 48, 3, padding=1, groups=2)
        self.project = nn.Conv2d(24, 48, 1, stride=2)
        self.mix = nn.Conv2d(48, 48, 3, padding=2, dilation=2)
        self.norm_mix = nn.BatchNorm2d(48)
        self.head = nn.Linear(48, classes)

    def forward(self, x):
        x = self.stem(x)
        branch = functional.relu(self.norm(self.reduce(x)))
        x = functional.relu(self.grouped(branch) + self.project(x))
        return self.head(functional.relu(x + self.norm_mix(self.mix(x))).mean(dim=(2, 3)))


class OnMaps(nn.Module):
    """Linear layers on maps with the channels last, as in ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.wide = nn.Linear(24, 64)
        self.narrow = nn.Linear(64, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.narrow(functional.relu(self.wide(x), inplace=True))
        return self.head(x.mean(dim=(1, 2)))


def seeded(build, seed=0):
    """A network in evaluation mode, with weights from a seed and batch norm statistics from images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
        network.train()
        with torch.no_grad():
            network(smooth_images(64, seed=99))
    return network.eval()
