import re
from dataclasses import replace

import pytest
import torch
from geometry import SIDE, Residual, seeded, smooth_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.division import clusters as channels
from hscc_search.compression.division import regions
from hscc_search.compression.ranks import choice as allotment
from hscc_search.compression.ranks.choice import TINY_SHARE, allot
from hscc_search.compression.ranks.energy import rank_for_energy
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError

# What a whole number of filters may leave of a budget, where one filter is a small part of the network.
USED = 1.03


@pytest.fixture(scope="module")
def digits_cnn():
    return calibrate(seeded(lambda: DigitsCNN(5, SIDE)), smooth_images(48))


@pytest.fixture(scope="module")
def residual():
    return calibrate(seeded(Residual), smooth_images(48))


@pytest.fixture(params=["digits_cnn", "residual"])
def calibration(request):
    return request.getfixturevalue(request.param)


def macs_of(calibration, allotments):
    left = sum(record.macs for record in calibration.records if record.name not in allotments)
    return (
        sum(one.macs for one in allotments.values()) + left + sum(macs for macs, _ in calibration.left_dense.values())
    )


def parameters_of(network):
    return sum(parameter.numel() for parameter in network.parameters())


def every_block(allotments):
    """Layer name, block, ranks of its clusters."""
    return [
        (name, block, None if ranks is None else ranks.clusters)
        for name, one in allotments.items()
        for blocks, ranks_of_row in zip(one.partition.blocks, one.ranks, strict=True)
        for block, ranks in zip(blocks, ranks_of_row, strict=True)
    ]


def inputs_of(calibration, name):
    """How many numbers one filter of the layer reads."""
    return calibration.network.get_submodule(name).weight[0].numel()


def most_of(calibration, name, block):
    """The largest rank that costs less than the dense filters."""
    inputs, outputs = inputs_of(calibration, name), len(block.clusters)
    return max(rank for rank in range(outputs) if rank * (inputs + outputs) < inputs * outputs)


def assert_ranks_fit(calibration, allotments, multiple):
    """Ranks are a multiple, layers cheaper than dense, and no cluster has more than it has channels."""
    for name, one in allotments.items():
        assert one.macs <= calibration.record(name).macs
    for _, block, ranks in every_block(allotments):
        if ranks is None:
            continue
        assert sum(ranks) % multiple == 0
        assert 1 <= sum(ranks) <= len(block.clusters)
        assert all(0 <= rank <= len(values) for rank, values in zip(ranks, block.eigenvalues, strict=True))


@pytest.mark.parametrize("asked", [1.4, 2, 3])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (4, 1), (1, 2), (4, 2)])
def test_a_budget_of_flops_is_kept_and_used(calibration, asked, multiple, count, clusters):
    setting = Setting(count, clusters, budget=asked, region_gain=0, rank_multiple=multiple)
    allotments = allot(calibration, setting)
    achieved = calibration.macs / macs_of(calibration, allotments)
    assert achieved >= asked * (1 - 1e-9)
    if multiple == 1:
        assert achieved <= USED * asked
    assert_ranks_fit(calibration, allotments, multiple)
    assert any(ranks is not None for _, _, ranks in every_block(allotments))


@given(
    strategy=st.sampled_from(sorted(regions.STRATEGIES)),
    cluster_strategy=st.sampled_from(sorted(channels.STRATEGIES)),
    count=st.integers(1, 6),
    clusters=st.integers(1, 3),
    multiple=st.sampled_from([1, 2, 4]),
    asked=st.floats(1.05, 5),
    of=st.sampled_from(["flops", "parameters"]),
    gain=st.sampled_from([0, 0.1]),
)
@settings(max_examples=25, deadline=None)
def test_no_strategy_breaks_a_budget(residual, strategy, cluster_strategy, count, clusters, multiple, asked, of, gain):
    setting = Setting(
        count,
        clusters,
        budget=asked,
        budget_of=of,
        region_gain=gain,
        rank_multiple=multiple,
        region_strategy=strategy,
        cluster_strategy=cluster_strategy,
    )
    try:
        allotments = allot(residual, setting)
    except CompressionError as error:
        (reachable,) = re.findall(r"gives ([\d.]+)x", str(error))
        assert float(reachable) <= asked * 1.01
        return
    assert_ranks_fit(residual, allotments, multiple)
    if of == "flops":
        assert macs_of(residual, allotments) * asked <= residual.macs * (1 + 1e-9)


