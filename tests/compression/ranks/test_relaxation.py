import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.compression.ranks.options import Options, cheapest, least_priced
from hscc_search.compression.ranks.relaxation import first_solution, relax


@st.composite
def groups(draw):
    """Groups with variants of classes, all of any costs and losses, and a limit."""
    losses = st.floats(0, 1e3)

    def one_class():
        costs = sorted(draw(st.lists(st.integers(0, 25), min_size=1, max_size=5)))
        drawn = draw(st.lists(losses, min_size=len(costs), max_size=len(costs)))
        return Options(np.array(costs, np.int64), np.array(drawn, np.float64))

    made = [
        [[one_class() for _ in range(draw(st.integers(1, 3)))] for _ in range(draw(st.integers(1, 3)))]
        for _ in range(draw(st.integers(1, 3)))
    ]
    return made, cheapest(made) + draw(st.integers(0, 60))


def bound_at(groups_of_case, price, limit):
    """The lower bound that a price gives on the loss of every choice within the limit."""
    return sum(min(least_priced(classes, price) for classes in group) for group in groups_of_case) - price * limit


@st.composite
def falling_classes(draw):
    """Classes whose options lose less where they cost more, and a limit."""
    classes = []
    for _ in range(draw(st.integers(1, 5))):
        costs = sorted(draw(st.sets(st.integers(0, 25), min_size=1, max_size=5)))
        losses = draw(st.sets(st.integers(0, 1000), min_size=len(costs), max_size=len(costs)))
        classes.append(Options(np.array(costs, np.int64), np.array(sorted(losses, reverse=True), np.float64)))
    return classes, sum(int(options.costs[0]) for options in classes) + draw(st.integers(0, 60))


@given(case=falling_classes())
@settings(max_examples=100, deadline=None)
def test_no_price_gives_a_higher_bound(case):
    classes, limit = case
    groups_of_one = [[[options]] for options in classes]
    highest = bound_at(groups_of_one, relax(groups_of_one, limit).price, limit)
    for price in [0, *np.geomspace(1e-3, 1e3, 40)]:
        assert bound_at(groups_of_one, price, limit) <= highest + 1e-9 * (1 + abs(highest) + price * limit)


@given(case=groups())
@settings(max_examples=150, deadline=None)
def test_the_first_solution_is_within_the_limit_and_loses_no_less_than_the_bound(case):
    drawn, limit = case
    relaxation = relax(drawn, limit)
    choices = first_solution(drawn, relaxation, limit)
    taken = [
        (options, position)
        for group, (variant, positions) in zip(drawn, choices, strict=True)
        for options, position in zip(group[variant], positions, strict=True)
    ]
    assert sum(options.costs[position] for options, position in taken) <= limit
    lost = sum(options.losses[position] for options, position in taken)
    assert lost >= bound_at(drawn, relaxation.price, limit) - 1e-9 * (1 + lost)


def test_cost_has_no_price_where_the_limit_does_not_bind():
    spectrum = [Options(np.arange(4), np.array([3.0, 1.0, 0.5, 0.0]))]
    assert relax([[spectrum]] * 2, 6).price == 0
    assert relax([[spectrum]] * 2, 5).price == pytest.approx(0.5)


def test_hulls_are_climbed_by_slope():
    steep = Options(np.array([0, 1, 2]), np.array([10.0, 1.0, 0.0]))
    flat = Options(np.array([0, 1, 2]), np.array([3.0, 1.2, 0.0]))
    for limit, expected in ((0, (0, 0)), (1, (1, 0)), (2, (1, 1)), (3, (1, 2)), (4, (2, 2))):
        choices = first_solution([[[steep]], [[flat]]], relax([[[steep]], [[flat]]], limit), limit)
        assert tuple(itertools.chain(*(positions for _, positions in choices))) == expected
