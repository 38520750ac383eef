import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hscc_search.compression.calibration import calibrate
from hscc_search.compression.hscc import LayerPlan, Setting, compress, compress_layer, rebuild
from hscc_search.errors import CompressionError
from hscc_search.evaluation.cost import measure_cost
from hscc_search.models import DigitsCNN

SIDE = 16

STRATEGIES = ("grid", "bands")


def smooth_images(count, seed=0):
    """Images of few degrees of freedom, as photographs are, so that responses have leading axes."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")


class Residual(nn.Module):
    """A small ResNet: skip connection with projection, batch norm, grouped convolution, activation in place."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.reduce = nn.Conv2d(24, 32, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.project = nn.Conv2d(24, 32, 1, stride=2)
        self.mix = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        x = self.stem(x)
        branch = functional.relu(self.norm(self.reduce(x)))
        x = functional.relu(self.grouped(branch) + self.project(x))
        return self.head(functional.relu(x + self.mix(x)).mean(dim=(2, 3)))


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
        network.train()
        with torch.no_grad():
            network(smooth_images(64, seed=99))  # batch norm meets its statistics
    return network.eval()


@pytest.fixture(scope="module")
def digits_cnn():
    network = seeded(lambda: DigitsCNN(5, SIDE))
    return network, calibrate(network, smooth_images(32))


@pytest.fixture(scope="module")
def residual():
    network = seeded(Residual)
    return network, calibrate(network, smooth_images(32))


@pytest.fixture(params=["digits_cnn", "residual"])
def calibrated(request):
    return request.getfixturevalue(request.param)


@torch.no_grad()
def distance(network, dense, images):
    """Error relative to how much the dense outputs vary."""
    expected = dense(images)
    return float((network(images) - expected).norm() / (expected - expected.mean(dim=0)).norm())


def weights_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("regions", "clusters"), [(1, 1), (1, 3), (4, 1), (5, 3)])
def test_all_the_energy_reproduces_the_dense_network(calibrated, strategy, regions, clusters):
    network, calibration = calibrated
    found = compress(network, calibration, Setting(regions, clusters, 1.0, strategy))
    assert distance(found.network, network, calibration.images) < 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("regions", "clusters"), [(1, 1), (1, 3), (4, 1), (6, 3)])
def test_factors_of_a_layer_of_low_rank_are_exact_on_other_images_too(strategy, regions, clusters):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 24, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_((torch.randn(24, 2) @ torch.randn(2, 27)).view_as(layer.weight))
    images = torch.randn(32, 3, SIDE, SIDE)
    (record,) = calibrate(nn.Sequential(layer), images).records
    setting = Setting(regions, clusters, 1 - 1e-5, strategy)
    with torch.no_grad():
        module, plan, blueprint = compress_layer(layer, images, record, setting)
    assert None not in blueprint.ranks
    assert all(rank <= 2 for ranks in plan.ranks for rank in ranks)
    assert plan.macs < plan.macs_dense
    others = torch.randn(8, 3, SIDE, SIDE)
    torch.testing.assert_close(module(others), layer(others), rtol=1e-3, atol=1e-3)


def test_a_linear_layer_of_low_rank_is_factored_exactly():
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(30, 3) @ torch.randn(3, 40))
    features = torch.randn(200, 40)
    (record,) = calibrate(nn.Sequential(layer), features).records
    with torch.no_grad():
        module, plan, blueprint = compress_layer(layer, features, record, Setting(4, 3, 1 - 1e-5))
    assert blueprint.ranks == (3,)
    assert plan.ranks == ((3,),)
    others = torch.randn(20, 40)
    torch.testing.assert_close(module(others), layer(others), rtol=1e-3, atol=1e-3)


def test_a_region_answers_the_damaged_input_with_the_dense_response_where_it_can():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 12, 1)
    images = torch.randn(64, 3, 8, 8)
    (record,) = calibrate(nn.Sequential(layer), images).records
    # Whatever compresses the layers before may scale and shift: nothing is lost by that.
    damaged = 0.5 * images + 1
    with torch.no_grad():
        module, _, _ = compress_layer(layer, damaged, record, Setting(4, 1, 1 - 1e-5))
    expected = layer(images)
    assert (module(damaged) - expected).norm() < 0.01 * expected.norm()
    assert (layer(damaged) - expected).norm() > 0.3 * expected.norm()


@given(
    regions=st.integers(1, 10),
    clusters=st.integers(1, 5),
    energy=st.floats(0.3, 1),
    strategy=st.sampled_from(STRATEGIES),
    which=st.integers(0, 1),
)
@settings(max_examples=20, deadline=None)
def test_planned_macs_are_those_that_both_counters_find(
    digits_cnn, residual, regions, clusters, energy, strategy, which
):
    network, calibration = (digits_cnn, residual)[which]
    found = compress(network, calibration, Setting(regions, clusters, energy, strategy))
    cost = measure_cost(found.network, SIDE)
    assert found.macs == cost.macs == cost.macs_torch
    dense = measure_cost(network, SIDE)
    assert sum(layer.macs_dense for layer in found.plan) == dense.macs
    assert found.macs <= dense.macs


def test_the_plan_names_every_layer_with_what_became_of_it(residual):
    network, calibration = residual
    plan = {layer.name: layer for layer in compress(network, calibration, Setting(4, 2, 0.8)).plan}
    assert list(plan)[:4] == ["stem.0", "reduce", "project", "mix"]
    assert plan["grouped"].left_dense == "grouped"
    assert plan["grouped"].macs == plan["grouped"].macs_dense
    assert plan["mix"].left_dense is None
    assert plan["mix"].regions == len(plan["mix"].ranks) == 4
    assert all(len(ranks) in (0, 1, 2) for ranks in plan["mix"].ranks)


