"""Small networks in the style of papers whose families neither torchvision nor timm has, for ``papers:NAME``."""

import torch
from networks import Normalised
from timm.layers import SqueezeExcite
from torch import nn
from torch.nn import functional


def simplenet(classes):
    """SimpleNet (arXiv 1608.06037): one path of 3 x 3 convolutions, two of 1 x 1 near the end, maxima in between."""
    layers, before = [], 3
    for width, side, pooled in [
        (32, 3, 0),
        (64, 3, 0),
        (64, 3, 1),
        (96, 3, 0),
        (96, 3, 1),
        (128, 3, 0),
        (256, 1, 0),
        (64, 1, 1),
    ]:
        layers += [Normalised(before, width, side), nn.ReLU(), nn.Dropout2d(0.1)]
        layers += [nn.MaxPool2d(2)] * pooled
        before = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class OmniScale(nn.Module):
    """OSNet's block (arXiv 1905.00953): streams of 1 to 4 light 3 x 3 convolutions, weighed by one gate for all."""

    def __init__(self, before, width):
        super().__init__()
        inner = width // 4
        self.reduce = Normalised(before, inner)
        self.streams = nn.ModuleList(
            nn.Sequential(*(self._light(inner) for _ in range(depth))) for depth in range(1, 5)
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inner, inner // 4, 1),
            nn.ReLU(),
            nn.Conv2d(inner // 4, inner, 1),
            nn.Sigmoid(),
        )
        self.widen = Normalised(inner, width)
        self.shortcut = Normalised(before, width) if before != width else nn.Identity()

    @staticmethod
    def _light(channels):
        """A 1 x 1 convolution without an activation, then a depthwise one."""
        pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        return nn.Sequential(pointwise, Normalised(channels, channels, 3, groups=channels), nn.ReLU())

    def forward(self, x):
        reduced = functional.relu(self.reduce(x))
        streams = [stream(reduced) for stream in self.streams]
        return functional.relu(self.widen(sum(self.gate(stream) * stream for stream in streams)) + self.shortcut(x))


def osnet(classes):
    """OSNet with a quarter of its channels and one block a stage."""
    stem = [Normalised(3, 16, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    body = [OmniScale(16, 64), Normalised(64, 64), nn.ReLU(), nn.AvgPool2d(2), OmniScale(64, 96), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 128), nn.BatchNorm1d(128), nn.ReLU()]
    return nn.Sequential(*stem, *body, *head, nn.Linear(128, classes))


class InvertedResidualMobile(nn.Module):
    """EMO's block (arXiv 2301.01146): attention in windows over the input, whose values are wide, then depthwise."""

    def __init__(self, channels, window=4, heads=2):
        super().__init__()
        self.window, self.heads, wide = window, heads, 3 * channels
        self.norm = nn.BatchNorm2d(channels)
        self.query_key = nn.Conv2d(channels, 2 * channels, 1)
        self.value = nn.Sequential(nn.Conv2d(channels, wide, 1), nn.SiLU())
        self.local = nn.Sequential(Normalised(wide, wide, 3, groups=wide), nn.SiLU())
        self.squeeze = SqueezeExcite(wide, 0.25)
        self.project = nn.Conv2d(wide, channels, 1, bias=False)

    def forward(self, x):
        normed = self.norm(x)
        query, key = self._windows(self.query_key(normed)).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(query, key, self._windows(self.value(normed)))
        wide = self._joined(attended, x.shape)
        return x + self.project(self.squeeze(wide + self.local(wide)))

    def _windows(self, x):
        images, channels, height, width = x.shape
        side = self.window
        x = x.view(images, self.heads, channels // self.heads, height // side, side, width // side, side)
        return x.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, self.heads, side * side, channels // self.heads)

    def _joined(self, x, shape):
        images, _, height, width = shape
        side = self.window
        x = x.view(images, height // side, width // side, self.heads, side, side, -1)
        return x.permute(0, 3, 6, 1, 4, 2, 5).reshape(images, -1, height, width)


def emo(classes):
    """EMO with two blocks, for images whose sides are multiples of 16."""
    stem = [Normalised(3, 24, 3, 2), nn.SiLU(), Normalised(24, 48, 3, 2), nn.SiLU()]
    body = [InvertedResidualMobile(48), InvertedResidualMobile(48)]
    return nn.Sequential(
        *stem, *body, nn.BatchNorm2d(48), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, classes)
    )


class GlobalResponse(nn.Module):
    """Normalisation by the global response of each channel, channels last (arXiv 2301.00808)."""

    def __init__(self, channels):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        norm = x.norm(dim=(1, 2), keepdim=True)
        return self.gamma * (x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class LargeKernel(nn.Module):
    """UniRepLKNet's block (arXiv 2311.15599): a large depthwise kernel beside dilated small ones, then a wide layer."""

    def __init__(self, channels, side=13):
        super().__init__()
        self.large = Normalised(channels, channels, side, groups=channels)
        self.dilated = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)
            for dilation in (1, 2, 3)
        )
        self.norm = nn.BatchNorm2d(channels)
        self.squeeze = SqueezeExcite(channels, 0.25)
        self.widen, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels, bias=False)
        self.response, self.after = GlobalResponse(4 * channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        around = self.large(x) + sum(branch(x) for branch in self.dilated)
        inner = self.squeeze(self.norm(around)).permute(0, 2, 3, 1)
        inner = self.narrow(self.response(functional.gelu(self.widen(inner))))
        return x + self.after(inner.permute(0, 3, 1, 2))


def unireplknet(classes):
    """UniRepLKNet with two stages of one block."""
    stem = [nn.Conv2d(3, 20, 3, 2, 1), nn.GELU(), nn.Conv2d(20, 40, 3, 2, 1), nn.BatchNorm2d(40), LargeKernel(40)]
    body = [Normalised(40, 80, 3, 2), LargeKernel(80)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(80), nn.Linear(80, classes))
