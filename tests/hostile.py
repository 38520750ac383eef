"""Networks whose forward passes ask more of their layers than answers, one block for each way to do so."""

import types

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A convolution and an activation, to be called in some way of its own. Takes and returns maps.

    Args:
        width: channels before and behind it.
        kwargs: of the convolution.
    """

    def __init__(self, width, **kwargs):
        super().__init__()
        self.layer = nn.Conv2d(width, width, **{"kernel_size": 3, "padding": 1, **kwargs})
        nn.init.kaiming_normal_(self.layer.weight)  # answers that do not vanish behind many layers

    def forward(self, x):
        return self.layer(x).relu()


class ByKeyword(Block):
    def forward(self, x):
        return self.layer(input=x).relu()


class TypeTest(Block):
    def forward(self, x):
        x = self.layer(x)
        return x.relu() if isinstance(self.layer, nn.Conv2d) else x


class ExactType(Block):
    def forward(self, x):
        x = self.layer(x)
        return x.relu() if type(self.layer) is nn.Conv2d else x


class ReadsDtype(Block):
    def forward(self, x):
        return self.layer(x.to(self.layer.weight.dtype).to(self.layer.weight.device)).relu()


class ReadsShape(Block):
    def forward(self, x):
        channels = self.layer.weight.shape[0]
        assert (channels, self.layer.in_channels) == (self.layer.out_channels, x.shape[1])
        assert len(self.layer.stride) == len(self.layer.dilation) == len(self.layer.kernel_size) == 2
        return self.layer(x).relu() + x.new_zeros(channels, 1, 1)


class ComputesWithWeight(Block):
    def forward(self, x):
        return self.layer(x).relu() * self.layer.weight.abs().mean()


class ComputesWithBias(Block):
    def forward(self, x):
        return self.layer(x).relu() + self.layer.bias.sum()


class PaddedByItself(Block):
    def forward(self, x):
        margin = [size // 2 for size in self.layer.kernel_size for _ in range(2)]
        return functional.conv2d(functional.pad(x, margin, mode="reflect"), self.layer.weight, self.layer.bias).relu()


class WithoutGradient(Block):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Inference(Block):
    def forward(self, x):
        with torch.inference_mode():
            return super().forward(x)


class Checkpointed(Block):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class CheckpointedAgain(Block):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=True)


class TwoNames(Block):
    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        self.path = nn.Sequential(self.layer, nn.ReLU())

    def forward(self, x):
        return self.path(x)


class PlainList(Block):
    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        self.steps = [self.layer, torch.relu]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class BoundMethod(Block):
    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        self.call = self.step

    def step(self, x):
        return self.layer(x).relu()

    def forward(self, x):
        return self.call(x)


class Twice(Block):
    def forward(self, x):
        return self.layer(self.layer(x).relu()).relu()


class ImageByImage(Block):
    def forward(self, x):
        return torch.cat([super(ImageByImage, self).forward(image[None]) for image in x])


class NeverCalled(Block):
    def forward(self, x):
        return functional.conv2d(x, self.layer.weight, self.layer.bias, padding=self.layer.padding).relu()


class InPlace(Block):
    def forward(self, x):
        return self.layer(x).relu_().mul_(0.5).add_(0.1)


class ChangesInput(Block):
    def forward(self, x):
        return super().forward(x.sub_(0.1).div_(1.1))


class Skip(Block):
    def forward(self, x):
        return (self.layer(x) + x).relu_()


class Normed(Block):
    def __init__(self, width, **kwargs):
        super().__init__(width, **{**kwargs, "bias": False})
        self.norm = nn.BatchNorm2d(width)
        nn.init.uniform_(self.norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x):
        return self.norm(self.layer(x)).relu()


class OwnAttribute(nn.Conv2d):
    """A convolution with an attribute that the forward pass around it reads."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = 0.5


class Scaled(Block):
    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        self.layer = OwnAttribute(width, width, 3, padding=1)

    def forward(self, x):
        return self.layer(x).relu() * self.layer.scale if isinstance(self.layer, OwnAttribute) else x


class Standardised(nn.Conv2d):
    def forward(self, input):
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(input, (self.weight - mean) / deviation / 8, self.bias, self.stride, self.padding)


class WithStandardised(Block):
    def __init__(self, width, **kwargs):
        super().__init__(width, **kwargs)
        self.layer = Standardised(width, width, 3, padding=1)


class TanhLinear(nn.Linear):
    def forward(self, input):
        return super().forward(input).tanh()


class ChannelsLast(Block):
    """A fully connected layer on maps with their channels last."""

    def __init__(self, width, kind=nn.Linear, **kwargs):
        super().__init__(width)
        self.layer = kind(width, width)

    def forward(self, x):
        return self.layer(x.movedim(1, -1)).relu().movedim(-1, 1)


class Tokens(ChannelsLast):
    """A fully connected layer on tokens."""

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2)).relu().transpose(1, 2).reshape(x.shape)


class AllPositionsAsImages(ChannelsLast):
    def forward(self, x):
        rows = x.movedim(1, -1).reshape(-1, x.shape[1])
        return self.layer(rows).relu().view(len(x), *x.shape[2:], -1).movedim(-1, 1)


