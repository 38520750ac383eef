"""Conformance of all peers: each meets a budget, and leaves alone what it must not touch."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from geometry import smooth_images
from peers import IMAGE_SIZE, OnMaps, Residual, calibrated
from torch import nn

from hscc_search.compression.baselines import METHODS
from hscc_search.dense.networks import DigitsCNN, build_network
from hscc_search.errors import CompressionError
from hscc_search.evaluation.counters import measure_cost

FACTORED = [name for name in METHODS if name != "pruning"]


@pytest.fixture(scope="module")
def digits_cnn():
    return calibrated(lambda: DigitsCNN(5, IMAGE_SIZE))


@pytest.fixture(scope="module")
def residual():
    return calibrated(Residual)


@pytest.fixture(scope="module")
def resnet18():
    return calibrated(lambda: build_network("networks:small_resnet18", 10, 64), image_size=64, images=8)


def check_budget(method, dense, budget, image_size=IMAGE_SIZE, closely=0.97):
    compressed = METHODS[method](dense.calibration, budget)
    cost = measure_cost(compressed, image_size)
    assert cost.macs == cost.macs_torch
    assert cost.macs <= dense.macs / budget
    assert cost.macs > (0.9 if method == "pruning" else closely) * dense.macs / budget
    assert not any(module.training for module in compressed.modules())
    with torch.no_grad():
        x = smooth_images(3, seed=1, side=image_size)
        assert compressed(x).shape == dense.network(x).shape
        assert compressed(x).isfinite().all()
    return compressed


@pytest.mark.parametrize("budget", [2, 4])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["digits_cnn", "residual"])
def test_the_budget_is_met_closely(name, method, budget, request):
    dense = request.getfixturevalue(name)
    networks = (dense.network, dense.calibration.network)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    flags = [[parameter.requires_grad for parameter in network.parameters()] for network in networks]
    random_state = torch.get_rng_state()
    compressed = check_budget(method, dense, budget)
    assert torch.equal(torch.get_rng_state(), random_state)
    for network, values, trainable in zip(networks, before, flags, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in network.state_dict().items())
        assert [parameter.requires_grad for parameter in network.parameters()] == trainable
        assert all(parameter.grad is None for parameter in (*network.parameters(), *compressed.parameters()))
        storages = {parameter.data_ptr() for parameter in network.parameters()}
        assert not any(parameter.data_ptr() in storages for parameter in compressed.parameters())
    assert all(parameter.requires_grad for parameter in compressed.parameters())


@pytest.mark.parametrize(("method", "budget"), [*((method, 4) for method in FACTORED), ("pruning", 2)])
def test_the_budget_is_met_on_resnet18(method, budget, resnet18):
    check_budget(method, resnet18, budget, image_size=64)


@pytest.mark.parametrize("method", FACTORED)
def test_fully_connected_layers_on_maps_are_compressed(method):
    check_budget(method, calibrated(OnMaps), 2, closely=0.9)  # one rank is much of so small a network


@pytest.mark.parametrize("method", FACTORED)
def test_grouped_and_depthwise_layers_stay_dense(method, residual):
    compressed = METHODS[method](residual.calibration, 3)
    for name in ("depthwise", "grouped"):
        layer = compressed.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        assert torch.equal(layer.weight, residual.network.get_submodule(name).weight)


@pytest.mark.parametrize("method", FACTORED)
def test_a_tiny_last_layer_stays_dense(method, digits_cnn):
    last = METHODS[method](digits_cnn.calibration, 8)[13]
    assert torch.equal(last.weight, digits_cnn.network[13].weight)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_input_gives_the_same_network(method, residual):
    def once(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            return METHODS[method](residual.calibration, 3).state_dict()

    first, second = once(0), once(1)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["digits_cnn", "residual"])
def test_a_budget_out_of_reach_names_one_that_is_within(name, method, request):
    dense = request.getfixturevalue(name)
    with pytest.raises(CompressionError, match=f"^{method} reaches a budget of .* at most, not 1e\\+06$") as caught:
        METHODS[method](dense.calibration, 1e6)
    within = float(re.search(r"budget of ([\d.]+)", str(caught.value)).group(1))
    compressed = METHODS[method](dense.calibration, within)
    assert measure_cost(compressed, IMAGE_SIZE).macs <= dense.macs / within


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [0.99, 0.0, -2.0, math.nan, math.inf])
def test_a_budget_that_is_no_ratio_is_refused(method, budget, digits_cnn):
    with pytest.raises(CompressionError, match="1 or more"):
        METHODS[method](digits_cnn.calibration, budget)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_one_changes_no_answer(method, residual):
    x = smooth_images(4, seed=5)
    with torch.no_grad():
        answer = METHODS[method](residual.calibration, 1)(x)
        torch.testing.assert_close(answer, residual.network(x), rtol=1e-3, atol=1e-4)
