import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.compression.ranks import knapsack as budget
from hscc_search.compression.ranks.knapsack import Options


def options(costs, losses):
    return Options(np.array(costs, np.int64), np.array(losses, np.float64))


def solve(classes, limit):
    """Of classes that have nothing in common."""
    return [taken for _, (taken,) in budget.solve([[[one]] for one in classes], limit)]


@st.composite
def one_class(draw, losses):
    """Any costs, equal ones too, and any losses: not convex, and not even falling."""
    costs = sorted(draw(st.lists(st.integers(0, 25), min_size=1, max_size=5)))
    return options(costs, draw(st.lists(losses, min_size=len(costs), max_size=len(costs))))


# Whole numbers tie and add up exactly, and floats do not.
small = st.one_of(
    st.lists(one_class(st.integers(0, 12)), min_size=1, max_size=5),
    st.lists(one_class(st.floats(0, 1e6)), min_size=1, max_size=5),
)


def cost_of(classes, chosen):
    return sum(int(one.costs[position]) for one, position in zip(classes, chosen, strict=True))


def loss_of(classes, chosen):
    return sum(float(one.losses[position]) for one, position in zip(classes, chosen, strict=True))


def every_choice(classes):
    return itertools.product(*(range(len(one.costs)) for one in classes))


def least_loss(classes, limit):
    return min(loss_of(classes, chosen) for chosen in every_choice(classes) if cost_of(classes, chosen) <= limit)


def cheapest(classes):
    return sum(int(one.costs[0]) for one in classes)


def dearest(classes):
    return sum(int(one.costs[-1]) for one in classes)


def spectra(seed, classes, most, kind):
    """Classes as layers make them: losses are what is left of a spectrum, the last option is dense and exact."""
    generator = np.random.default_rng(seed)
    found = []
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
        found.append(options([*costs, costs[-1] + generator.integers(1, 5 * unit)], [*tails, 0]))
    return found


kinds = st.sampled_from(["power law", "flat", "random"])


def best_step(one, at, room):
    """What the best step takes per cost, 0 where none fits or gains, and to where."""
    costs, gains = one.costs[at:] - one.costs[at], one.losses[at] - one.losses[at:]
    rates = np.where((costs <= room) & (gains > 0), gains / np.maximum(costs, 1e-9), 0)
    to = int(rates.argmax())
    return rates[to], at + to


def greedy(classes, limit):
    """From the cheapest on, always the step that fits and takes most loss per cost."""
    chosen = [0] * len(classes)
    room = limit - cheapest(classes)
    while True:
        steps = [best_step(one, at, room) for one, at in zip(classes, chosen, strict=True)]
        index = max(range(len(steps)), key=lambda index: steps[index])
        rate, to = steps[index]
        if rate == 0:
            return chosen
        room -= int(classes[index].costs[to] - classes[index].costs[chosen[index]])
        chosen[index] = to


def highest_bound(classes, limit):
    """The best of the bounds that multipliers give: no choice within the limit loses less."""

    def bound(multiplier):
        return sum((one.losses + multiplier * one.costs).min() for one in classes) - multiplier * limit

    low, high = -12.0, 12.0  # concave in the multiplier
    for _ in range(200):
        third = (high - low) / 3
        if bound(10 ** (low + third)) < bound(10 ** (high - third)):
            low += third
        else:
            high -= third
    return max(bound(0.0), bound(10**low))


def by_tables(classes, limit):
    """Least losses for every cost up to the limit, class by class."""
    table = np.zeros(limit + 1)
    for one in classes:
        grown = np.full(limit + 1, np.inf)
        for cost, loss in zip(one.costs.tolist(), one.losses.tolist(), strict=True):
            if cost <= limit:
                grown[cost:] = np.minimum(grown[cost:], table[: limit + 1 - cost] + loss)
        table = grown
    return table[limit]