@pytest.mark.parametrize(("count", "clusters", "multiple"), [(1, 1, 1), (1, 3, 8), (2, 1, 1), (4, 2, 2)])
def test_a_budget_of_parameters_is_kept_by_the_network_itself(calibration, count, clusters, multiple):
    asked = 1.5
    setting = Setting(count, clusters, budget=asked, budget_of="parameters", rank_multiple=multiple)
    achieved = parameters_of(calibration.network) / parameters_of(compress(calibration, setting).network)
    assert achieved >= asked * (1 - 1e-9)
    if (count, multiple) == (1, 1):
        assert achieved <= USED * asked


def reachable(calibration, setting):
    with pytest.raises(CompressionError, match="out of reach") as caught:
        allot(calibration, setting(1e6))
    (found,) = re.findall(r"gives ([\d.e+]+)x", str(caught.value))
    return float(found)


@pytest.mark.parametrize("of", ["flops", "parameters"])
@pytest.mark.parametrize(("count", "multiple"), [(1, 1), (4, 1), (1, 8)])
def test_a_budget_out_of_reach_is_an_error_that_tells_what_is_in_reach(calibration, of, count, multiple):
    def setting(budget):
        return Setting(count, 2, budget=budget, budget_of=of, rank_multiple=multiple)

    limit = reachable(calibration, setting)
    assert limit > 1
    allotments = allot(calibration, setting(limit * 0.99))
    if multiple == 1:
        assert min(sum(ranks) for _, _, ranks in every_block(allotments) if ranks is not None) == 1
    with pytest.raises(CompressionError, match=f"{of} is out of reach"):
        allot(calibration, setting(limit * 1.01))


def loss_of(calibration, allotments):
    """The dropped variance, as the budget is divided by."""
    total = 0.0
    for _, block, ranks in every_block(allotments):
        if ranks is not None:
            dropped = sum(float(values[rank:].sum()) for values, rank in zip(block.eigenvalues, ranks, strict=True))
            total += dropped * block.area
    return total


def test_a_budget_loses_less_than_energies_and_ratios_that_cost_as_much(calibration):
    for rule in [{"energy": 0.8}, {"energy": 0.95}, {"ratio": 0.2}, {"ratio": 0.4}]:
        other = allot(calibration, Setting(2, 2, **rule))
        asked = calibration.macs / macs_of(calibration, other)
        found = allot(calibration, Setting(2, 2, budget=asked * (1 - 1e-9)))
        assert loss_of(calibration, found) <= loss_of(calibration, other) * (1 + 1e-6)
        assert loss_of(calibration, found) < 0.9 * loss_of(calibration, other)


@pytest.mark.parametrize(("count", "asked"), [(2, 2), (4, 3), (3, 6)])
def test_regions_share_the_input_ranks_that_lose_least_of_all(monkeypatch, count, asked):
    def build():
        first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 5, padding=2)
        pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)]
        return nn.Sequential(first, nn.ReLU(), second, *pooled)

    calibration = calibrate(seeded(build), smooth_images(48))
    menus_of = allotment._menus

    def lost(**variants):
        """What the budget loses; with the input ranks of some layers held to one of their variants."""
        seen = {}

        def held(calibration, setting, record, divided):
            (every,) = menus_of(calibration, setting, record, divided)
            at = variants.get(f"layer{record.name}")
            seen[record.name] = every if at is None else [every[at]]
            return [seen[record.name]]

        monkeypatch.setattr(allotment, "_menus", held)
        found = allot(calibration, Setting(count, budget=asked, region_gain=0))
        total = 0.0
        for name, one in found.items():
            ((ranks, inputs),) = zip(one.ranks, one.blueprint.input_ranks, strict=True)
            if ranks == (None,):  # dense, and not divided
                continue
            (menus,) = [menus for menus in seen[name] if menus[0].inputs == (inputs or 0)]
            for menu, own in zip(menus, ranks, strict=True):
                total += menu.options.losses[menu.ranks.tolist().index(own.total if own else 0)]
        return total

    best = min(lost(layer0=first, layer2=second) for first in range(3) for second in range(8))
    assert lost() == pytest.approx(best, rel=1e-9)


def test_a_layer_that_the_loss_hears_louder_gets_more_of_a_budget(residual):
    def macs_of_mix(factor):
        records = tuple(
            replace(record, effects=record.effects * (factor if record.name == "mix" else 1))
            for record in residual.records
        )
        return allot(replace(residual, records=records, memory={}), Setting(budget=2.5))["mix"].macs

    assert macs_of_mix(1e-2) < macs_of_mix(1) < macs_of_mix(1e2)


def test_a_higher_budget_loses_more(calibration):
    losses = [loss_of(calibration, allot(calibration, Setting(2, budget=asked))) for asked in (1.2, 1.6, 2.4, 4)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (4, 2)])
