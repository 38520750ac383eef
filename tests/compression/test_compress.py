import gc
import itertools

import pytest
import torch
from geometry import SIDE, OnMaps, Residual, seeded, smooth_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.calibration.eligible import MOST_GROUPS
from hscc_search.compression.compress import compress
from hscc_search.compression.division import clusters as cluster_strategies
from hscc_search.compression.division import regions as region_strategies
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError
from hscc_search.evaluation.counters import measure_cost

STRATEGIES = ("grid", "bands")
every_region_strategy = pytest.mark.parametrize("region_strategy", region_strategies.STRATEGIES)
every_cluster_strategy = pytest.mark.parametrize("cluster_strategy", cluster_strategies.STRATEGIES)


@pytest.fixture(scope="module")
def digits_cnn():
    network = seeded(lambda: DigitsCNN(5, SIDE))
    return network, calibrate(network, smooth_images(32))


@pytest.fixture(scope="module")
def residual():
    network = seeded(Residual)
    return network, calibrate(network, smooth_images(32))


@pytest.fixture(scope="module")
def on_maps():
    network = seeded(OnMaps)
    return network, calibrate(network, smooth_images(32))


@pytest.fixture(params=["digits_cnn", "residual", "on_maps"])
def calibrated(request):
    return request.getfixturevalue(request.param)