@given(classes=small, share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_the_choice_is_the_best_of_all(classes, share):
    limit = cheapest(classes) + round(share * (dearest(classes) - cheapest(classes)))
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
    limit = cheapest(classes) + int(share * (dearest(classes) - cheapest(classes)))
    chosen = solve(classes, limit)
    assert cost_of(classes, chosen) <= limit
    assert loss_of(classes, chosen) == pytest.approx(by_tables(classes, limit), rel=1e-9)


@given(seed=st.integers(0, 10_000), count=st.integers(20, 60), share=st.floats(0.01, 0.99), kind=kinds)
@settings(max_examples=12, deadline=None)
def test_a_large_choice_is_within_the_limit_no_worse_than_greed_and_near_the_bound(seed, count, share, kind):
    classes = spectra(seed, count, 60, kind)
    limit = cheapest(classes) + int(share * (dearest(classes) - cheapest(classes)))
    chosen = solve(classes, limit)
    loss = loss_of(classes, chosen)
    assert cost_of(classes, chosen) <= limit
    assert loss <= loss_of(classes, greedy(classes, limit)) * (1 + 1e-9)
    bound = highest_bound(classes, limit)
    # Rounding one class alone off the relaxation can cost no more than its whole range.
    assert bound * (1 - 1e-6) - 1e-9 <= loss <= bound + max(np.ptp(one.losses) for one in classes)


@pytest.mark.parametrize("alive", [1, 3, 20])
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), kind=kinds)
@settings(max_examples=15, deadline=None)
def test_following_fewer_partial_choices_stays_within_the_limit_and_no_worse_than_the_first_solution(
    alive, seed, share, kind
):
    classes = spectra(seed, 12, 20, kind)
    limit = cheapest(classes) + int(share * (dearest(classes) - cheapest(classes)))
    first = [taken for _, (taken,) in budget._relaxed([[[one]] for one in classes], limit)[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "_ALIVE", alive)
        patch.setattr(budget, "_PAIRS", 10 * alive)
        chosen = solve(classes, limit)
    assert cost_of(classes, chosen) <= limit
    assert loss_of(classes, chosen) <= loss_of(classes, first)
    assert loss_of(classes, chosen) >= by_tables(classes, limit) * (1 - 1e-9)


@given(seed=st.integers(0, 10_000), kind=kinds, one=st.floats(0, 1), other=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_higher_limit_never_loses_more(seed, kind, one, other):
    classes = spectra(seed, 8, 12, kind)
    room = dearest(classes) - cheapest(classes)
    less, more = (
        loss_of(classes, solve(classes, cheapest(classes) + int(share * room))) for share in sorted((one, other))
    )
    assert more <= less * (1 + 1e-9)


def test_options_above_the_convex_hull_are_taken_where_they_fit_best():
    # From 10 to 0 the hull goes straight: it passes below 4.5 at cost 6. Two of these use up what one dense leaves.
    assert solve([options([0, 6, 10], [10, 4.5, 0])] * 2, 12) == [1, 1]


def test_without_a_limit_that_binds_every_class_loses_least():
    classes = spectra(0, 10, 12, "random")
    assert loss_of(classes, solve(classes, dearest(classes))) == sum(one.losses.min() for one in classes)


def test_one_option_each_leaves_no_choice():
    classes = [options([3], [2.0]), options([4], [0.0])]
    assert solve(classes, 7) == [0, 0]
    with pytest.raises(ValueError, match="7, more than 6"):
        solve(classes, 6)


@given(classes=small)
@settings(max_examples=50, deadline=None)
def test_a_limit_below_the_cheapest_options_is_an_error(classes):
    with pytest.raises(ValueError, match="cheapest"):
        solve(classes, cheapest(classes) - 1)


def groups_of(losses, most=3):
    """Groups with variants, each of some classes."""
    variant = st.lists(one_class(losses), min_size=1, max_size=most)
    return st.lists(st.lists(variant, min_size=1, max_size=3), min_size=1, max_size=2)


@given(groups=groups_of(st.integers(0, 12)) | groups_of(st.floats(0, 1e6)), share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_the_choice_among_variants_is_the_best_of_all(groups, share):
    most = sum(max(dearest(classes) for classes in group) for group in groups)
    least = budget.cheapest(groups)
    limit = least + round(share * (most - least))
    chosen = budget.solve(groups, limit)
    taken = [(group[variant], positions) for group, (variant, positions) in zip(groups, chosen, strict=True)]
    assert sum(cost_of(*one) for one in taken) <= limit
    everything = itertools.product(
        *([(classes, every) for classes in group for every in every_choice(classes)] for group in groups)
    )
    wanted = min(
        sum(loss_of(*one) for one in all_of) for all_of in everything if sum(cost_of(*one) for one in all_of) <= limit
    )
    assert sum(loss_of(*one) for one in taken) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.99), kind=kinds)
@settings(max_examples=30, deadline=None)
def test_variants_of_layers_are_solved_exactly(seed, share, kind):
    groups = [[spectra(seed + 7 * group + variant, 3, 10, kind) for variant in range(4)] for group in range(2)]
    least = budget.cheapest(groups)
    limit = least + int(share * (min(dearest(classes) for group in groups for classes in group)))
    chosen = budget.solve(groups, limit)
    taken = [(group[variant], positions) for group, (variant, positions) in zip(groups, chosen, strict=True)]
    assert sum(cost_of(*one) for one in taken) <= limit
    reachable = [pair for pair in itertools.product(*groups) if sum(map(cheapest, pair)) <= limit]
    wanted = min(by_tables([one for classes in pair for one in classes], limit) for pair in reachable)
    assert sum(loss_of(*one) for one in taken) == pytest.approx(wanted, rel=1e-9)