def test_a_ratio_gives_each_cluster_its_share_of_its_channels(calibration, ratio, count, clusters):
    factored = 0
    for name, block, ranks in every_block(allot(calibration, Setting(count, clusters, ratio=ratio))):
        expected = [max(1, round(ratio * len(values))) for values in block.eigenvalues]
        if ranks is None:
            assert sum(expected) > most_of(calibration, name, block) or ratio >= 0.5
        else:
            assert list(ranks) == expected
            factored += 1
    assert factored or ratio == 1


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.99])
@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (4, 2)])
def test_an_energy_gives_each_cluster_the_rank_that_holds_it(calibration, energy, count, clusters):
    factored = 0
    for name, block, ranks in every_block(allot(calibration, Setting(count, clusters, energy=energy))):
        expected = [rank_for_energy(values, energy) for values in block.eigenvalues]
        if ranks is not None:
            assert list(ranks) == expected
            factored += 1
        else:
            assert sum(expected) > most_of(calibration, name, block) or count > 1 or clusters > 1
    assert factored


@pytest.mark.parametrize("rule", [{"energy": 0.7}, {"ratio": 0.2}, {"budget": 2.5}])
@pytest.mark.parametrize("multiple", [1, 2, 4, 8])
def test_total_ranks_are_multiples(calibration, rule, multiple):
    allotments = allot(calibration, Setting(4, 2, rank_multiple=multiple, **rule))
    assert_ranks_fit(calibration, allotments, multiple)
    assert any(ranks is not None for _, _, ranks in every_block(allotments))


