import math
import re
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.division.regions import STRATEGIES
from hscc_search.config import StudyConfig
from hscc_search.dense.networks import build_network
from hscc_search.errors import ConfigError
from hscc_search.study.space import Space, check_space, space_of

# Of digits_cnn; its last layer, "13", is too small to matter, "11" is fully connected.
LAYERS = ["0", "2", "5", "7", "11"]
# A space of 9 x 3 x 100 samples.
FINE = {"energy": {"low": 0.6, "high": 0.99, "levels": 100}}
STAGES = {"stage1": ["0", "2"], "stage2": ["5", "7"], "stage3": ["11"]}


def make_space(scopes=(), **changes):
    return Space(StudyConfig.from_file("digits", **changes), dict(scopes))


@pytest.fixture(scope="module")
def calibration():
    torch.manual_seed(0)
    return calibrate(build_network("digits_cnn", 10, 16), torch.rand(40, 3, 16, 16))


ranges = st.tuples(st.integers(1, 9), st.integers(0, 3)).map(lambda pair: {"low": pair[0], "high": pair[0] + pair[1]})
energies = st.tuples(st.floats(0.05, 0.9), st.floats(0, 1), st.integers(2, 6)).map(
    lambda drawn: {"low": drawn[0], "high": drawn[0] + drawn[1] * (1 - drawn[0]), "levels": drawn[2]}
)
budgets = st.tuples(st.floats(1.01, 20), st.floats(1, 10), st.integers(2, 6)).map(
    lambda drawn: {"low": drawn[0], "high": drawn[0] * drawn[1], "levels": drawn[2]}
)
rules = st.one_of(energies.map(lambda energy: {"energy": energy}), budgets.map(lambda budget: {"budget": budget}))
choices = st.fixed_dictionaries(
    {},
    optional={
        "region_strategy": st.lists(st.sampled_from(["grid", "bands", "none"]), min_size=1, unique=True),
        "cluster_strategy": st.lists(st.sampled_from(["coactivation", "random", "none"]), min_size=1, unique=True),
        "rank_multiple": st.lists(st.sampled_from([1, 8, 16]), min_size=1, unique=True),
    },
)


@st.composite
def finite_spaces(draw):
    counts = {"regions": draw(ranges), "clusters": draw(ranges)}
    return make_space(
        draw(st.sampled_from([{}, {"stage1": ["0"], "stage2": ["2", "5"]}])),
        space={"per": "stage", **counts, **draw(rules), **draw(choices)},
    )


@given(finite_spaces())
@settings(max_examples=60, deadline=None)
def test_a_grid_has_every_sample_once_and_each_is_one_of_the_space(space):
    if space.size > 3000:
        return
    samples = list(space.grid())
    assert len(samples) == space.size
    assert len({tuple(sample.items()) for sample in samples}) == space.size
    assert all(space.checked(sample) == sample for sample in samples)
    # Keys do not tell more of them apart, and each makes a setting.
    assert len({space.key(sample) for sample in samples}) <= space.size
    assert {space.setting(sample).region_strategy for sample in samples[:50]} <= STRATEGIES.keys()


@given(finite_spaces(), st.data())
@settings(max_examples=100, deadline=None)
def test_snapping_takes_the_nearest_level_and_leaves_levels_where_they_are(space, data):
    span = space.config.space.energy or space.config.space.budget
    sample = {
        name: data.draw(st.floats(span.low, span.high)) if name.split("@")[0] in ("energy", "budget") else 1
        for name in space.distributions
    }
    levels = sorted({value for drawn in space.grid() for name, value in drawn.items() if isinstance(value, float)})
    snapped = space.snapped(sample)
    assert space.snapped(snapped) == snapped
    for name, value in sample.items():
        if isinstance(value, float):
            assert abs(snapped[name] - value) == min(abs(level - value) for level in levels)
            assert span.low <= snapped[name] <= span.high
        else:
            assert snapped[name] == value


def test_levels_are_evenly_spaced_for_energies_and_in_equal_ratios_for_budgets():
    energy = make_space(space={"energy": {"low": 0.6, "high": 0.9, "levels": 4}, "regions": {"low": 1, "high": 1}})
    assert sorted({sample["energy"] for sample in energy.grid()}) == [0.6, 0.7, 0.8, 0.9]
    budget = make_space(space={"budget": {"low": 2, "high": 16, "levels": 4}})
    assert sorted({sample["budget"] for sample in budget.grid()}) == [2, 4, 8, 16]


