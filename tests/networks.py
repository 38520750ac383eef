"""Networks for ``build_network("networks:NAME", ...)``.

Those of the paper's zoo that neither torchvision nor timm has, and deep ones of either with fewer blocks: each kind of
block and each connection between blocks is there, but not as often, and wide layers are narrower.
"""

import itertools

import torch
from timm.layers import SqueezeExcite
from timm.models import byobnet, vovnet
from timm.models.inception_resnet_v2 import InceptionResnetV2
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn import functional
from torchvision.models import DenseNet, convnext, vgg


class SeriesActivation(nn.Module):
    """VanillaNet's activation: a weighted sum of shifted ReLUs. Its convolution is no module, as in the authors' code.

    Args:
        channels: of the map.
        reach: largest shift in each direction, in positions.
    """

    def __init__(self, channels, reach=3):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 2 * reach + 1, 2 * reach + 1))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.norm = nn.BatchNorm2d(channels, eps=1e-6)

    def forward(self, x):
        reach = self.weight.shape[-1] // 2
        return self.norm(functional.conv2d(x.relu(), self.weight, padding=reach, groups=len(self.weight)))


class VanillaNet(nn.Module):
    """VanillaNet (arXiv 2305.12972) in its form for training: two 1 x 1 convolutions a stage, no shortcut."""

    # Slope of the activations that are to vanish: 0 is ReLU, 1 the identity, which training ends with.
    slope = 0.5

    def __init__(self, classes, widths):
        super().__init__()
        self.patches = self._normalised(3, widths[0], 4)
        self.stem = nn.Sequential(self._normalised(widths[0], widths[0], 1), SeriesActivation(widths[0]))
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    self._normalised(before, before, 1),
                    nn.LeakyReLU(self.slope),
                    self._normalised(before, after, 1),
                    nn.MaxPool2d(2),
                    SeriesActivation(after),
                )
                for before, after in itertools.pairwise(widths)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.scores = self._normalised(widths[-1], classes, 1)
        self.mixed = nn.Conv2d(classes, classes, 1)

    @staticmethod
    def _normalised(inputs, outputs, side):
        return nn.Sequential(nn.Conv2d(inputs, outputs, side, stride=side), nn.BatchNorm2d(outputs, eps=1e-6))

    def forward(self, x):
        x = self.stem(functional.leaky_relu(self.patches(x), self.slope))
        x = self.pool(self.stages(x))
        return self.mixed(functional.leaky_relu(self.scores(x), self.slope)).flatten(1)


def vanillanet_5(classes):
    """VanillaNet-5 with a quarter of its channels."""
    return VanillaNet(classes, [128, 256, 512, 1024])


class Normalised(nn.Sequential):
    """A convolution without bias and its batch norm."""

    def __init__(self, inputs, outputs, side=1, stride=1, groups=1):
        convolution = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs))