def test_a_tiny_layer_is_left_dense():
    network = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 64, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
    )
    found = compress(network, calibrate(network, smooth_images(16)), Setting(1, 1, 0.5))
    assert {layer.name: layer.left_dense for layer in found.plan} == {"0": None, "3": "tiny"}


def test_less_energy_costs_less_and_errs_more(calibrated):
    network, calibration = calibrated
    found = [compress(network, calibration, Setting(4, 1, energy)) for energy in (0.5, 0.8, 0.95, 0.999)]
    macs = [one.macs for one in found]
    assert macs == sorted(macs)
    assert macs[0] < macs[-1]
    errors = [distance(one.network, network, calibration.images) for one in found]
    assert errors == sorted(errors, reverse=True)


def test_compressing_leaves_the_dense_network_alone(calibrated):
    network, calibration = calibrated
    before, modules = weights_of(network), [type(module) for module in network.modules()]
    compress(network, calibration, Setting(4, 2, 0.7))
    assert same_weights(weights_of(network), before)
    assert [type(module) for module in network.modules()] == modules


def test_the_same_setting_gives_the_same_network(calibrated):
    network, calibration = calibrated
    one, other = (compress(network, calibration, Setting(4, 3, 0.8, seed=3)) for _ in range(2))
    assert one.plan == other.plan
    assert same_weights(weights_of(one.network), weights_of(other.network))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_residual_network_is_close_to_the_dense_one_on_other_images(residual, strategy):
    network, calibration = residual
    found = compress(network, calibration, Setting(4, 1, 0.99, strategy))
    assert found.macs < sum(layer.macs_dense for layer in found.plan)
    assert distance(found.network, network, smooth_images(64, seed=1)) < 0.15


def test_the_mean_response_is_kept_at_any_energy():
    network = seeded(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(2)))
    calibration = calibrate(network, smooth_images(32))
    found = compress(network, calibration, Setting(1, 2, 0.3)).network
    with torch.no_grad():
        expected = network(calibration.images).mean(dim=(0, 2))
        torch.testing.assert_close(found(calibration.images).mean(dim=(0, 2)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_a_calibration_image_or_two_are_enough_to_run(calibrated, count):
    network, _ = calibrated
    found = compress(network, calibrate(network, smooth_images(count)), Setting(4, 2, 0.9))
    assert torch.isfinite(found.network(smooth_images(3, seed=1))).all()


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
    found = compress(network, calibration, Setting(4, 3, 0.999))
    assert found.macs < sum(layer.macs_dense for layer in found.plan)
    assert distance(found.network, network, calibration.images) < 0.1


def test_a_layer_with_two_names_is_compressed_or_left_dense():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(3, 8, 3)
            self.other = self.one
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.other(x).mean(dim=(2, 3)))

    network = seeded(Aliased)
    calibration = calibrate(network, smooth_images(16))
    found = compress(network, calibration, Setting(2, 1, 0.99))
    assert found.macs == measure_cost(found.network, SIDE).macs


def test_a_compressed_network_trains(calibrated):
    network, calibration = calibrated
    found = compress(network, calibration, Setting(4, 2, 0.8)).network
    labels = torch.arange(len(calibration.images)) % 5
    optimiser = torch.optim.SGD(found.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = functional.cross_entropy(found(calibration.images), labels)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[1] < losses[0]
    assert all(parameter.grad is not None for parameter in found.parameters())


def test_blueprints_and_weights_rebuild_the_network(calibrated):
    network, calibration = calibrated
    found = compress(network, calibration, Setting(4, 2, 0.8))
    again = seeded(type(network) if isinstance(network, Residual) else lambda: DigitsCNN(5, SIDE), seed=7)
    rebuild(again, found.blueprints)
    again.load_state_dict(found.network.state_dict())
    images = smooth_images(5, seed=2)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), found.network(images))


def test_a_plan_comes_back_from_json_as_it_was(residual):
    plan = compress(*residual, Setting(4, 2, 0.8)).plan
    assert tuple(LayerPlan.from_stored(json.loads(json.dumps(layer.stored()))) for layer in plan) == plan


def test_a_plan_tells_ranks_or_the_reason(residual):
    plan = {layer.name: layer for layer in compress(*residual, Setting(2, 2, 0.8)).plan}
    assert plan["grouped"].summary == "left dense: grouped"
    ranks = [str(sum(ranks)) if ranks else "dense" for ranks in plan["mix"].ranks]
    assert plan["mix"].summary == f"total rank per region: {', '.join(ranks)}"


@pytest.mark.parametrize(
    "values",
    [(0, 1, 0.9), (1, 0, 0.9), (1, 1, 0.0), (1, 1, 1.5), (1, 1, 0.9, "rings")],
    ids=["regions", "clusters", "no energy", "too much energy", "strategy"],
)
def test_a_setting_out_of_range_is_an_error(values):
    with pytest.raises(CompressionError):
        Setting(*values)


def test_regions_have_filters_of_their_own():
    # The left half varies along one axis of the channels, the right half along another.
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 8, 1)
    images = torch.randn(64, 2, 8, 8)
    images[:, 0, :, 4:] = 0
    images[:, 1, :, :4] = 0
    (record,) = calibrate(nn.Sequential(layer), images).records
    with torch.no_grad():
        halves, plan, _ = compress_layer(layer, images, record, Setting(2, 1, 0.999999))
        assert plan.ranks == ((1,), (1,))
        torch.testing.assert_close(halves(images), layer(images), rtol=1e-3, atol=1e-3)
