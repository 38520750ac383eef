import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.compression.ranks import knapsack
from hscc_search.compression.ranks.options import Options, cheapest
from hscc_search.compression.ranks.relaxation import first_solution, relax


def options(costs, losses):
    return Options(np.array(costs, np.int64), np.array(losses, np.float64))


def groups_of_one(classes):
    """Classes that have nothing in common, each as a group of its own."""
    return [[[options_of_class]] for options_of_class in classes]


def solve(classes, limit):
    """The positions that are chosen of classes that have nothing in common."""
    return [position for _, (position,) in knapsack.solve(groups_of_one(classes), limit)]


@st.composite
def one_class(draw, losses):
    """Options with any costs, equal ones too, and any losses: not convex, and not even falling."""
    costs = sorted(draw(st.lists(st.integers(0, 25), min_size=1, max_size=5)))
    return options(costs, draw(st.lists(losses, min_size=len(costs), max_size=len(costs))))


# Whole numbers, which tie and add up exactly, and floats, which do not.
small = st.one_of(
    st.lists(one_class(st.integers(0, 12)), min_size=1, max_size=5),
    st.lists(one_class(st.floats(0, 1e6)), min_size=1, max_size=5),
)


def cost_of(classes, positions):
    return sum(int(options.costs[position]) for options, position in zip(classes, positions, strict=True))


def loss_of(classes, positions):
    return sum(float(options.losses[position]) for options, position in zip(classes, positions, strict=True))


def every_choice(classes):
    return itertools.product(*(range(len(options.costs)) for options in classes))


def least_loss(classes, limit):
    return min(loss_of(classes, chosen) for chosen in every_choice(classes) if cost_of(classes, chosen) <= limit)


def least_cost(classes):
    return sum(int(options.costs[0]) for options in classes)


def highest_cost(classes):
    return sum(int(options.costs[-1]) for options in classes)