def test_a_multiple_is_reached_by_rounding_up_with_what_varies_most(residual):
    plain = allot(residual, Setting(1, 3, energy=0.7))["mix"]
    rounded = allot(residual, Setting(1, 3, energy=0.7, rank_multiple=8))["mix"]
    before, after = (one.ranks[0][0].clusters for one in (plain, rounded))
    assert sum(after) == -(-sum(before) // 8) * 8
    ((block,),) = rounded.partition.blocks
    kept = [values[low:high] for values, low, high in zip(block.eigenvalues, before, after, strict=True)]
    dropped = [values[high:] for values, high in zip(block.eigenvalues, after, strict=True)]
    assert all(low <= high for low, high in zip(before, after, strict=True))
    assert sum(before) == sum(after) or torch.cat(kept).min() >= torch.cat(dropped).max()


def test_the_macs_of_an_allotment_are_those_of_its_parts(calibration):
    for name, one in allot(calibration, Setting(4, 2, energy=0.9)).items():
        inputs = inputs_of(calibration, name)
        expected = sum(
            block.area
            * (inputs * len(block.clusters) if ranks is None else sum(ranks) * (inputs + len(block.clusters)))
            for layer, block, ranks in every_block({name: one})
        )
        assert one.macs == expected
        assert one.blueprint.ranks == tuple(
            tuple(None if ranks is None else ranks.total for ranks in row) for row in one.ranks
        )


def test_a_layer_that_is_dense_everywhere_is_not_divided(calibration):
    for name, one in allot(calibration, Setting(4, 2, energy=1.0)).items():
        if all(ranks is None for row in one.ranks for ranks in row):
            assert len(one.blueprint.pieces) == 1, name
            assert one.macs == calibration.record(name).macs


def test_a_layer_is_divided_once_for_all_rank_rules(residual):
    divided = [
        allot(residual, Setting(4, 2, **rule))["mix"].partition
        for rule in (
            {"energy": 0.5},
            {"ratio": 0.2},
            {"budget": 3, "region_gain": 0},
            {"budget": 1.5, "budget_of": "parameters", "region_gain": 0},
        )
    ]
    assert all(one is divided[0] for one in divided)
    assert allot(residual, Setting(4, 2, energy=0.5, seed=1))["mix"].partition is not divided[0]


def test_a_fully_connected_layer_is_divided_once_for_all_divisions(digits_cnn):
    name = next(record.name for record in digits_cnn.records if record.fully_connected)
    found = [allot(digits_cnn, Setting(*counts, energy=0.5))[name].partition for counts in ((4, 2), (1, 1), (2, 3))]
    assert all(one is found[0] for one in found)


@pytest.mark.parametrize("megabytes", [0, 0.05, 1000])
def test_divided_layers_are_remembered_up_to_a_size(residual, monkeypatch, megabytes):
    monkeypatch.setattr(allotment, "_MEGABYTES", megabytes)
    calibration = replace(residual, memory={})
    settings_of = [Setting(regions, 2, budget=2) for regions in (1, 4, 9, 4, 1)]
    found = [allot(calibration, setting) for setting in settings_of]
    for setting, one in zip(settings_of, found, strict=True):
        fresh = allot(replace(residual, memory={}), setting)
        assert {name: own.ranks for name, own in one.items()} == {name: own.ranks for name, own in fresh.items()}
    kept = calibration.memory["partitions"].values()
    sizes = [sum(axes.nbytes for axes in block.axes) / 1e6 for one in kept for row in one.blocks for block in row]
    assert len(kept) == 1 or sum(sizes) <= megabytes
    if megabytes == 1000:  # each layer undivided and in both grids, but for those that are divided alike
        assert len(kept) > 2 * len(found[0])
        again = allot(calibration, settings_of[0])
        assert all(own.partition is found[0][name].partition for name, own in again.items())


class Halves(nn.Module):
    """Two convolutions over maps whose left and right halves are about different things, or about the same."""

    def __init__(self, differ):
        super().__init__()
        self.differ = differ
        self.layers = nn.Sequential(nn.Conv2d(12, 48, 1), nn.Conv2d(48, 48, 1))
        self.head = nn.Linear(48, 5)

    def forward(self, x):
        x = torch.cat([x, x.square(), x.abs(), x.sin()], dim=1)
        if self.differ:
            here = (torch.arange(x.shape[3]) < x.shape[3] // 2).expand(6, -1)[:, None, :]
            x = x * torch.cat([here, ~here])
        return self.head(self.layers(x).mean(dim=(2, 3)))


def regions_of(calibration, **values):
    allotments = allot(calibration, Setting(2, budget=2, region_strategy="kmeans", **values))
    return len(allotments["layers.1"].partition.blocks[0])


def test_a_layer_is_divided_only_where_that_gains_within_a_budget():
    differ = calibrate(seeded(lambda: Halves(True)), torch.randn(48, 3, SIDE, SIDE))
    alike = calibrate(seeded(lambda: Halves(False)), torch.randn(48, 3, SIDE, SIDE))
    assert regions_of(differ) == 2
    assert regions_of(alike) == 1
    assert regions_of(alike, region_gain=0) == 2
    assert regions_of(differ, region_gain=1) == 1


def test_layers_that_are_too_small_to_matter_are_left_out():
    def build():
        return nn.Sequential(nn.Conv2d(3, 64, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))

    calibration = calibrate(seeded(build), smooth_images(16))
    assert calibration.record("3").macs < TINY_SHARE * calibration.macs
    assert list(allot(calibration, Setting(budget=2))) == ["0"]


def test_layers_come_in_execution_order(residual):
    assert list(allot(residual, Setting(budget=2))) == ["stem.0", "reduce", "grouped", "project", "mix"]


def test_a_network_that_is_sure_of_itself_still_has_ranks_to_lose():
    """With every prediction certain no gradient is left: then all responses count alike, and none may be dropped."""

    def build():
        network = DigitsCNN(5, SIDE)
        with torch.no_grad():
            network[-1].weight.mul_(1e8)
        return network

    calibration = calibrate(seeded(build), smooth_images(16))
    allotments = allot(calibration, Setting(budget=2))
    assert 2 <= calibration.macs / macs_of(calibration, allotments) <= USED * 2


@pytest.mark.parametrize("of", ["flops", "parameters"])
def test_what_is_left_dense_counts_in_the_budget(of):
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 32, 3, padding=1)
            self.twice = nn.Conv2d(32, 32, 3, padding=1)
            self.last = nn.Conv2d(32, 64, 3, padding=1)
            self.head = nn.Linear(64, 5)

        def forward(self, x):
            x = self.twice(self.twice(self.first(x).relu()).relu()).relu()
            return self.head(self.last(x).relu().mean(dim=(2, 3)))

    calibration = calibrate(seeded(Reused), smooth_images(24))
    found = compress(calibration, Setting(budget=1.4, budget_of=of))
    if of == "flops":
        assert 1.4 <= calibration.macs / found.macs <= USED * 1.4
    else:
        assert 1.4 <= parameters_of(calibration.network) / parameters_of(found.network) <= USED * 1.4
    assert reachable(calibration, lambda budget: Setting(budget=budget, budget_of=of)) < 4


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"energy": 0.5, "budget": 2},
        {"energy": 0.5, "ratio": 0.5},
        {"energy": 0.0},
        {"energy": 1.5},
        {"ratio": 0},
        {"ratio": 1.01},
        {"budget": 1},
        {"budget": -2},
        {"budget": float("nan")},
        {"budget": 2, "budget_of": "bytes"},
        {"energy": 0.5, "rank_multiple": 0},
        {"budget": 2, "region_gain": -0.1},
        {"budget": 2, "region_gain": 1.1},
        {"budget": 2, "region_gain": float("nan")},
        {"energy": 0.5, "regions": 0},
        {"energy": 0.5, "clusters": 0},
        {"energy": 0.5, "region_strategy": "rings"},
        {"energy": 0.5, "cluster_strategy": "rings"},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_an_error(values):
    with pytest.raises(CompressionError):
        Setting(**values)
