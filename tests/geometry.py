"""Convolutions of any geometry, for property tests."""

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn


def pair(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw, largest, bias=st.booleans()):  # noqa: B008
    """A convolution without gradients, and an input large enough for it of at most ``largest`` pixels a side."""
    size, kernel, dilation = draw(pair(1, largest)), draw(pair(1, 4)), draw(pair(1, 2))
    padding = draw(st.one_of(pair(0, 3), st.sampled_from(["same", "valid"])))
    stride = (1, 1) if padding == "same" else draw(pair(1, 3))
    if padding != "same":
        added = (0, 0) if padding == "valid" else padding
        assume(all(s + 2 * p >= d * (k - 1) + 1 for s, p, d, k in zip(size, added, dilation, kernel, strict=True)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    layer = nn.Conv2d(2, 3, kernel, stride, padding, dilation, bias=draw(bias))
    return layer.requires_grad_(False), torch.randn(2, 2, *size)
