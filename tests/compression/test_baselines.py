import copy
import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hscc_search.compression.baselines import METHODS
from hscc_search.compression.baselines.alds import GROUPS, group_ladder
from hscc_search.compression.baselines.global_svd import energy_ladder
from hscc_search.compression.baselines.ladder import Ladder, allocate, ladder
from hscc_search.compression.baselines.low_rank import leading_axes, low_rank_pair, spectrum, truncated_pair
from hscc_search.compression.baselines.response_pca import greedy_ranks, rebuild_layer
from hscc_search.compression.baselines.targets import Target
from hscc_search.compression.baselines.tucker import kernel_ladder, matrix_ladder, shares, tucker_triple
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.dense.networks import DigitsCNN, build_network
from hscc_search.errors import CompressionError
from hscc_search.evaluation.counters import measure_cost

SIDE = 16
FACTORED = [name for name in METHODS if name != "pruning"]


def smooth_images(count, side=SIDE, seed=0):
    """Images of few degrees of freedom, as photographs are, so that responses have leading axes."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=(side, side), mode="bicubic")


class Residual(nn.Module):
    """Batch norm, skip connection with projection, depthwise and grouped filters, strides, activation in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU(inplace=True))
        self.reduce = nn.Conv2d(48, 60, (5, 3), stride=2, padding=(2, 1), bias=False)
        self.norm = nn.BatchNorm2d(60)
        self.depthwise = nn.Conv2d(60, 60, 3, padding=1, groups=60)
        self.grouped = nn.Conv2d(60, 60, 3, padding=1, groups=4)
        self.project = nn.Conv2d(48, 60, 1, stride=2)
        self.mix = nn.Conv2d(60, 60, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(60, 30), nn.ReLU(inplace=True), nn.Linear(30, 5))

    def forward(self, x):
        x = self.stem(x)
        branch = self.depthwise(functional.relu(self.norm(self.reduce(x))))
        x = functional.relu(self.grouped(branch) + self.project(x))
        return self.head(functional.relu(x + self.mix(x)).mean(dim=(2, 3)))