def test_without_levels_a_space_is_infinite_and_snaps_nothing():
    assert make_space().size == math.inf
    sample = {"regions": 3, "clusters": 2, "energy": 0.8123456}
    assert make_space().snapped(sample) == sample


def test_samples_that_give_the_same_network_have_the_same_key():
    space = make_space(
        space={"region_strategy": ["grid", "bands", "none"], "cluster_strategy": ["coactivation", "random"]}
    )
    sample = {"regions": 1, "clusters": 1, "energy": 0.9, "region_strategy": "grid", "cluster_strategy": "random"}

    def same(**changes):
        return space.key({**sample, **changes}) == space.key(sample)

    # With one region the strategy does not matter; with more it does.
    assert same(region_strategy="bands", cluster_strategy="coactivation")
    assert space.key({**sample, "regions": 2}) != space.key({**sample, "regions": 2, "region_strategy": "bands"})
    assert space.key({**sample, "clusters": 2}) != space.key(
        {**sample, "clusters": 2, "cluster_strategy": "coactivation"}
    )
    # "none" gives one region, whatever is asked.
    assert same(region_strategy="none", regions=7)
    assert not same(energy=0.8)
    assert not same(regions=2)


def test_a_study_without_regions_does_not_tell_their_number():
    space = make_space(compression__region_strategy="none")
    first, second = ({"regions": count, "clusters": 2, "energy": 0.9} for count in (1, 5))
    assert space.key(first) == space.key(second)
    assert space.key(first) != space.key({**first, "clusters": 3})


@given(st.lists(st.integers(1, 2), min_size=2, max_size=2), st.sampled_from(["grid", "bands"]))
@settings(deadline=None)
def test_a_strategy_is_idle_only_where_no_stage_is_divided(counts, strategy):
    space = make_space(STAGES, space={"per": "stage", "region_strategy": ["grid", "bands"]})
    sample = {name: 0.9 if name.startswith("energy") else 1 for name in space.distributions}
    sample |= {"regions@stage1": counts[0], "regions@stage2": counts[1], "region_strategy": strategy}
    other = {**sample, "region_strategy": {"grid": "bands", "bands": "grid"}[strategy]}
    assert (space.key(sample) == space.key(other)) == (counts == [1, 1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"regions": 2, "clusters": 1}, "needs values for regions, clusters, energy and no others"),
        ({"regions": 2, "clusters": 1, "energy": 0.9, "epochs": 1}, "and no others"),
        ({"regions": 20, "clusters": 1, "energy": 0.9}, "regions 20 is not in"),
        ({"regions": 2.5, "clusters": 1, "energy": 0.9}, "regions 2.5 is not in"),
        ({"regions": 2, "clusters": 1, "energy": 0.5}, "energy 0.5 is not in"),
        ({"regions": 2, "clusters": 1, "energy": "much"}, "energy 'much' is not in"),
        ({"regions": "two", "clusters": 1, "energy": 0.9}, "regions 'two' is not in"),
    ],
)
def test_a_start_that_is_not_of_the_space_is_refused_in_one_line(given, said):
    with pytest.raises(ConfigError) as refused:
        make_space().checked(given)
    assert said in str(refused.value)
    assert "study digits: start" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_start_is_taken_with_numbers_of_the_right_kind():
    space = make_space(space={"budget": {"low": 2, "high": 8}, "rank_multiple": [1, 8]})
    sample = space.checked({"regions": 2, "clusters": 1, "budget": 3, "rank_multiple": 8})
    assert sample == {"regions": 2, "clusters": 1, "budget": 3.0, "rank_multiple": 8}
    assert [type(value) for value in sample.values()] == [int, int, float, int]
    with pytest.raises(ConfigError, match="rank_multiple 4 is not in"):
        space.checked({"regions": 2, "clusters": 1, "budget": 3, "rank_multiple": 4})


@pytest.mark.parametrize(
    ("per", "start", "said"),
    [
        ("network", {"regions": 2, "clusters": 1}, "needs values for regions, clusters, energy and no others"),
        ("network", {"regions": 2, "clusters": 1, "energy": 1e308}, "energy 1e+308 is not in"),
        ("stage", {"regions@stage1": 20}, "regions@stage1 20 is not in"),
        ("layer", {"energy@0": 0.9, "regions@0": "two"}, "regions@0 'two' is not in"),
        ("layer", {"epochs@0": 1}, "'epochs@0' is no name of a value: use regions, clusters, energy"),
    ],
)
def test_a_start_is_checked_as_far_as_can_be_before_anything_is_trained(per, start, said):
    config = StudyConfig.from_file("digits", start=[start], space={**FINE, "per": per})
    with pytest.raises(ConfigError, match=f"study digits: start: .*{re.escape(said)}"):
        check_space(config)


