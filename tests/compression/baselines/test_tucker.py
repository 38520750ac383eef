import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import assert_same, input_of, layer_with, target_of
from torch import nn

from hscc_search.compression.baselines.low_rank import truncated_pair
from hscc_search.compression.baselines.tucker import kernel_ladder, matrix_ladder, shares, tucker_triple
from hscc_search.evaluation.counters import measure_cost


@given(
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    data=st.data(),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    dilation=st.integers(1, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_kernel_of_low_multilinear_rank_is_reproduced(inputs, outputs, data, stride, padding, dilation, seed):
    inner_inputs, inner_outputs = data.draw(st.integers(1, inputs)), data.draw(st.integers(1, outputs))
    generator = torch.Generator().manual_seed(seed)
    core = torch.randn(inner_outputs, inner_inputs, 3, 3, generator=generator)
    after = torch.randn(outputs, inner_outputs, generator=generator)
    before = torch.randn(inputs, inner_inputs, generator=generator)
    weight = torch.einsum("oa,ib,abyx->oiyx", after, before, core)
    stride = 1 if padding == "same" else stride
    layer = layer_with(weight, (inputs, 3, 3), stride=stride, padding=padding, dilation=dilation)
    x = input_of(layer, generator)
    assert_same(tucker_triple(layer, inner_inputs, inner_outputs)(x), layer(x))


def test_the_costs_of_tucker_triples_are_what_is_counted():
    layer = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    ladder = kernel_ladder(target_of(layer, 8 * 8), 16 * 16)
    for macs, ranks in zip(ladder.macs, ladder.ranks, strict=True):
        if ranks is not None:
            assert measure_cost(tucker_triple(layer, *ranks), 16).macs == macs


@given(st.lists(st.integers(1, 12), min_size=1, max_size=2))
def test_shares_are_of_all_sizes_rounded_up(sizes):
    every = list(shares(*sizes))
    assert {counts for _, counts in every} == {
        tuple(math.ceil(step * size / 27720) for size in sizes) for step in range(1, 27721, 21)
    }
    for share, counts in every:
        assert counts == tuple(math.ceil(share * size - 1e-9) for size in sizes)


def test_the_ladder_of_one_matrix_costs_what_its_pairs_cost():
    layer = nn.Conv2d(3, 8, 3, padding=1)
    ladder = matrix_ladder(target_of(layer, 16 * 16))
    assert ladder.ranks[-1] is None
    assert len(ladder.ranks) > 3
    for macs, ranks in zip(ladder.macs, ladder.ranks, strict=True):
        if ranks is not None:
            assert measure_cost(truncated_pair(layer, *ranks), 16).macs == macs
