import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.config import StudyConfig
from hscc_search.pareto.objectives import Objective
from hscc_search.study.propose import Tried, propose
from hscc_search.study.space import Space

PLANE = (Objective("flops", False), Objective("accuracy", True))
SAMPLERS = ["auto", "gp", "tpe", "nsga2", "random", "grid"]
# Small enough to be exhausted: 12 samples; with one region the two strategies are the same.
SMALL = {
    "regions": {"low": 1, "high": 2},
    "clusters": {"low": 1, "high": 1},
    "energy": {"low": 0.6, "high": 0.8, "levels": 3},
    "region_strategy": ["grid", "bands"],
}
KEYS_OF_SMALL = 9


def space(scopes=(), **changes):
    return Space(StudyConfig.from_file("digits", **changes), dict(scopes))


def landscape(sample):
    """FLOPs and accuracy of a sample: more energy costs more and is better, and so are regions, a little."""
    energy = np.mean([value for name, value in sample.items() if name.startswith("energy")])
    regions = np.mean([value for name, value in sample.items() if name.startswith("regions")])
    flops = energy**3 * (1 + 0.02 * regions)
    return float(flops), float(1 - (1 - energy) ** 2 / (1 + 0.3 * regions))


def search(one, count, seed=0, tried=(), bound=None):
    """Try ``count`` samples one after the other; with a bound, accuracies below it are infeasible."""
    tried = list(tried)
    for number in range(count):
        proposal = propose(one, PLANE, tried, seed + number)
        if proposal is None:
            break
        values = landscape(proposal.sample)
        violations = () if bound is None else (bound - values[1],)
        tried.append(Tried(proposal.sample, values, violations, attributes=proposal.attributes))
    return tried


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_finite_space_is_exhausted_without_repeats_and_then_nothing_is_left(sampler):
    one = space(sampler=sampler, space=SMALL)
    tried = search(one, 2 * KEYS_OF_SMALL)
    keys = [one.key(trial.sample) for trial in tried]
    assert len(keys) == len(set(keys)) == KEYS_OF_SMALL
    assert set(keys) == {one.key(sample) for sample in one.grid()}
    assert propose(one, PLANE, tried, 99) is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_running_and_failed_samples_are_not_proposed_again(sampler):
    one = space(sampler=sampler, space=SMALL)
    left = {"regions": 2, "clusters": 1, "energy": 0.7, "region_strategy": "bands"}
    others = [sample for sample in one.grid() if one.key(sample) != one.key(left)]
    tried = [
        Tried(sample, None, failed=number % 3 == 0) if number % 2 else Tried(sample, landscape(sample))
        for number, sample in enumerate(others)
    ]
    assert propose(one, PLANE, tried, 0).sample == left
    assert propose(one, PLANE, [*tried, Tried(left)], 0) is None


@pytest.mark.parametrize("sampler", ["auto", "gp", "tpe", "nsga2", "random"])
@pytest.mark.parametrize("count", [0, 12, 70])
def test_the_same_past_and_seed_give_the_same_proposal(sampler, count):
    one = space(sampler=sampler)
    past = search(space(sampler="random"), count)
    first, again = (propose(one, PLANE, list(past), 5) for _ in range(2))
    assert first == again
    if count >= 12 and sampler != "gp":  # its proposal does not depend on the seed
        assert propose(one, PLANE, past, 6) != first