class ChannelsLast(nn.Module):
    """Fully connected layers on maps, as ConvNeXt has them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 2, stride=2)
        self.widen, self.narrow = nn.Linear(20, 80), nn.Linear(80, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.narrow(functional.gelu(self.widen(x)))
        return self.head(x.mean(dim=(1, 2)))


def seeded(build_network, side=SIDE, images=32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network().train()
        with torch.no_grad():
            network(smooth_images(64, side, seed=99))  # batch norm meets its statistics
    network.eval()
    return SimpleNamespace(
        network=network,
        calibration=calibrate(network, smooth_images(images, side)),
        macs=measure_cost(network, side).macs,
    )


@pytest.fixture(scope="module")
def digits_cnn():
    return seeded(lambda: DigitsCNN(5, SIDE))


@pytest.fixture(scope="module")
def residual():
    return seeded(Residual)


@pytest.fixture(scope="module")
def resnet18():
    return seeded(lambda: build_network("resnet18", 10, 64), side=64, images=8)


def check_budget(method, dense, budget, side=SIDE, closely=0.97):
    compressed = METHODS[method](dense.network, dense.calibration, budget)
    cost = measure_cost(compressed, side)
    assert cost.macs == cost.macs_torch
    assert cost.macs <= dense.macs / budget
    assert cost.macs > (0.9 if method == "pruning" else closely) * dense.macs / budget
    assert not any(module.training for module in compressed.modules())
    with torch.no_grad():
        x = smooth_images(3, side, seed=1)
        assert compressed(x).shape == dense.network(x).shape
        assert compressed(x).isfinite().all()
    return compressed


@pytest.mark.parametrize("budget", [2, 4])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["digits_cnn", "residual"])
def test_the_budget_is_met_closely(name, method, budget, request):
    dense = request.getfixturevalue(name)
    network = dense.network
    before = copy.deepcopy(network.state_dict())
    flags = [parameter.requires_grad for parameter in network.parameters()]
    random_state = torch.get_rng_state()
    compressed = check_budget(method, dense, budget)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in (*network.parameters(), *compressed.parameters()))
    storages = {parameter.data_ptr() for parameter in network.parameters()}
    assert not any(parameter.data_ptr() in storages for parameter in compressed.parameters())
    assert all(parameter.requires_grad for parameter in compressed.parameters())


@pytest.mark.parametrize(("method", "budget"), [*((method, 4) for method in FACTORED), ("pruning", 2)])
def test_the_budget_is_met_on_resnet18(method, budget, resnet18):
    check_budget(method, resnet18, budget, side=64)


@pytest.mark.parametrize("method", FACTORED)
def test_fully_connected_layers_on_maps_are_compressed(method):
    check_budget(method, seeded(ChannelsLast), 2, closely=0.9)  # one rank is much of so small a network


@pytest.mark.parametrize("method", FACTORED)
def test_grouped_and_depthwise_layers_stay_dense(method, residual):
    compressed = METHODS[method](residual.network, residual.calibration, 3)
    for name in ("depthwise", "grouped"):
        layer = compressed.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        assert torch.equal(layer.weight, residual.network.get_submodule(name).weight)


@pytest.mark.parametrize("method", FACTORED)
def test_a_tiny_last_layer_stays_dense(method, digits_cnn):
    last = METHODS[method](digits_cnn.network, digits_cnn.calibration, 8)[13]
    assert torch.equal(last.weight, digits_cnn.network[13].weight)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_input_gives_the_same_network(method, residual):
    def once(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            return METHODS[method](residual.network, residual.calibration, 3).state_dict()

    first, second = once(0), once(1)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["digits_cnn", "residual"])
def test_a_budget_out_of_reach_names_one_that_is_within(name, method, request):
    dense = request.getfixturevalue(name)
    with pytest.raises(CompressionError, match=f"^{method} reaches a budget of .* at most, not 1e\\+06$") as caught:
        METHODS[method](dense.network, dense.calibration, 1e6)
    within = float(re.search(r"budget of ([\d.]+)", str(caught.value)).group(1))
    compressed = METHODS[method](dense.network, dense.calibration, within)
    assert measure_cost(compressed, SIDE).macs <= dense.macs / within


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [0.99, 0.0, -2.0, math.nan, math.inf])
def test_a_budget_that_is_no_ratio_is_refused(method, budget, digits_cnn):
    with pytest.raises(CompressionError, match="1 or more"):
        METHODS[method](digits_cnn.network, digits_cnn.calibration, budget)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_one_changes_no_answer(method, residual):
    x = smooth_images(4, seed=5)
    with torch.no_grad():
        found = METHODS[method](residual.network, residual.calibration, 1)(x)
        torch.testing.assert_close(found, residual.network(x), rtol=1e-3, atol=1e-4)


# The factors


def low_rank(rows, columns, rank, generator):
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)


def layer_with(weight, shape, bias=True, **options):
    """A layer of the given (Cout, D) weight; shape is (Cin, height, width) of a convolution, or () for Linear."""
    layer = (
        nn.Conv2d(shape[0], len(weight), shape[1:], bias=bias, **options)
        if shape
        else nn.Linear(weight.shape[1], len(weight), bias=bias)
    )
    with torch.no_grad():
        layer.weight.copy_(weight.view_as(layer.weight))
    return layer.requires_grad_(False)


def input_of(layer, generator):
    shape = (3, layer.in_channels, 9, 8) if isinstance(layer, nn.Conv2d) else (3, layer.in_features)
    return torch.randn(shape, generator=generator)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@given(
    groups=st.integers(1, 4),
    per_group=st.integers(1, 3),
    outputs=st.integers(1, 9),
    kernel=st.sampled_from([(), (1, 1), (3, 2)]),
    rank=st.integers(1, 4),
    bias=st.booleans(),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_layer_of_low_rank_is_reproduced(groups, per_group, outputs, kernel, rank, bias, stride, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    columns = per_group * math.prod(kernel)
    weight = torch.cat([low_rank(outputs, columns, rank, generator) for _ in range(groups)], dim=1)
    options = {"stride": stride, "padding": padding} if kernel else {}
    layer = layer_with(weight, (groups * per_group, *kernel) if kernel else (), bias, **options)
    pair = truncated_pair(layer, rank, groups)
    x = input_of(layer, generator)
    assert_same(pair(x), layer(x))
    if not kernel:
        assert_same(pair(x[:, None, None]), layer(x)[:, None, None])


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_truncated_layer_loses_the_smallest_singular_values(outputs, inputs, rank, seed):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    pair = truncated_pair(layer_with(weight, ()), rank)
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(spectrum(weight.double()), values**2, rtol=1e-9, atol=1e-9)
    error = (pair[1].weight @ pair[0].weight - weight).detach().square().sum()
    assert float(error) == pytest.approx((values[rank:] ** 2).sum(), abs=1e-4)


def test_nothing_but_zeros_has_axes_of_zeros_or_any():
    for shape in ((3, 5), (5, 3)):
        zeros = torch.zeros(shape, dtype=torch.float64)
        assert spectrum(zeros).tolist() == [0, 0, 0]
        assert leading_axes(zeros, 2).isfinite().all()
        assert truncated_pair(layer_with(zeros.float(), ()), 2)(torch.ones(1, shape[1])).isfinite().all()


@given(
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    data=st.data(),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    dilation=st.integers(1, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_kernel_of_low_multilinear_rank_is_reproduced(inputs, outputs, data, stride, padding, dilation, seed):
    inner_inputs, inner_outputs = data.draw(st.integers(1, inputs)), data.draw(st.integers(1, outputs))
    generator = torch.Generator().manual_seed(seed)
    core = torch.randn(inner_outputs, inner_inputs, 3, 3, generator=generator)
    after = torch.randn(outputs, inner_outputs, generator=generator)
    before = torch.randn(inputs, inner_inputs, generator=generator)
    weight = torch.einsum("oa,ib,abyx->oiyx", after, before, core)
    stride = 1 if padding == "same" else stride
    layer = layer_with(weight, (inputs, 3, 3), stride=stride, padding=padding, dilation=dilation)
    x = input_of(layer, generator)
    assert_same(tucker_triple(layer, inner_inputs, inner_outputs)(x), layer(x))


def target_of(layer, positions):
    return Target(SimpleNamespace(name="layer", macs=positions * layer.weight.numel()), layer)


def test_the_costs_of_tucker_triples_are_what_is_counted():
    layer = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    found = kernel_ladder(target_of(layer, 8 * 8), 16 * 16)
    for macs, form in zip(found.macs, found.forms, strict=True):
        if form:
            assert measure_cost(tucker_triple(layer, *form), 16).macs == macs


@given(st.lists(st.integers(1, 12), min_size=1, max_size=2))
def test_shares_are_of_all_sizes_rounded_up(sizes):
    found = list(shares(*sizes))
    assert {counts for _, counts in found} == {
        tuple(math.ceil(step * size / 27720) for size in sizes) for step in range(1, 27721, 21)
    }
    for share, counts in found:
        assert counts == tuple(math.ceil(share * size - 1e-9) for size in sizes)


# Sharing the budget

candidates = st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 1)), max_size=5)


def ladder_of(options, dense):
    return ladder([(macs, error, (index,)) for index, (macs, error) in enumerate(options)], dense)


@given(candidates, st.integers(1, 30))
def test_a_ladder_keeps_what_nothing_beats(options, dense):
    found = ladder_of(options, dense)
    every = [*options, (dense, 0.0)]
    expected = {
        (macs, error)
        for macs, error in every
        if not any(m <= macs and e <= error and (m, e) != (macs, error) for m, e in every)
    }
    assert list(zip(found.macs.tolist(), found.errors.tolist(), strict=True)) == sorted(expected)
    for error in (0.0, 0.3, *found.errors):
        assert found.macs[found.cheapest_within(error)] == min(macs for macs, e in every if e <= error)


@given(st.lists(st.tuples(candidates, st.integers(1, 30)), min_size=1, max_size=3), st.integers(0, 20), st.floats(1, 8))
@settings(max_examples=200)
def test_the_largest_error_is_the_smallest_possible(layers, fixed, budget):
    ladders: dict[str, Ladder] = {str(index): ladder_of(*layer) for index, layer in enumerate(layers)}
    dense = fixed + sum(each.dense for each in ladders.values())
    room = dense / budget - fixed
    options = [
        list(zip(each.macs.tolist(), each.errors.tolist(), each.forms, strict=True)) for each in ladders.values()
    ]
    possible = [choice for choice in itertools.product(*options) if sum(macs for macs, _, _ in choice) <= room]
    if not possible:
        with pytest.raises(CompressionError, match="at most"):
            allocate("method", dense, budget, ladders)
        return
    forms = allocate("method", dense, budget, ladders)
    chosen = [
        next(option for option in each if option[2] == forms.get(name, ()))
        for name, each in zip(ladders, options, strict=True)
    ]
    left = room - sum(macs for macs, _, _ in chosen)
    assert left >= 0
    best = min(max(error for _, error, _ in choice) for choice in possible)
    assert max(error for _, error, _ in chosen) == best
    for (macs, error, _), each in zip(chosen, options, strict=True):
        assert not any(other - macs <= left and less < error for other, less, _ in each)


def naive_greedy(energies, per_rank, dense, room):
    """The rule as it is written: the product of the sums itself, and the whole cost, each time anew."""
    ranks = [len(values) for values in energies]

    def cost(ranks):
        return sum(min(own, rank * macs) for rank, macs, own in zip(ranks, per_rank, dense, strict=True))

    def product(ranks):
        return math.prod(sum(values[:rank]) for values, rank in zip(energies, ranks, strict=True))

    def without(layer):
        return [rank - (index == layer) for index, rank in enumerate(ranks)]

    history = []
    while cost(ranks) > room:
        layer = min(
            (layer for layer in range(len(ranks)) if ranks[layer] > 1),
            key=lambda layer: (1 - product(without(layer)) / product(ranks)) / per_rank[layer],
        )
        ranks = without(layer)
        history.append(layer)
    for layer in reversed(history):
        more = [rank + (index == layer) for index, rank in enumerate(ranks)]
        if cost(more) <= room:
            ranks = more
    return ranks


@given(st.integers(1, 4), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_greedy_ranks_follow_their_definition(layers, share, seed):
    generator = np.random.default_rng(seed)
    energies = [np.sort(generator.random(generator.integers(1, 7)) + 0.01)[::-1] for _ in range(layers)]
    per_rank = generator.integers(1, 50, layers).tolist()
    dense = [
        int(macs * generator.uniform(0.6, 1.2) * len(each)) + 1 for macs, each in zip(per_rank, energies, strict=True)
    ]
    least = sum(map(min, dense, per_rank))
    room = int(least + share * (sum(dense) - least))
    assert greedy_ranks(energies, per_rank, dense, room) == naive_greedy(energies, per_rank, dense, room)


@given(st.integers(1, 8), st.integers(1, 12), st.sampled_from([(), (1, 1), (2, 1)]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_alds_looks_at_every_grouping_and_its_bound_holds(outputs, channels, kernel, seed):
    weight = torch.randn(outputs, channels * math.prod(kernel), generator=torch.Generator().manual_seed(seed))
    layer = layer_with(weight, (channels, *kernel) if kernel else ())
    target = target_of(layer, 7)
    found = group_ladder(target)
    norm = float(torch.linalg.matrix_norm(weight.double(), 2))
    every = [(target.macs, 0.0)]
    for groups in (groups for groups in GROUPS if channels % groups == 0):
        blocks = [np.linalg.svd(block, compute_uv=False) for block in np.split(weight.double().numpy(), groups, axis=1)]
        for rank in range(1, len(blocks[0]) + 1):
            dropped = max(values[rank] if rank < len(values) else 0 for values in blocks)
            every.append((7 * rank * (weight.shape[1] + groups * outputs), math.sqrt(groups) * dropped / norm))
    for error in (0, 0.1, 0.3, 0.6, 1.0):
        cheapest = min(macs for macs, bound in every if bound <= error + 1e-12)
        assert found.macs[found.cheapest_within(error)] == cheapest
    for bound, form in zip(found.errors, found.forms, strict=True):
        if form:
            pair = truncated_pair(layer, *form)
            x = torch.eye(weight.shape[1]).view(-1, *((channels, *kernel) if kernel else (weight.shape[1],)))
            residual = (pair(x) - layer(x)).detach().flatten(1).double()
            assert float(torch.linalg.matrix_norm(residual, 2)) <= (bound + 1e-5) * norm


def test_ladders_of_one_matrix_cost_what_their_pairs_cost():
    layer = nn.Conv2d(3, 8, 3, padding=1)
    target = target_of(layer, 16 * 16)
    for found in (energy_ladder(target), matrix_ladder(target)):
        assert found.forms[-1] == ()
        assert len(found.forms) > 3
        for macs, form in zip(found.macs, found.forms, strict=True):
            if form:
                assert measure_cost(truncated_pair(layer, *form), 16).macs == macs


def test_the_errors_of_global_svd_are_shares_of_energy():
    layer = nn.Linear(20, 10)
    values = torch.linalg.svdvals(layer.weight.detach().double()).square()
    found = energy_ladder(target_of(layer, 1))
    for error, form in zip(found.errors, found.forms, strict=True):
        rank = form[0] if form else 10
        assert error == pytest.approx(float(values[rank:].sum() / values.sum()))


# Rebuilding from delivered responses


@given(st.integers(2, 7), st.integers(1, 7), st.floats(0, 2), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_rebuilt_layer_is_the_best_linear_map_of_its_rank(outputs, rank, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = layer_with(torch.randn(outputs, 9, generator=generator), ())
    x = torch.randn(400, 9, generator=generator)
    delivered = layer(x)
    mixed = delivered + noise * torch.tanh(delivered @ torch.randn(outputs, outputs, generator=generator))
    dense = mixed + 0.3
    rank = min(rank, outputs)
    error = (rebuild_layer(layer, dense, delivered, rank)(x) - dense).detach().double().square().sum()
    y = (dense - dense.mean(dim=0)).double().numpy()
    span, _ = np.linalg.qr((delivered - delivered.mean(dim=0)).double().numpy())
    predicted = span @ (span.T @ y)
    least = ((y - predicted) ** 2).sum() + (np.linalg.svd(predicted, compute_uv=False)[rank:] ** 2).sum()
    total = (y**2).sum()
    assert least - 1e-5 * total <= float(error) <= least + 0.01 * total  # the ridge costs a little


def test_a_rebuilt_layer_of_low_rank_is_exact_where_nothing_was_lost():
    generator = torch.Generator().manual_seed(0)
    layer = layer_with(low_rank(8, 12, 3, generator), (3, 2, 2))
    x = input_of(layer, generator)
    rows = layer(x).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(rebuild_layer(layer, rows, rows, 3)(x), layer(x), rtol=1e-3, atol=1e-3)


def test_response_pca_beats_the_weights_on_images_that_it_knows(residual):
    def distance(method):
        x = smooth_images(64, seed=3)
        with torch.no_grad():
            expected = residual.network(x)
            return float((METHODS[method](residual.network, residual.calibration, 4)(x) - expected).norm())

    assert distance("response-pca") < 0.5 * distance("global-svd")


def test_response_pca_spends_what_few_images_cannot_use():
    dense = seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, 50)), images=6
    )
    compressed = METHODS["response-pca"](dense.network, dense.calibration, 1.05)
    assert isinstance(compressed[1], nn.Linear)
    assert isinstance(compressed[3], nn.Sequential)
    assert dense.macs / 1.06 < measure_cost(compressed, SIDE).macs <= dense.macs / 1.05


# Pruning


def test_channels_without_effect_go_first_and_each_layer_loses_the_same_share():
    network = seeded(lambda: DigitsCNN(5, SIDE)).network
    *hidden, _ = [layer for layer in network if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for layer in hidden:
            layer.weight[: len(layer.weight) // 2] = 0
            layer.bias[: len(layer.bias) // 2] = 0
    x = smooth_images(16)
    compressed = METHODS["pruning"](network, calibrate(network, x), 2)
    torch.testing.assert_close(compressed(x), network(x), rtol=1e-4, atol=1e-5)
    *fewer, last = [layer for layer in compressed if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(last.weight) == 5
    for layer, before in zip(fewer, hidden, strict=True):
        assert 0.5 <= len(layer.weight) / len(before.weight) < 0.8


def test_frozen_parameters_stay_frozen_and_the_last_layer_keeps_its_outputs():
    dense = seeded(Residual)
    dense.network.stem.requires_grad_(False)
    compressed = METHODS["pruning"](dense.network, dense.calibration, 8)
    assert {name for name, parameter in compressed.named_parameters() if not parameter.requires_grad} == {
        "stem.0.weight",
        "stem.1.weight",
        "stem.1.bias",
    }
    assert compressed.head[2].out_features == 5
    assert compressed.depthwise.groups == compressed.depthwise.in_channels < 60


def test_a_pair_computes_its_formula():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(6, 4)
    basis, recombination, bias = (torch.randn(size, generator=generator) for size in ((4, 3), (4, 4), (4,)))
    x = torch.randn(5, 6, generator=generator)
    inner = torch.cat([x[:, :3] @ basis[:2].T, x[:, 3:] @ basis[2:].T], dim=1)
    assert_same(low_rank_pair(layer, basis, recombination, bias, groups=2)(x), inner @ recombination.T + bias)
    assert low_rank_pair(layer, torch.randn(4, 6), recombination, None)[1].bias is None
