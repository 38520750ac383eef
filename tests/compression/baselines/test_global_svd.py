import pytest
import torch
from peers import target_of
from torch import nn

from hscc_search.compression.baselines.global_svd import energy_ladder
from hscc_search.compression.baselines.low_rank import truncated_pair
from hscc_search.evaluation.counters import measure_cost


def test_the_errors_of_global_svd_are_shares_of_energy():
    layer = nn.Linear(20, 10)
    values = torch.linalg.svdvals(layer.weight.detach().double()).square()
    ladder = energy_ladder(target_of(layer, 1))
    for error, ranks in zip(ladder.errors, ladder.ranks, strict=True):
        rank = 10 if ranks is None else ranks[0]
        assert error == pytest.approx(float(values[rank:].sum() / values.sum()))


def test_the_ladder_of_one_matrix_costs_what_its_pairs_cost():
    layer = nn.Conv2d(3, 8, 3, padding=1)
    ladder = energy_ladder(target_of(layer, 16 * 16))
    assert ladder.ranks[-1] is None
    assert len(ladder.ranks) > 3
    for macs, ranks in zip(ladder.macs, ladder.ranks, strict=True):
        if ranks is not None:
            assert measure_cost(truncated_pair(layer, *ranks), 16).macs == macs