def test_the_grid_does_not_depend_on_the_trials_seed_and_covers_the_space_early():
    one = space(sampler="grid", space=SMALL)
    order = [trial.sample for trial in search(one, KEYS_OF_SMALL)]
    assert order == [trial.sample for trial in search(one, KEYS_OF_SMALL, seed=77)]
    early = order[: KEYS_OF_SMALL // 2]
    assert len({sample["energy"] for sample in early}) > 1
    assert {sample["regions"] for sample in early} == {1, 2}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_starts_come_first_in_their_order_and_once(sampler):
    start = [
        {"regions": 2, "clusters": 1, "energy": 0.7, "region_strategy": "bands"},
        {"regions": 1, "clusters": 1, "energy": 0.61, "region_strategy": "grid"},  # snapped to 0.6
    ]
    one = space(sampler=sampler, space=SMALL, start=start)
    tried = search(one, 4)
    assert [trial.sample for trial in tried[:2]] == [start[0], {**start[1], "energy": 0.6}]
    assert len({one.key(trial.sample) for trial in tried}) == 4


def test_a_start_that_runs_elsewhere_is_left_to_it():
    start = [{"regions": 3, "clusters": 1, "energy": 0.7}, {"regions": 2, "clusters": 2, "energy": 0.8}]
    assert propose(space(start=start), PLANE, [Tried(start[0])], 0).sample == start[1]


@pytest.mark.parametrize("sampler", ["auto", "gp", "tpe", "nsga2"])
def test_samplers_look_where_the_constraints_are_kept(sampler):
    """With the bound fewer proposals lie below it than without, after the same trials."""
    space_of_sampler = space(sampler=sampler)
    bound = landscape({"regions": 1, "energy": 0.95})[1]

    # NSGA-II breeds from its own trials alone.
    space_before = space_of_sampler if sampler == "nsga2" else space(sampler="random")

    def feasible_among_later(bound_of_samplers):
        before = search(space_before, 40, bound=bound_of_samplers)
        later = search(space_of_sampler, 8, seed=100, tried=before, bound=bound_of_samplers)[40:]
        return sum(landscape(trial.sample)[1] >= bound for trial in later)

    assert feasible_among_later(bound) > feasible_among_later(None) + 1


@st.composite
def spaces(draw):
    low = draw(st.floats(0.05, 0.95))
    levels = {"levels": draw(st.integers(2, 5))} if draw(st.booleans()) else {}
    rule = draw(
        st.sampled_from(
            [
                {"energy": {"low": low, "high": draw(st.floats(low, 1)), **levels}},
                {"budget": {"low": 1 + low, "high": draw(st.floats(1 + low, 30)), **levels}},
            ]
        )
    )
    counts = {"low": 1, "high": draw(st.integers(1, 4))}
    picked = draw(st.sampled_from([{}, {"region_strategy": ["grid", "none"], "rank_multiple": [8, 1]}]))
    samplers = ["auto", "gp", "tpe", "nsga2", "random", *(["grid"] if levels else [])]
    return space(
        draw(st.sampled_from([{}, {"stage1": ["0"], "stage2": ["2", "5"]}])),
        space={"per": "stage", "regions": counts, "clusters": counts, **rule, **picked},
        sampler=draw(st.sampled_from(samplers)),
    )


@given(spaces(), st.integers(0, 10), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_proposals_are_of_the_space_on_its_levels_and_new(one, count, seed):
    tried = []
    for number in range(count):
        proposal = propose(one, PLANE, tried, seed + number)
        if proposal is None:
            assert len({one.key(sample) for sample in one.grid()}) == len(tried)
            return
        # Inside the space, every name once, and what snapping would change is not there.
        assert one.checked(proposal.sample) == proposal.sample
        one.setting(proposal.sample)
        tried.append(Tried(proposal.sample, (random.Random(number).random(), random.Random(-number - 1).random())))
    assert len({one.key(trial.sample) for trial in tried}) == count


def test_auto_begins_at_the_ends_and_fills_the_space():
    one = space()
    first = [trial.sample for trial in search(one, 8)]
    assert [sample["energy"] for sample in first[:2]] == [0.7, 0.998]
    assert len({sample["regions"] for sample in first}) >= 4
    thirds = [int(3 * (sample["energy"] - 0.7) / 0.2981) for sample in first]
    assert set(thirds) == {0, 1, 2}
    # Running trials count too: workers that start together do not start with the same sample.
    assert propose(one, PLANE, [Tried(first[0])], 0).sample == first[1]


def test_a_short_study_tries_each_precision():
    tried = search(space(space__precision=["float32", "int8"], objectives=["latency", "accuracy"]), 4)
    assert [trial.sample["precision"] for trial in tried] == ["float32", "int8"] * 2


@pytest.mark.parametrize("seed", range(3))
def test_the_first_samples_differ_in_precision_alone(seed):
    tried = search(space(seed=seed, space__precision=["float32", "int8"], objectives=["latency", "accuracy"]), 8)
    samples = [dict(trial.sample) for trial in tried]
    precisions = [sample.pop("precision") for sample in samples]
    assert precisions == ["float32", "int8"] * 4
    assert samples[::2] == samples[1::2]
    assert len({tuple(sample.values()) for sample in samples}) == 4


def test_auto_learns_from_its_trials():
    """On an easy landscape later proposals lie nearer to the front than the space-filling ones."""
    one = space(space={"regions": {"low": 1, "high": 9}, "energy": {"low": 0.3, "high": 0.99}})

    def worth(trials):  # with many regions the same accuracy costs less
        return np.mean([trial.sample["regions"] for trial in trials])

    tried = search(one, 26)
    assert worth(tried[14:]) > worth(tried[:8]) + 1.5


def test_auto_varies_the_front_when_much_was_tried():
    one = space(space={"regions": {"low": 1, "high": 9}, "energy": {"low": 0.3, "high": 0.99}})
    past = search(space(space={**one.config.space.model_dump()}, sampler="random"), 500)
    later = search(one, 40, seed=1000, tried=past)
    assert len({one.key(trial.sample) for trial in later}) == 540
    values = np.array([trial.values for trial in past]) * (1, -1)
    unbeaten = [
        row for row, mine in enumerate(values) if not ((values <= mine).all(axis=1) & (values < mine).any(axis=1)).any()
    ]
    front = [past[row].sample for row in unbeaten]

    def differences(sample, member):
        return sum(sample[name] != member[name] for name in sample)

    # Each is a member of the front, or of the front at its time, with one or two values drawn anew.
    for number, trial in enumerate(later[500:]):
        members = front + [other.sample for other in later[500 : 500 + number]]
        assert 1 <= min(differences(trial.sample, member) for member in members) <= 2


def test_auto_goes_on_where_nothing_is_feasible_or_everything_failed():
    one = space()
    past = [Tried(trial.sample, trial.values, (0.5,)) for trial in search(space(sampler="random"), 70)]
    assert one.checked(propose(one, PLANE, past, 0).sample)
    failed = [Tried(trial.sample, failed=True) for trial in past]
    assert one.checked(propose(one, PLANE, failed, 0).sample)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_objectives_and_stages_go_through_every_sampler(sampler):
    names = ("latency", "accuracy", "parameters", "recall:3")
    objectives = tuple(
        Objective(name, maximise) for name, maximise in zip(names, (False, True, False, True), strict=True)
    )
    one = space(
        {"stage1": ["0", "2"], "stage2": ["5", "7"]},
        sampler=sampler,
        objectives=names,
        space={"per": "stage", "energy": {"low": 0.5, "high": 0.9, "levels": 3}, "clusters": {"low": 1, "high": 2}},
    )
    tried = []
    for number in range(10):
        proposal = propose(one, objectives, tried, number)
        flops, accuracy = landscape(proposal.sample)
        tried.append(Tried(proposal.sample, (flops, accuracy, 2 * flops, accuracy**2), (0.9 - accuracy,)))
    assert len({one.key(trial.sample) for trial in tried}) == 10


def test_nsga2_gets_its_generations_back():
    """The generation is stored with a trial and read back; otherwise all trials would be of the first generation."""
    one = space(sampler="nsga2", start=[{"regions": 3, "clusters": 1, "energy": 0.7}])
    tried = search(one, 45)
    generations = {value for trial in tried for name, value in trial.attributes.items() if name.endswith("generation")}
    assert generations == {0, 1, 2}


def test_a_start_sample_given_twice_is_tried_once():
    sample = {"regions": 1, "clusters": 1, "energy": 0.9}
    one = Space(StudyConfig.from_file("digits", start=[sample, sample, sample]), {})
    first = propose(one, PLANE, [], 0)
    assert first.sample == sample
    second = propose(one, PLANE, [Tried(first.sample, (1.0, 0.5))], 1)
    assert second.sample != sample
