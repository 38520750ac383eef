import statistics

import pytest
from benchmark_samplers import DEFAULT, ENOUGH, config_of, corners, first_above, objectives_of, read_landscape, trace

from hscc_search.pareto.hypervolume import hypervolume


@pytest.fixture(scope="module")
def needed():
    """Trials that each sampler takes to nearly all of the hypervolume of the measured landscape, for ten seeds."""
    dense, points = read_landscape()
    assert len(points) >= 300
    bound = ENOUGH * hypervolume(points, objectives_of(config_of("auto", 0)), *corners(dense))

    def count(sampler):
        return [first_above(trace(sampler, seed, dense, points, bound), bound) for seed in range(10)]

    return {sampler: count(sampler) for sampler in ("auto", "random", "nsga2", DEFAULT)}


def test_auto_takes_forty_trials_at_most(needed):
    assert statistics.median(needed["auto"]) <= 40
    assert max(needed["auto"]) <= 40


@pytest.mark.parametrize("other", ["random", "nsga2", DEFAULT])
def test_auto_takes_fewer_trials_than_others(needed, other):
    assert statistics.median(needed["auto"]) < statistics.median(needed[other])