def spectra(seed, classes, most, kind):
    """Classes like those of layers: losses are the tails of a spectrum, and the last option is dense and exact."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(classes):
        count = int(generator.integers(1, most))
        if kind == "power law":
            values = np.arange(1.0, count + 1) ** -generator.uniform(0.3, 3)
        elif kind == "flat":
            values = np.ones(count)
        else:
            values = np.sort(generator.exponential(size=count))[::-1]
        values = values * 10 ** generator.uniform(-3, 3)
        tails = np.maximum(values.sum() - values.cumsum(), 0)
        unit = int(generator.integers(1, 400))
        costs = unit * np.arange(1, count + 1)
        made.append(options([*costs, costs[-1] + generator.integers(1, 5 * unit)], [*tails, 0]))
    return made


kinds = st.sampled_from(["power law", "flat", "random"])


def best_step(options, position, room):
    """The step from a position that saves most loss per cost: this rate, 0 where no step fits or gains, and its end."""
    costs = options.costs[position:] - options.costs[position]
    gains = options.losses[position] - options.losses[position:]
    rates = np.where((costs <= room) & (gains > 0), gains / np.maximum(costs, 1e-9), 0)
    best = int(rates.argmax())
    return rates[best], position + best


def greedy(classes, limit):
    """Start from the cheapest options, and always take the step that fits and saves most loss per cost."""
    chosen = [0] * len(classes)
    room = limit - least_cost(classes)
    while True:
        steps = [best_step(options, position, room) for options, position in zip(classes, chosen, strict=True)]
        index = max(range(len(steps)), key=lambda index: steps[index])
        rate, end = steps[index]
        if rate == 0:
            return chosen
        room -= int(classes[index].costs[end] - classes[index].costs[chosen[index]])
        chosen[index] = end


def highest_bound(classes, limit):
    """The best of the bounds that prices give: no choice within the limit loses less."""

    def bound(price):
        return sum((options.losses + price * options.costs).min() for options in classes) - price * limit

    low, high = -12.0, 12.0  # the bound is concave in the price
    for _ in range(200):
        third = (high - low) / 3
        if bound(10 ** (low + third)) < bound(10 ** (high - third)):
            low += third
        else:
            high -= third
    return max(bound(0.0), bound(10**low))


def by_tables(classes, limit):
    """The least loss within the limit, by dynamic programming over every cost, class by class."""
    table = np.zeros(limit + 1)
    for options_of_class in classes:
        grown = np.full(limit + 1, np.inf)
        for cost, loss in zip(options_of_class.costs.tolist(), options_of_class.losses.tolist(), strict=True):
            if cost <= limit:
                grown[cost:] = np.minimum(grown[cost:], table[: limit + 1 - cost] + loss)
        table = grown
    return table[limit]


@given(classes=small, share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_the_choice_is_the_best_of_all(classes, share):
    limit = least_cost(classes) + round(share * (highest_cost(classes) - least_cost(classes)))
    chosen = solve(classes, limit)
    assert cost_of(classes, chosen) <= limit
    assert loss_of(classes, chosen) == pytest.approx(least_loss(classes, limit), rel=1e-9, abs=1e-9)


@given(classes=small, data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_limit_that_a_choice_reaches_to_the_last_unit_is_used(classes, data):
    wanted = data.draw(st.sampled_from(list(every_choice(classes))))
    chosen = solve(classes, cost_of(classes, wanted))
    assert loss_of(classes, chosen) <= loss_of(classes, wanted) * (1 + 1e-9) + 1e-9


@given(seed=st.integers(0, 10_000), count=st.integers(2, 14), share=st.floats(0, 1), kind=kinds)
@settings(max_examples=60, deadline=None)
def test_spectra_of_many_layers_are_solved_exactly(seed, count, share, kind):
    classes = spectra(seed, count, 12, kind)
    limit = least_cost(classes) + int(share * (highest_cost(classes) - least_cost(classes)))
    chosen = solve(classes, limit)
    assert cost_of(classes, chosen) <= limit
    assert loss_of(classes, chosen) == pytest.approx(by_tables(classes, limit), rel=1e-9)


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), count=st.integers(20, 60), share=st.floats(0.01, 0.99), kind=kinds)
@settings(max_examples=12, deadline=None)
def test_a_large_choice_is_within_the_limit_no_worse_than_greedy_and_near_the_bound(seed, count, share, kind):
    classes = spectra(seed, count, 60, kind)
    limit = least_cost(classes) + int(share * (highest_cost(classes) - least_cost(classes)))
    chosen = solve(classes, limit)
    loss = loss_of(classes, chosen)
    assert cost_of(classes, chosen) <= limit
    assert loss <= loss_of(classes, greedy(classes, limit)) * (1 + 1e-9)
    bound = highest_bound(classes, limit)
    # One class at most is between two options in the relaxation: rounding it costs no more than its whole range.
    assert bound * (1 - 1e-6) - 1e-9 <= loss <= bound + max(np.ptp(options.losses) for options in classes)


@pytest.mark.parametrize("alive", [1, 3, 20])
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), kind=kinds)
@settings(max_examples=15, deadline=None)
def test_following_fewer_partial_choices_stays_within_the_limit_and_no_worse_than_the_first_solution(
    alive, seed, share, kind
):
    classes = spectra(seed, 12, 20, kind)
    limit = least_cost(classes) + int(share * (highest_cost(classes) - least_cost(classes)))
    groups = groups_of_one(classes)
    first = [position for _, (position,) in first_solution(groups, relax(groups, limit), limit)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "MOST_CHOICES", alive)
        patch.setattr(knapsack, "MOST_PAIRS", 10 * alive)
        chosen = solve(classes, limit)
    assert cost_of(classes, chosen) <= limit
    assert loss_of(classes, chosen) <= loss_of(classes, first)
    assert loss_of(classes, chosen) >= by_tables(classes, limit) * (1 - 1e-9)


@given(seed=st.integers(0, 10_000), kind=kinds, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@settings(max_examples=40, deadline=None)
def test_a_higher_limit_never_loses_more(seed, kind, shares):
    classes = spectra(seed, 8, 12, kind)
    room = highest_cost(classes) - least_cost(classes)
    less, more = (loss_of(classes, solve(classes, least_cost(classes) + int(share * room))) for share in sorted(shares))
    assert more <= less * (1 + 1e-9)


def test_options_above_the_convex_hull_are_taken_where_they_fit_best():
    # The hull goes straight from loss 10 to 0, so 4.5 at cost 6 lies above it. Two of these fill the limit.
    assert solve([options([0, 6, 10], [10, 4.5, 0])] * 2, 12) == [1, 1]


def test_without_a_limit_that_binds_every_class_loses_least():
    classes = spectra(0, 10, 12, "random")
    assert loss_of(classes, solve(classes, highest_cost(classes))) == sum(options.losses.min() for options in classes)


def test_one_option_each_leaves_no_choice():
    classes = [options([3], [2.0]), options([4], [0.0])]
    assert solve(classes, 7) == [0, 0]
    with pytest.raises(ValueError, match="7, more than 6"):
        solve(classes, 6)


@given(classes=small)
@settings(max_examples=50, deadline=None)
def test_a_limit_below_the_cheapest_options_is_an_error(classes):
    with pytest.raises(ValueError, match="cheapest"):
        solve(classes, least_cost(classes) - 1)


def groups_of(losses, most=3):
    """Groups with variants, each of some classes."""
    variant = st.lists(one_class(losses), min_size=1, max_size=most)
    return st.lists(st.lists(variant, min_size=1, max_size=3), min_size=1, max_size=2)


@given(groups=groups_of(st.integers(0, 12)) | groups_of(st.floats(0, 1e6)), share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_the_choice_among_variants_is_the_best_of_all(groups, share):
    most = sum(max(highest_cost(classes) for classes in group) for group in groups)
    least = cheapest(groups)
    limit = least + round(share * (most - least))
    chosen = knapsack.solve(groups, limit)
    taken = [(group[variant], positions) for group, (variant, positions) in zip(groups, chosen, strict=True)]
    assert sum(cost_of(classes, positions) for classes, positions in taken) <= limit
    everything = itertools.product(
        *([(classes, every) for classes in group for every in every_choice(classes)] for group in groups)
    )
    wanted = min(
        sum(loss_of(classes, positions) for classes, positions in choice)
        for choice in everything
        if sum(cost_of(classes, positions) for classes, positions in choice) <= limit
    )
    assert sum(loss_of(classes, positions) for classes, positions in taken) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.99), kind=kinds)
@settings(max_examples=30, deadline=None)
def test_variants_of_layers_are_solved_exactly(seed, share, kind):
    groups = [[spectra(seed + 7 * group + variant, 3, 10, kind) for variant in range(4)] for group in range(2)]
    least = cheapest(groups)
    limit = least + int(share * (min(highest_cost(classes) for group in groups for classes in group)))
    chosen = knapsack.solve(groups, limit)
    taken = [(group[variant], positions) for group, (variant, positions) in zip(groups, chosen, strict=True)]
    assert sum(cost_of(classes, positions) for classes, positions in taken) <= limit
    reachable = [pair for pair in itertools.product(*groups) if sum(map(least_cost, pair)) <= limit]
    wanted = min(by_tables([*itertools.chain(*pair)], limit) for pair in reachable)
    assert sum(loss_of(classes, positions) for classes, positions in taken) == pytest.approx(wanted, rel=1e-9)
