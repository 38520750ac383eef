import copy

import pytest
import torch
from geometry import OnMaps, Residual, seeded, smooth_images
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.balancing import balance, best_change, even_rotation
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.layers import RegionConv2d
from hscc_search.compression.setting import Setting

SETTINGS = {
    "one region": {"budget": 2.0},
    "grid": {"budget": 1.5, "regions": 4, "region_gain": 0.0},
    "regions in pieces": {"budget": 1.5, "regions": 3, "region_gain": 0.0, "region_strategy": "kmeans"},
    "clusters": {"energy": 0.8, "regions": 2, "clusters": 2},
}


@pytest.fixture(scope="module", params=[Residual, OnMaps])
def calibration(request):
    return calibrate(seeded(request.param), smooth_images(64))


def spreads(network, images):
    """How many times the largest channel between two factors is larger than the median one, by factor."""
    squares, hooks = {}, []

    def watch(module, _, output):
        values = output.transpose(0, -1 if isinstance(module, nn.Linear) else 1).flatten(1)
        squares[module] = squares.get(module, 0) + values.square().sum(dim=1)  # of all pieces of a region

    for module in network.modules():
        if isinstance(module, RegionConv2d):
            firsts = [module.encoder] if module.encoder else []
            firsts += [stages[0] for stages in module.regions if isinstance(stages, nn.Sequential)]
        elif isinstance(module, nn.Sequential) and isinstance(module, nn.Linear):
            firsts = [module[0]]
        else:
            continue
        hooks += [first.register_forward_hook(watch) for first in firsts]
    network(images)
    for hook in hooks:
        hook.remove()
    return [float((values.max() / values.median()).sqrt()) for values in squares.values()]


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_coordinates_are_alike_and_answers_are_the_same(calibration, name):
    network = compress(calibration, Setting(**SETTINGS[name])).network
    images, others = smooth_images(64), smooth_images(16, seed=1)
    balanced = copy.deepcopy(network)
    balance(balanced, images)
    wanted = network(others)
    torch.testing.assert_close(balanced(others), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)
    before, after = spreads(network, images), spreads(balanced, images)
    assert before
    assert max(before) > 1.5, "all channels were alike: the test shows nothing"
    assert max(after) < 1.3
    assert all(narrow <= wide for wide, narrow in zip(before, after, strict=True))


@torch.no_grad()
def test_channels_that_are_dead_and_layers_that_answer_nothing_stay_finite(calibration):
    network = compress(calibration, Setting(budget=1.5)).network
    for module in network.modules():
        if isinstance(module, RegionConv2d) and isinstance(module.regions[0], nn.Sequential):
            module.regions[0][0].weight[0] = 0
            break
    images = smooth_images(16)
    wanted = network(images)
    balance(network, images)
    torch.testing.assert_close(network(images), wanted, atol=1e-4, rtol=1e-4)
    for others in (torch.zeros_like(images), torch.full_like(images, torch.inf)):
        balance(network, others)
        assert torch.isfinite(network(images)).all()


def moments_and_read(rank, seed, decay):
    """Second moments of coordinates whose sizes fall by a factor, and those of the columns that read them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = decay ** torch.arange(rank, dtype=torch.float64)
    axes, columns = (torch.randn(rank, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    axes = torch.linalg.qr(axes)[0] * sizes
    return axes @ axes.T, columns @ columns.T + 0.1 * torch.eye(rank)


# From 0.9 on no moment is so small that it counts as more than it is.
@given(st.integers(2, 24), st.integers(0, 2**31), st.floats(0.9, 1), st.integers(0, 2**31))
def test_no_other_change_costs_less(rank, seed, decay, other):
    moments, read = moments_and_read(rank, seed, decay)

    def costs(change):
        inverse = torch.linalg.inv(change)
        return inverse @ moments @ inverse.T, change.T @ read @ change

    change, inverse = best_change(moments, read)
    torch.testing.assert_close(change @ inverse, torch.eye(rank, dtype=torch.float64), atol=1e-8, rtol=0)
    coordinates, columns = costs(change)
    torch.testing.assert_close(coordinates, columns, rtol=1e-5, atol=1e-5 * float(columns.abs().max()))
    generator = torch.Generator().manual_seed(other)
    others = [torch.randn(rank, rank, generator=generator, dtype=torch.float64) for _ in range(3)]
    others += [change + 0.1 * float(change.abs().mean()) * each for each in others]
    others += [torch.eye(rank, dtype=torch.float64), moments.diagonal().sqrt().diag()]
    least = coordinates.trace() * columns.trace()
    for each in others:
        first, second = costs(each)
        assert first.trace() * second.trace() >= least * (1 - 1e-6)


@given(st.integers(1, 200))
def test_a_rotation_keeps_lengths_and_spreads_each_direction(size):
    rotation = even_rotation(size)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)
    assert float(rotation.square().max()) <= (1 if size & (size - 1) == 0 else 2) / size + 1e-12
    torch.testing.assert_close(rotation[:, 0].square(), torch.full((size,), 1 / size, dtype=torch.float64))
