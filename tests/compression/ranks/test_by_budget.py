import itertools
import re
from dataclasses import replace

import pytest
import torch
from designs import assert_ranks_fit, every_block, loss_of, macs_of, parameters_of
from geometry import SIDE, seeded, smooth_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.division import clusters as cluster_strategies
from hscc_search.compression.division import regions as region_strategies
from hscc_search.compression.form import total_rank
from hscc_search.compression.ranks.choice import choose_ranks
from hscc_search.compression.ranks.knapsack import solve
from hscc_search.compression.ranks.menu import layer_menu
from hscc_search.compression.ranks.options import cheapest
from hscc_search.compression.ranks.options import loss_of as loss_of_options
from hscc_search.compression.ranks.relaxation import relax
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError

# Most by which the achieved ratio exceeds the budget, since ranks are whole: one filter is a small part of the network.
SLACK = 1.03


@pytest.mark.parametrize("asked", [1.4, 2, 3])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (4, 1), (1, 2), (4, 2)])
def test_a_budget_of_flops_is_kept_and_used(calibration, asked, multiple, count, clusters):
    setting = Setting(count, clusters, budget=asked, region_gain=0, rank_multiple=multiple)
    designs = choose_ranks(calibration, setting)
    achieved = calibration.macs / macs_of(calibration, designs)
    assert achieved >= asked * (1 - 1e-9)
    if multiple == 1:
        assert achieved <= SLACK * asked
    assert_ranks_fit(calibration, designs, multiple)
    assert any(designed.ranks is not None for designed in every_block(designs))


@given(
    strategy=st.sampled_from(sorted(region_strategies.STRATEGIES)),
    cluster_strategy=st.sampled_from(sorted(cluster_strategies.STRATEGIES)),
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
        designs = choose_ranks(residual, setting)
    except CompressionError as error:
        (reachable,) = re.findall(r"gives ([\d.]+)x", str(error))
        assert float(reachable) <= asked * 1.01
        return
    assert_ranks_fit(residual, designs, multiple)
    if of == "flops":
        assert macs_of(residual, designs) * asked <= residual.macs * (1 + 1e-9)


@pytest.mark.parametrize(("count", "clusters", "multiple"), [(1, 1, 1), (1, 3, 8), (2, 1, 1), (4, 2, 2)])
def test_a_budget_of_parameters_is_kept_by_the_network_itself(calibration, count, clusters, multiple):
    asked = 1.5
    setting = Setting(count, clusters, budget=asked, budget_of="parameters", rank_multiple=multiple)
    achieved = parameters_of(calibration.network) / parameters_of(compress(calibration, setting).network)
    assert achieved >= asked * (1 - 1e-9)
    if (count, multiple) == (1, 1):
        assert achieved <= SLACK * asked


def highest_budget(calibration, setting):
    """The highest budget within reach, as told by the error about a budget out of reach."""
    with pytest.raises(CompressionError, match="out of reach") as caught:
        choose_ranks(calibration, setting(1e6))
    (told,) = re.findall(r"gives ([\d.e+]+)x", str(caught.value))
    return float(told)


@pytest.mark.parametrize("of", ["flops", "parameters"])
@pytest.mark.parametrize(("count", "multiple"), [(1, 1), (4, 1), (1, 8)])
def test_a_budget_out_of_reach_is_an_error_that_tells_what_is_in_reach(calibration, of, count, multiple):
    def setting(budget):
        return Setting(count, 2, budget=budget, budget_of=of, rank_multiple=multiple)

    highest = highest_budget(calibration, setting)
    assert highest > 1
    designs = choose_ranks(calibration, setting(highest * 0.99))
    if multiple == 1:
        assert min(sum(designed.ranks) for designed in every_block(designs) if designed.ranks is not None) == 1
    with pytest.raises(CompressionError, match=f"{of} is out of reach"):
        choose_ranks(calibration, setting(highest * 1.01))


def test_a_budget_loses_less_than_energies_and_shares_that_cost_as_much(calibration):
    for rule in [{"energy": 0.8}, {"energy": 0.95}, {"channel_share": 0.2}, {"channel_share": 0.4}]:
        by_cluster = choose_ranks(calibration, Setting(2, 2, **rule))
        asked = calibration.macs / macs_of(calibration, by_cluster)
        by_budget = choose_ranks(calibration, Setting(2, 2, budget=asked * (1 - 1e-9)))
        assert loss_of(by_budget) < 0.9 * loss_of(by_cluster)


@pytest.mark.parametrize(("count", "asked"), [(2, 2), (4, 3), (3, 6)])
def test_regions_share_the_input_ranks_that_lose_least_of_all(count, asked):
    def build():
        first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 5, padding=2)
        pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)]
        return nn.Sequential(first, nn.ReLU(), second, *pooled)

    calibration = calibrate(seeded(build), smooth_images(48))
    designs = choose_ranks(calibration, Setting(count, budget=asked, region_gain=0))
    # Menus need the divided layers, and the design of a layer that stays dense is not divided.
    divided = choose_ranks(calibration, Setting(count, energy=0.5))
    menus = {
        name: layer_menu(calibration, calibration.record(name), divided[name].partition, 1, "flops") for name in designs
    }
    variants_of_layers = [variants for menu in menus.values() for variants in menu.variants]
    assert [len(variants) for variants in variants_of_layers] == [3, 8]

    fixed = calibration.macs - sum(calibration.record(name).macs for name in designs)
    limit = int(calibration.macs / asked) - fixed
    losses = []
    for variants in itertools.product(*variants_of_layers):
        groups = [[variant.classes] for variant in variants]
        if cheapest(groups) <= limit:
            choices = zip(groups, solve(groups, limit), strict=True)
            losses.append(sum(loss_of_options(classes, positions) for (classes,), (_, positions) in choices))
    lost = sum(loss_in_menu(menus[name], design.form) for name, design in designs.items())
    assert lost == pytest.approx(min(losses), rel=1e-9)


