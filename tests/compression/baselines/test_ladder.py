import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.compression.baselines.ladder import Ladder, allocate, ladder
from hscc_search.errors import CompressionError

candidates = st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 1)), max_size=5)


def ladder_of(options, dense):
    return ladder([(macs, error, (index,)) for index, (macs, error) in enumerate(options)], dense)


@given(candidates, st.integers(1, 30))
def test_a_ladder_keeps_what_nothing_beats(options, dense):
    built = ladder_of(options, dense)
    every = [*options, (dense, 0.0)]
    expected = {
        (macs, error)
        for macs, error in every
        if not any(m <= macs and e <= error and (m, e) != (macs, error) for m, e in every)
    }
    assert list(zip(built.macs.tolist(), built.errors.tolist(), strict=True)) == sorted(expected)
    for error in (0.0, 0.3, *built.errors):
        assert built.macs[built.cheapest_within(error)] == min(macs for macs, e in every if e <= error)


@given(st.lists(st.tuples(candidates, st.integers(1, 30)), min_size=1, max_size=3), st.integers(0, 20), st.floats(1, 8))
@settings(max_examples=200)
def test_the_largest_error_is_the_smallest_possible(layers, fixed, budget):
    ladders: dict[str, Ladder] = {str(index): ladder_of(*layer) for index, layer in enumerate(layers)}
    dense = fixed + sum(layer.dense for layer in ladders.values())
    room = dense / budget - fixed
    options = [
        list(zip(layer.macs.tolist(), layer.errors.tolist(), layer.ranks, strict=True)) for layer in ladders.values()
    ]
    possible = [choice for choice in itertools.product(*options) if sum(macs for macs, _, _ in choice) <= room]
    if not possible:
        with pytest.raises(CompressionError, match="at most"):
            allocate("method", dense, budget, ladders)
        return
    ranks = allocate("method", dense, budget, ladders)
    chosen = [
        next(option for option in options_of_layer if option[2] == ranks.get(name))
        for name, options_of_layer in zip(ladders, options, strict=True)
    ]
    left = room - sum(macs for macs, _, _ in chosen)
    assert left >= 0
    best = min(max(error for _, error, _ in choice) for choice in possible)
    assert max(error for _, error, _ in chosen) == best
    for (macs, error, _), options_of_layer in zip(chosen, options, strict=True):
        assert not any(more - macs <= left and less < error for more, less, _ in options_of_layer)


def test_of_equal_steps_the_dense_layer_is_taken_and_then_the_lowest_ranks():
    assert ladder([(9, 0.0, (1,)), (4, 0.5, (2, 3)), (4, 0.5, (2, 1))], 9).ranks == ((2, 1), None)
