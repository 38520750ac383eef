import pytest
import torch
from designs import every_block, highest_cheaper_rank

from hscc_search.compression.ranks.choice import choose_ranks
from hscc_search.compression.ranks.energy import rank_for_energy
from hscc_search.compression.setting import Setting


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (4, 2)])
def test_a_share_gives_each_cluster_a_rank_by_its_channels(calibration, share, count, clusters):
    factored = 0
    for designed in every_block(choose_ranks(calibration, Setting(count, clusters, channel_share=share))):
        expected = [max(1, round(share * len(values))) for values in designed.block.eigenvalues]
        if designed.ranks is None:
            assert sum(expected) > highest_cheaper_rank(calibration, designed) or share >= 0.5
        else:
            assert list(designed.ranks) == expected
            factored += 1
    assert factored or share == 1


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.99])
@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (4, 2)])
def test_an_energy_gives_each_cluster_the_rank_that_holds_it(calibration, energy, count, clusters):
    factored = 0
    for designed in every_block(choose_ranks(calibration, Setting(count, clusters, energy=energy))):
        expected = [rank_for_energy(values, energy) for values in designed.block.eigenvalues]
        if designed.ranks is None:
            assert sum(expected) > highest_cheaper_rank(calibration, designed) or count > 1 or clusters > 1
        else:
            assert list(designed.ranks) == expected
            factored += 1
    assert factored


def test_a_multiple_is_reached_by_rounding_up_with_what_varies_most(residual):
    plain = choose_ranks(residual, Setting(1, 3, energy=0.7))["mix"]
    rounded = choose_ranks(residual, Setting(1, 3, energy=0.7, rank_multiple=8))["mix"]
    before, after = plain.form.ranks[0][0], rounded.form.ranks[0][0]
    assert sum(after) == -(-sum(before) // 8) * 8
    ((block,),) = rounded.partition.blocks
    added = [values[low:high] for values, low, high in zip(block.eigenvalues, before, after, strict=True)]
    dropped = [values[high:] for values, high in zip(block.eigenvalues, after, strict=True)]
    assert all(low <= high for low, high in zip(before, after, strict=True))
    assert sum(before) == sum(after) or torch.cat(added).min() >= torch.cat(dropped).max()