def test_a_start_for_layers_that_are_not_known_yet_is_left_to_the_space(calibration):
    config = StudyConfig.from_file("digits", start=[{"regions@nowhere": 1}], space={**FINE, "per": "layer"})
    check_space(config)
    with pytest.raises(ConfigError, match="needs values for regions@0"):
        space_of(config, calibration).check()


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_a_grid_of_too_many_samples_is_refused_before_it_is_listed(sampler):
    many = make_space(sampler=sampler, space={**FINE, "regions": {"low": 1, "high": 1024}})
    few = make_space(sampler=sampler, space=FINE)
    few.check()
    check_space(few.config)
    for check in (many.check, lambda: check_space(many.config)):
        with pytest.raises(ConfigError, match="more than 100,000 samples") if sampler == "grid" else nullcontext():
            check()


@pytest.mark.parametrize("levels", [8, None])
def test_the_space_of_a_network_with_a_thousand_layers_has_a_size(levels):
    layers = {str(number): [str(number)] for number in range(1000)}
    energy = {"low": 0.6, "high": 0.9, "levels": levels}
    size = make_space(layers, space={"per": "layer", "energy": energy}).size
    assert size == ((9 * 3 * levels) ** 1000 if levels else math.inf)


@pytest.mark.parametrize(
    ("per", "scopes"), [("network", {}), ("layer", {name: [name] for name in LAYERS}), ("stage", STAGES)]
)
def test_stages_are_layers_in_a_row_whose_maps_have_one_size(calibration, per, scopes):
    config = StudyConfig.from_file("digits", space={"per": per})
    space = space_of(config, calibration)
    assert space.scopes == scopes
    suffixes = [f"@{scope}" for scope in scopes] or [""]
    # A fully connected layer has one region and one cluster.
    divided = [suffix for suffix in suffixes if suffix not in ("@11", "@stage3")]
    assert space.distributions.keys() == {
        *(f"energy{suffix}" for suffix in suffixes),
        *(f"{name}{suffix}" for name in ("regions", "clusters") for suffix in divided),
    }


def test_each_layer_is_compressed_with_its_own_energy_and_regions(calibration):
    config = StudyConfig.from_file("digits", space={"per": "layer"})
    space = space_of(config, calibration)
    low = {name: 0.7 if name.startswith("energy") else 1 for name in space.distributions}
    mixed = {**low, "energy@5": 0.998, "regions@2": 4, "clusters@2": 3}
    assert space.setting(mixed).of("5").energy == 0.998
    before, after = ({plan.name: plan for plan in compress(calibration, space.setting(s)).plan} for s in (low, mixed))
    assert after["5"].macs > before["5"].macs
    assert (before["2"].regions, after["2"].regions) == (1, 4)
    for name in ("0", "7", "11"):  # unchanged
        assert (after[name].macs, after[name].summary) == (before[name].macs, before[name].summary)


def test_each_stage_is_compressed_with_its_own_energy(calibration):
    config = StudyConfig.from_file("digits", space={"per": "stage"})
    space = space_of(config, calibration)
    low = {name: 0.7 if name.startswith("energy") else 1 for name in space.distributions}
    before, after = (
        {plan.name: plan.macs for plan in compress(calibration, space.setting(sample)).plan}
        for sample in (low, {**low, "energy@stage2": 0.998})
    )
    assert {name for name in LAYERS if before[name] != after[name]} == {"5", "7"}


def test_a_budget_is_of_the_network_while_regions_are_of_its_stages(calibration):
    config = StudyConfig.from_file("digits", space={"per": "stage", "budget": {"low": 2, "high": 8}})
    config = config.model_copy(update={"compression": config.compression.model_copy(update={"region_gain": 0.0})})
    space = space_of(config, calibration)
    assert "budget" in space.distributions
    sample = {name: 3.0 if name == "budget" else 1 for name in space.distributions} | {"regions@stage2": 4}
    compressed = compress(calibration, space.setting(sample))
    assert 3 <= calibration.macs / compressed.macs <= 3.2
    regions = {plan.name: plan.regions for plan in compressed.plan}
    assert {regions[name] for name in STAGES["stage1"]} == {1}
    assert {regions[name] for name in STAGES["stage2"]} == {4}