class LargeSmall(nn.Module):
    """LSNet's convolution: a large depthwise kernel looks around and predicts small kernels that aggregate.

    The prediction is one small kernel per position and group of channels.
    """

    def __init__(self, channels, large=7, small=3, sharing=8):
        super().__init__()
        half, self.kernels, self.small = channels // 2, channels // sharing, small
        self.look = nn.Sequential(
            Normalised(channels, half),
            nn.ReLU(),
            Normalised(half, half, large, groups=half),
            Normalised(half, half),
            nn.ReLU(),
            nn.Conv2d(half, small**2 * self.kernels, 1),
            nn.GroupNorm(self.kernels, small**2 * self.kernels),
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        images, channels, height, width = x.shape
        weights = self.look(x).view(images, 1, self.kernels, self.small**2, height, width)
        around = functional.unfold(x, self.small, padding=self.small // 2)
        around = around.view(images, channels // self.kernels, self.kernels, self.small**2, height, width)
        return x + self.norm((around * weights).sum(3).flatten(1, 2))


class Reparameterised(nn.Module):
    """A depthwise 3 x 3 convolution beside a 1 x 1 one and the identity."""

    def __init__(self, channels):
        super().__init__()
        self.wide = Normalised(channels, channels, 3, groups=channels)
        self.narrow = Normalised(channels, channels, 1, groups=channels)

    def forward(self, x):
        return self.wide(x) + self.narrow(x) + x


class FeedForward(nn.Module):
    """Two 1 x 1 convolutions beside the identity."""

    def __init__(self, channels):
        super().__init__()
        self.within = nn.Sequential(Normalised(channels, 2 * channels), nn.ReLU(), Normalised(2 * channels, channels))

    def forward(self, x):
        return x + self.within(x)


class InTheStyleOfLSNet(nn.Sequential):
    """LSNet (arXiv 2503.23135) with all of its parts but the attention of the last stage."""

    def __init__(self, classes, widths, depths):
        patches = [
            Normalised(3, widths[0] // 4, 3, 2),
            nn.ReLU(),
            Normalised(widths[0] // 4, widths[0] // 2, 3, 2),
            nn.ReLU(),
            Normalised(widths[0] // 2, widths[0], 3, 2),
        ]
        stages = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                before = widths[stage - 1]
                stages += [Normalised(before, before, 3, 2, before), Normalised(before, width)]
            for place in range(depth):
                mixer = [LargeSmall(width)] if place % 2 else [Reparameterised(width), SqueezeExcite(width, 0.25)]
                stages += [*mixer, FeedForward(width)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(widths[-1]), nn.Linear(widths[-1], classes)]
        super().__init__(*patches, *stages, *head)


def in_the_style_of_lsnet(classes):
    """Three stages, the sizes between those of LSNet-T."""
    return InTheStyleOfLSNet(classes, [64, 128, 256], [1, 2, 4])


def small_vgg16(classes):
    """VGG-16's thirteen convolutions and three fully connected layers, with an eighth of their channels."""
    widths = [width if width == "M" else width // 8 for width in vgg.cfgs["D"]]
    layers = [nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)]
    return nn.Sequential(vgg.make_layers(widths), nn.AdaptiveAvgPool2d(7), nn.Flatten(), *layers)


def small_resnet18(classes):
    """ResNet-18 with half the channels behind its stem."""
    channels = (32, 64, 128, 256)
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=classes, channels=channels, zero_init_last=False)


def small_resnet50(classes):
    """ResNet-50 with half its channels, and two bottlenecks in a row in its last stage alone."""
    channels = (32, 64, 128, 256)
    return ResNet(Bottleneck, (1, 1, 1, 2), num_classes=classes, channels=channels, zero_init_last=False)


def small_densenet121(classes):
    """DenseNet-121 with two or three layers in a block rather than up to 24."""
    return DenseNet(block_config=(2, 3, 2, 2), num_classes=classes)


def small_convnext(classes):
    """ConvNeXt with half the channels and five blocks rather than 18, two of them in a row."""
    settings = [(48, 96, 1), (96, 192, 1), (192, 384, 2), (384, None, 1)]
    return convnext.ConvNeXt([convnext.CNBlockConfig(*setting) for setting in settings], num_classes=classes)


def small_vovnet39a(classes):
    """VoVNet-39a with half the channels, and two blocks in a row in its last stage alone."""
    widths = {"stage_conv_chs": [64, 80, 96, 112], "stage_out_chs": [128, 256, 384, 512]}
    return vovnet.VovNet(vovnet.model_cfgs["vovnet39a"], num_classes=classes, block_per_stage=[1, 1, 1, 2], **widths)


def small_repvgg_a0(classes):
    """RepVGG-A0 with two blocks at most in a stage rather than 14: a first one, and one that has an identity branch."""
    network = byobnet.ByobNet(byobnet.model_cfgs["repvgg_a0"], num_classes=classes)
    network.stages = nn.Sequential(*(stage[:2] for stage in network.stages))
    return network


def small_inception_resnet_v2(classes):
    """Inception-ResNet-v2 with one block in each of its three chains rather than up to 20."""
    network = InceptionResnetV2(num_classes=classes)
    for name in ("repeat", "repeat_1", "repeat_2"):
        setattr(network, name, getattr(network, name)[:1])
    return network