class Windows(ChannelsLast):
    """A fully connected layer on windows of each image, as if they were images."""

    def forward(self, x):
        images, channels, height, _ = x.shape
        x = x.unflatten(3, (2, -1)).movedim(3, 1).reshape(2 * images, channels, -1).transpose(1, 2)
        x = self.layer(x).relu().transpose(1, 2).reshape(images, 2, channels, height, -1)
        return x.movedim(1, 3).flatten(3)


class PositionsFirst(ChannelsLast):
    """A fully connected layer on the positions of all images in one list, the same position of all images together."""

    def forward(self, x):
        rows = x.flatten(2).permute(2, 0, 1).flatten(0, 1)
        return self.layer(rows).relu().unflatten(0, (-1, len(x))).permute(1, 2, 0).reshape(x.shape)


class FiveDimensions(ChannelsLast):
    def forward(self, x):
        return self.layer(x.movedim(1, -1).unflatten(1, (2, -1))).relu().flatten(1, 2).movedim(-1, 1)


class Attention(nn.Module):
    """Attention over positions, by matrix products of its own, by torch's function, or by torch's module."""

    def __init__(self, width, kind="products", **kwargs):
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(width, 3 * width)
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True) if kind == "module" else None

    def forward(self, x):
        query, key, value = self.layer(x.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        if self.kind == "products":
            mixed = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value
        elif self.kind == "function":
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed, _ = self.attention(query, key, value)
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Transposed(Block):
    def __init__(self, width, **kwargs):
        super().__init__(width)
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        nn.init.kaiming_normal_(self.up.weight)

    def forward(self, x):
        return functional.avg_pool2d(self.up(super().forward(x)), 2)


class Conditional(nn.Module):
    """A convolution whose kernel is mixed for each image."""

    def __init__(self, width, **kwargs):
        super().__init__()
        self.kernels, self.mix = nn.Parameter(torch.randn(2, width, width, 3, 3) / 9), nn.Linear(width, 2)

    def forward(self, x):
        shares = self.mix(x.mean((2, 3))).softmax(dim=1)
        kernels = torch.einsum("nk,koihw->noihw", shares, self.kernels).flatten(0, 1)
        return functional.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, padding=1, groups=len(x)).view(x.shape)


def with_hook(width, **kwargs):
    block = Block(width, **kwargs)
    block.layer.register_forward_hook(lambda module, inputs, output: output * 0.5 + 0.1)
    return block


def with_pre_hook(width, **kwargs):
    block = Block(width, **kwargs)
    block.layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return block


def with_outer_hook(width, **kwargs):
    block = Block(width, **kwargs)
    block.register_forward_hook(lambda module, inputs, output: output + 0.1)
    return block


def with_forward_replaced(width, **kwargs):
    block = Block(width, **kwargs)
    block.layer.forward = types.MethodType(lambda layer, x: nn.Conv2d.forward(layer, x) * 2, block.layer)
    return block


def stepped(block):
    """A block after a training step, which leaves graphs behind."""
    block.train()(torch.randn(2, block.layer.in_channels, 8, 8)).sum().backward()
    return block


def pruned(width, **kwargs):
    block = Block(width, **kwargs)
    prune.l1_unstructured(block.layer, "weight", 0.5)
    return stepped(block)


def with_weight_norm(width, **kwargs):
    block = Block(width, **kwargs)
    weight_norm(block.layer)
    return stepped(block)


def with_spectral_norm(width, **kwargs):
    block = Block(width, **kwargs)
    spectral_norm(block.layer)
    return stepped(block)


def parametrised(width, **kwargs):
    block = Block(width, **kwargs)
    parametrizations.weight_norm(block.layer)
    return stepped(block)


def orthogonal(width, **kwargs):
    block = ChannelsLast(width)
    parametrizations.orthogonal(block.layer)
    return block


def clipping(width, **kwargs):
    return ChannelsLast(width, TanhLinear)


def attending(kind):
    return lambda width, **kwargs: Attention(width, kind)


BLOCKS = [
    *(Block, ByKeyword, TypeTest, ExactType, ReadsDtype, ReadsShape, ComputesWithWeight, ComputesWithBias),
    *(PaddedByItself, WithoutGradient, Inference, Checkpointed, CheckpointedAgain, TwoNames, PlainList, BoundMethod),
    *(Twice, ImageByImage, NeverCalled, InPlace, ChangesInput, Skip, Normed, Scaled, WithStandardised, ChannelsLast),
    *(
        Tokens,
        AllPositionsAsImages,
        Windows,
        PositionsFirst,
        FiveDimensions,
        Transposed,
        Conditional,
        with_hook,
        with_pre_hook,
        with_outer_hook,
    ),
    *(with_forward_replaced, pruned, with_weight_norm, with_spectral_norm, parametrised, orthogonal, clipping),
    *map(attending, ("products", "function", "module")),
]


class Hostile(nn.Module):
    """A classifier of three classes: a convolution, some blocks, and a fully connected layer.

    Args:
        blocks: functions of a width.
        width: of all blocks.
        kwargs: of the blocks' convolutions.
    """

    def __init__(self, blocks, width=24, **kwargs):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.ModuleList(block(width, **kwargs) for block in blocks)
        self.head = nn.Linear(width * 4, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(functional.adaptive_max_pool2d(x, 2).flatten(1))
