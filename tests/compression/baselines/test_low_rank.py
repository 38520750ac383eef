import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import assert_same, input_of, layer_with, low_rank
from torch import nn

from hscc_search.compression.baselines.low_rank import leading_axes, low_rank_pair, spectrum, truncated_pair


@given(
    groups=st.integers(1, 4),
    per_group=st.integers(1, 3),
    outputs=st.integers(1, 9),
    kernel=st.sampled_from([(), (1, 1), (3, 2)]),
    rank=st.integers(1, 4),
    bias=st.booleans(),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_layer_of_low_rank_is_reproduced(groups, per_group, outputs, kernel, rank, bias, stride, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    columns = per_group * math.prod(kernel)
    weight = torch.cat([low_rank(outputs, columns, rank, generator) for _ in range(groups)], dim=1)
    options = {"stride": stride, "padding": padding} if kernel else {}
    layer = layer_with(weight, (groups * per_group, *kernel) if kernel else (), bias, **options)
    pair = truncated_pair(layer, rank, groups)
    x = input_of(layer, generator)
    assert_same(pair(x), layer(x))
    if not kernel:
        assert_same(pair(x[:, None, None]), layer(x)[:, None, None])


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_truncated_layer_loses_the_smallest_singular_values(outputs, inputs, rank, seed):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    pair = truncated_pair(layer_with(weight, ()), rank)
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(spectrum(weight.double()), values**2, rtol=1e-9, atol=1e-9)
    error = (pair[1].weight @ pair[0].weight - weight).detach().square().sum()
    assert float(error) == pytest.approx((values[rank:] ** 2).sum(), abs=1e-4)


def test_a_matrix_of_zeros_has_a_spectrum_of_zeros_and_finite_axes():
    for shape in ((3, 5), (5, 3)):
        zeros = torch.zeros(shape, dtype=torch.float64)
        assert spectrum(zeros).tolist() == [0, 0, 0]
        assert leading_axes(zeros, 2).isfinite().all()
        assert truncated_pair(layer_with(zeros.float(), ()), 2)(torch.ones(1, shape[1])).isfinite().all()


def test_a_pair_computes_its_formula():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(6, 4)
    basis, recombination, bias = (torch.randn(size, generator=generator) for size in ((4, 3), (4, 4), (4,)))
    x = torch.randn(5, 6, generator=generator)
    inner = torch.cat([x[:, :3] @ basis[:2].T, x[:, 3:] @ basis[2:].T], dim=1)
    assert_same(low_rank_pair(layer, basis, recombination, bias, groups=2)(x), inner @ recombination.T + bias)
    assert low_rank_pair(layer, torch.randn(4, 6), recombination, None)[1].bias is None