@torch.no_grad()
def mostly_dead(network):
    """Make three channels of four constant, so that so few filters hold all the variance that factors pay."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight[torch.arange(len(layer.weight)) % 4 != 0] = 0
    return network


@pytest.fixture(scope="module")
def thin_digits_cnn():
    network = seeded(lambda: mostly_dead(DigitsCNN(5, SIDE)))
    return network, calibrate(network, smooth_images(16))


@pytest.fixture(scope="module")
def thin_residual():
    network = seeded(lambda: mostly_dead(Residual()))
    return network, calibrate(network, smooth_images(16))


@pytest.fixture(params=["thin_digits_cnn", "thin_residual"])
def thin(request):
    return request.getfixturevalue(request.param)


@torch.no_grad()
def distance(network, dense, images):
    """Error relative to how much the dense outputs vary."""
    expected = dense(images)
    return float((network(images) - expected).norm() / (expected - expected.mean(dim=0)).norm())


def weights_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def is_factored(layer):
    """Tell whether a layer of a plan has a region that does not stay dense."""
    return any(ranks is not None for regions in layer.ranks for ranks in regions)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (1, 3), (4, 1), (5, 3)])
def test_all_the_energy_reproduces_the_dense_network(calibrated, strategy, count, clusters):
    network, calibration = calibrated
    compressed = compress(calibration, Setting(count, clusters, 1.0, region_strategy=strategy))
    assert distance(compressed.network, network, calibration.images) < 1e-4


@every_region_strategy
@every_cluster_strategy
def test_all_the_energy_in_few_channels_is_factored_exactly(thin, region_strategy, cluster_strategy):
    network, calibration = thin
    setting = Setting(4, 3, 1.0, region_strategy=region_strategy, cluster_strategy=cluster_strategy)
    compressed = compress(calibration, setting)
    factored = [layer for layer in compressed.plan if is_factored(layer)]
    assert len(factored) >= 4
    assert compressed.macs < 0.75 * calibration.macs
    assert distance(compressed.network, network, calibration.images) < 1e-4
    if "none" not in (region_strategy, cluster_strategy):
        assert max(layer.regions for layer in factored) > 1
        assert max(len(ranks) for layer in factored for regions in layer.ranks for ranks in regions if ranks) > 1


@pytest.mark.slow
@every_region_strategy
@every_cluster_strategy
@pytest.mark.parametrize("which", ["residual", "on_maps"])
def test_planned_macs_are_those_that_both_counters_find_for_every_strategy(
    request, which, region_strategy, cluster_strategy
):
    _, calibration = request.getfixturevalue(which)
    strategies = {"region_strategy": region_strategy, "cluster_strategy": cluster_strategy}
    setting = Setting(4, 2, budget=1.8, region_gain=0, **strategies)
    compressed = compress(calibration, setting)
    cost = measure_cost(compressed.network, SIDE)
    assert compressed.macs == cost.macs == cost.macs_torch
    assert cost.macs * 1.8 <= calibration.macs


@pytest.mark.slow
@given(
    count=st.integers(1, 10),
    clusters=st.integers(1, 5),
    rule=st.one_of(
        st.builds(lambda energy: {"energy": energy}, st.floats(0.3, 1)),
        st.builds(lambda share: {"channel_share": share}, st.floats(0.05, 1)),
        st.builds(lambda budget: {"budget": budget}, st.floats(1.05, 2)),
    ),
    multiple=st.sampled_from([1, 4]),
    strategy=st.sampled_from(sorted(region_strategies.STRATEGIES)),
    which=st.integers(0, 2),
)
@settings(max_examples=10, deadline=None)
def test_planned_macs_are_those_that_both_counters_find(
    digits_cnn, residual, on_maps, count, clusters, rule, multiple, strategy, which
):
    network, calibration = (digits_cnn, residual, on_maps)[which]
    compressed = compress(
        calibration, Setting(count, clusters, rank_multiple=multiple, region_strategy=strategy, **rule)
    )
    cost = measure_cost(compressed.network, SIDE)
    assert compressed.macs == cost.macs == cost.macs_torch
    dense = measure_cost(network, SIDE)
    assert sum(layer.macs_dense for layer in compressed.plan) == dense.macs == calibration.macs
    assert compressed.macs <= dense.macs


def test_less_energy_costs_less_and_errs_more(calibrated):
    network, calibration = calibrated
    networks = [compress(calibration, Setting(4, 1, energy)) for energy in (0.5, 0.8, 0.95, 0.999)]
    macs = [compressed.macs for compressed in networks]
    assert macs == sorted(macs)
    assert macs[0] < macs[-1]
    errors = [distance(compressed.network, network, calibration.images) for compressed in networks]
    assert errors == sorted(errors, reverse=True)


def test_compressing_leaves_the_dense_network_alone(calibrated):
    network, calibration = calibrated
    both = (network, calibration.network)
    before = [(weights_of(dense), [type(module) for module in dense.modules()]) for dense in both]
    compress(calibration, Setting(4, 2, 0.7))
    for dense, (weights, modules) in zip(both, before, strict=True):
        assert same_weights(weights_of(dense), weights)
        assert [type(module) for module in dense.modules()] == modules


def test_the_same_setting_gives_the_same_network(calibrated):
    _, calibration = calibrated
    first, second = (compress(calibration, Setting(4, 3, 0.8, seed=3)) for _ in range(2))
    assert first.plan == second.plan
    assert same_weights(weights_of(first.network), weights_of(second.network))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_residual_network_is_close_to_the_dense_one_on_other_images(residual, strategy):
    network, calibration = residual
    compressed = compress(calibration, Setting(4, 1, 0.99, region_strategy=strategy))
    assert compressed.macs < sum(layer.macs_dense for layer in compressed.plan)
    assert distance(compressed.network, network, smooth_images(64, seed=1)) < 0.15


def test_the_mean_response_is_kept_at_any_energy():
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 7), nn.Flatten(2)))
    calibration = calibrate(network, smooth_images(32))
    compressed = compress(calibration, Setting(1, 2, 0.3)).network
    with torch.no_grad():
        expected = network(calibration.images).mean(dim=(0, 2))
        torch.testing.assert_close(compressed(calibration.images).mean(dim=(0, 2)), expected, rtol=1e-4, atol=1e-4)


batch_sizes = []


class Watched(nn.Module):
    """Record the size of every batch that passes, through all copies of the network."""

    def forward(self, x):
        batch_sizes.append(len(x))
        return x


@pytest.mark.parametrize(("fewest", "expected"), [(512, 60), (31, 60), (30, 30), (10, 30)])
def test_every_second_of_many_images_is_passed_on(monkeypatch, fewest, expected):
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Watched(), nn.Flatten())
    calibration = calibrate(network, smooth_images(60))
    monkeypatch.setattr("hscc_search.compression.compress.FEWEST_IMAGES", fewest)
    batch_sizes.clear()
    compressed = compress(calibration, Setting(energy=0.99))
    assert batch_sizes == [expected]
    # Answers paired with the responses to other images would fit next to nothing.
    assert distance(compressed.network, calibration.network, calibration.images) < 0.6


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("rule", [{"energy": 0.9}, {"channel_share": 0.2}, {"budget": 1.8}], ids=str)
def test_a_calibration_image_or_two_are_enough_to_run(calibrated, count, rule):
    network, _ = calibrated
    compressed = compress(calibrate(network, smooth_images(count)), Setting(4, 2, **rule))
    assert torch.isfinite(compressed.network(smooth_images(3, seed=1))).all()


def test_a_network_with_dead_channels_is_compressed():
    def build():
        network = DigitsCNN(5, SIDE)
        with torch.no_grad():
            for layer in (network[0], network[5]):
                layer.weight[::2] = 0
                layer.bias[::2] = -1
        return network

    network = seeded(build)
    calibration = calibrate(network, smooth_images(32))
    compressed = compress(calibration, Setting(4, 3, 0.999))
    assert compressed.macs < sum(layer.macs_dense for layer in compressed.plan)
    assert distance(compressed.network, network, calibration.images) < 0.1


def test_a_layer_with_two_names_is_compressed_or_left_dense():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.alias = self.conv
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.alias(x).mean(dim=(2, 3)))

    network = seeded(Aliased)
    calibration = calibrate(network, smooth_images(16))
    compressed = compress(calibration, Setting(2, 1, 0.99))
    assert compressed.macs == measure_cost(compressed.network, SIDE).macs


def test_a_compressed_network_trains(calibrated):
    _, calibration = calibrated
    compressed = compress(calibration, Setting(4, 2, 0.8)).network
    labels = torch.arange(len(calibration.images)) % 5
    optimiser = torch.optim.SGD(compressed.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = functional.cross_entropy(compressed(calibration.images), labels)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[1] < losses[0]
    assert all(parameter.grad is not None for parameter in compressed.parameters())


def test_regions_refuse_images_of_another_size_and_whole_maps_take_them(residual):
    _, calibration = residual
    divided = compress(calibration, Setting(4, 1, budget=2, region_gain=0)).network
    with pytest.raises(CompressionError, match="regions belong to a map"):
        divided(smooth_images(2, side=24))
    whole = compress(calibration, Setting(budget=2)).network
    assert whole(smooth_images(2, side=24)).shape == (2, 5)


@pytest.mark.parametrize("kind", ["cardinal", "depthwise"])
def test_many_groups_are_left_dense_and_few_are_not(kind):
    groups = 32 if kind == "depthwise" else MOST_GROUPS + 8

    def build():
        return nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1),
            nn.Conv2d(64, 64 if kind == "cardinal" else 32, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(64 if kind == "cardinal" else 32, 64, 3, padding=1, groups=groups),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 5),
        )

    calibration = calibrate(seeded(build), smooth_images(24))
    compressed = compress(calibration, Setting(4, 1, energy=0.9))
    plan = {layer.name: layer for layer in compressed.plan}
    assert plan["1"].left_dense is None
    assert plan["1"].macs < plan["1"].macs_dense
    assert plan["3"].left_dense is not None
    assert plan["3"].macs == plan["3"].macs_dense
    cost = measure_cost(compressed.network, SIDE)
    assert compressed.macs == cost.macs == cost.macs_torch
    assert distance(compressed.network, calibration.network, calibration.images) < 0.5


def test_a_layer_of_fewer_channels_than_clusters_or_positions_than_regions():
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 2, 8, stride=8), nn.ReLU(), nn.Conv2d(2, 16, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
        )

    network = seeded(build)
    calibration = calibrate(network, smooth_images(16))
    for strategy, cluster_strategy in itertools.product(region_strategies.STRATEGIES, cluster_strategies.STRATEGIES):
        setting = Setting(9, 20, energy=0.9, region_strategy=strategy, cluster_strategy=cluster_strategy)
        compressed = compress(calibration, setting)
        assert compressed.macs == measure_cost(compressed.network, SIDE).macs
        assert torch.isfinite(compressed.network(calibration.images)).all()
        exact = Setting(9, 20, energy=1.0, region_strategy=strategy, cluster_strategy=cluster_strategy)
        assert distance(compress(calibration, exact).network, network, calibration.images) < 1e-4


@pytest.mark.parametrize("rule", [{"energy": 0.9}, {"budget": 2}], ids=str)
def test_a_region_that_is_the_same_in_all_images_takes_no_more_filters_and_stays_close(rule):
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)
        )
    )
    images = smooth_images(24)
    images[:, :, : SIDE // 2 + 1] = 0.5
    images[:, :, : SIDE // 2 + 1, 0] = 0.3  # constant, and not the same everywhere
    calibration = calibrate(network, images)
    compressed = compress(calibration, Setting(2, 1, region_strategy="bands", **rule))
    conv = compressed.network[0]
    if "energy" in rule:
        ((still_ranks, moving_ranks),) = compressed.plan[0].ranks
        assert sum(still_ranks) <= sum(moving_ranks or (24,))
    with torch.no_grad():
        upper, expected = conv(images)[:, :, 1:7, 2:-2], network[0](images)[:, :, 1:7, 2:-2]
    assert torch.isfinite(upper).all()
    assert (upper - expected).abs().max() < 0.3 * expected.abs().max()


def test_a_network_outlives_its_calibration():
    calibration = calibrate(seeded(Residual), smooth_images(8))
    compressed = compress(calibration, Setting(4, 2, budget=2)).network
    folder = calibration.records[0].file.parent
    expected = compressed(smooth_images(2))
    del calibration
    gc.collect()
    assert not folder.exists()
    assert torch.equal(compressed(smooth_images(2)), expected)


def test_a_network_without_gradients_is_compressed():
    network = seeded(Residual).requires_grad_(False)
    calibration = calibrate(network, smooth_images(8))
    compressed = compress(calibration, Setting(budget=2)).network
    assert torch.isfinite(compressed(smooth_images(2))).all()