def loss_in_menu(menu, form):
    """The loss of a layer's form, looked up in the layer's menu."""
    ((regions,), (input_rank,), (variants,)) = form.ranks, form.input_ranks, menu.variants
    if regions == (None,):
        return 0.0
    (variant,) = [variant for variant in variants if variant.input_rank == input_rank]
    loss = 0.0
    for block_menu, ranks in zip(variant.menus, regions, strict=True):
        total_ranks = [*block_menu.total_ranks.tolist(), None]
        loss += block_menu.options.losses[total_ranks.index(total_rank(ranks))]
    return loss


def test_a_layer_that_the_loss_depends_on_more_gets_more_of_a_budget(residual):
    def macs_of_mix(factor):
        records = tuple(
            replace(record, effects=record.effects * (factor if record.name == "mix" else 1))
            for record in residual.records
        )
        return choose_ranks(replace(residual, records=records), Setting(budget=2.5))["mix"].macs

    assert macs_of_mix(1e-2) < macs_of_mix(1) < macs_of_mix(1e2)


def test_a_higher_budget_loses_more(calibration):
    losses = [loss_of(choose_ranks(calibration, Setting(2, budget=asked))) for asked in (1.2, 1.6, 2.4, 4)]
    assert losses[0] < losses[-1]


class Halves(nn.Module):
    """Two convolutions over maps whose left and right halves use different channels, or the same ones."""

    def __init__(self, differ):
        super().__init__()
        self.differ = differ
        self.layers = nn.Sequential(nn.Conv2d(12, 48, 1), nn.Conv2d(48, 48, 1))
        self.head = nn.Linear(48, 5)

    def forward(self, x):
        x = torch.cat([x, x.square(), x.abs(), x.sin()], dim=1)
        if self.differ:
            left = (torch.arange(x.shape[3]) < x.shape[3] // 2).expand(6, -1)[:, None, :]
            x = x * torch.cat([left, ~left])
        return self.head(self.layers(x).mean(dim=(2, 3)))


def regions_of(calibration, **values):
    designs = choose_ranks(calibration, Setting(2, budget=2, region_strategy="kmeans", **values))
    return len(designs["layers.1"].partition.blocks[0])


def test_a_layer_is_divided_only_where_that_gains_within_a_budget():
    differ = calibrate(seeded(lambda: Halves(True)), torch.randn(48, 3, SIDE, SIDE))
    alike = calibrate(seeded(lambda: Halves(False)), torch.randn(48, 3, SIDE, SIDE))
    assert regions_of(differ) == 2
    assert regions_of(alike) == 1
    assert regions_of(alike, region_gain=0) == 2
    assert regions_of(differ, region_gain=1) == 1


def test_a_network_whose_predictions_are_certain_keeps_a_budget():
    """With every prediction certain no gradient is left, so all responses count alike."""

    def build():
        network = DigitsCNN(5, SIDE)
        with torch.no_grad():
            network[-1].weight.mul_(1e8)
        return network

    calibration = calibrate(seeded(build), smooth_images(16))
    designs = choose_ranks(calibration, Setting(budget=2))
    assert 2 <= calibration.macs / macs_of(calibration, designs) <= SLACK * 2


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
    compressed = compress(calibration, Setting(budget=1.4, budget_of=of))
    if of == "flops":
        assert 1.4 <= calibration.macs / compressed.macs <= SLACK * 1.4
    else:
        assert 1.4 <= parameters_of(calibration.network) / parameters_of(compressed.network) <= SLACK * 1.4
    assert highest_budget(calibration, lambda budget: Setting(budget=budget, budget_of=of)) < 4


@pytest.mark.parametrize("count", [1, 4])
def test_a_price_of_weights_makes_the_network_smaller_within_the_same_budget(calibration, count):
    sizes = []
    for price in (0, 1, 10, 1000):
        setting = Setting(count, budget=2, region_gain=0, weight_price=price)
        designs = choose_ranks(calibration, setting)
        assert macs_of(calibration, designs) * 2 <= calibration.macs
        sizes.append(parameters_of(compress(calibration, setting).network))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


@pytest.mark.parametrize("price", [0.5, 3])
def test_no_weight_is_kept_that_is_worth_less_than_its_price(price):
    """Every choice of ranks of a small network is tried: none has a lower sum of loss and priced weights."""

    def build():
        first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)]
        return nn.Sequential(first, nn.ReLU(), second, *pooled)

    calibration = calibrate(seeded(build), smooth_images(48))
    limit = int(calibration.macs / 1.5)
    outside = calibration.macs - sum(record.macs for record in calibration.records)
    plain = choose_ranks(calibration, Setting(budget=1.5, weight_price=0))
    menus = {
        name: layer_menu(calibration, calibration.record(name), design.partition, 1, "flops")
        for name, design in plain.items()
    }
    groups = [group for menu in menus.values() for group in menu.groups()]
    unit = price * relax(groups, limit - outside).price
    options = [
        [
            (int(cost), float(loss + unit * weights))
            for variant in variants
            for cost, loss, weights in zip(
                variant.menus[0].options.costs, variant.menus[0].options.losses, variant.menus[0].weights, strict=True
            )
        ]
        for menu in menus.values()
        for variants in menu.variants
    ]
    best = min(
        sum(loss for _, loss in taken)
        for taken in itertools.product(*options)
        if sum(cost for cost, _ in taken) <= limit - outside
    )
    setting = Setting(budget=1.5, weight_price=price)
    chosen = choose_ranks(calibration, setting)
    weights = sum(
        parameter.numel()
        for name, parameter in compress(calibration, setting).network.named_parameters()
        if name.endswith("weight") and any(name.startswith(layer) for layer in chosen)
    )
    assert loss_with_inputs(menus, chosen) + unit * weights == pytest.approx(best, rel=1e-9)


def loss_with_inputs(menus, designs):
    """The loss of the options that designs have taken, as their menus give it."""
    loss = 0.0
    for name, design in designs.items():
        for variants, ranks, input_rank in zip(
            menus[name].variants, design.form.ranks, design.form.input_ranks, strict=True
        ):
            (variant,) = [each for each in variants if each.input_rank == input_rank]
            totals = variant.menus[0].total_ranks.tolist()
            position = len(totals) if ranks[0] is None else totals.index(total_rank(ranks[0]))
            loss += float(variant.menus[0].options.losses[position])
    return loss
