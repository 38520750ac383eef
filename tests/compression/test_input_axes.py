import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.input_axes import input_axes, input_covariance, input_metric
from hscc_search.compression.setting import Setting
from hscc_search.evaluation.counters import measure_cost


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(size, seed):
    root = normal(size, size + 2, seed=seed)
    return root @ root.T


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.floats(0, 1), st.integers(0, 99))
def test_the_metric_is_the_variance_that_correlated_errors_make(outputs, inputs, kernel, correlation, seed):
    weight, effects = normal(outputs, inputs, kernel, kernel, seed=seed), normal(outputs, seed=seed + 1).abs()
    direction = normal(inputs, seed=seed + 2)
    variance = float(direction @ input_metric(weight, effects, correlation) @ direction)
    taps = weight.flatten(2)
    expected = 0.0
    for output in range(outputs):
        answers = np.array([float(direction @ taps[output, :, tap]) for tap in range(kernel**2)])
        correlations = np.full((kernel**2, kernel**2), correlation)
        np.fill_diagonal(correlations, 1.0)
        expected += float(effects[output]) ** 2 * answers @ correlations @ answers
    assert variance == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(0, 99))
def test_all_axes_undo_each_other(size, seed):
    encode, decode = input_axes(positive(size, seed), positive(size, seed + 1), size)
    torch.testing.assert_close(decode @ encode, torch.eye(size, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(1, 6), st.integers(0, 99))
def test_the_axes_lose_the_smallest_eigenvalues_and_no_other_choice_loses_less(size, rank, seed):
    rank = min(rank, size - 1)
    metric, covariance = positive(size, seed), positive(size, seed + 1)

    def loss(encode, decode):
        error = torch.eye(size, dtype=torch.float64) - decode @ encode
        return float(torch.trace(metric @ error @ covariance @ error.T))

    spectrum = np.sort(torch.linalg.eigvals(metric @ covariance).real.numpy())
    least = loss(*input_axes(metric, covariance, rank))
    assert least == pytest.approx(spectrum[: size - rank].sum(), rel=1e-6, abs=1e-9)
    random_axes = torch.linalg.qr(normal(size, rank, seed=seed + 2))[0]
    # Bring the channels back from random axes by least squares, the best way for given axes.
    decode = covariance @ random_axes @ torch.linalg.inv(random_axes.T @ covariance @ random_axes)
    assert least <= loss(random_axes.T, decode) * (1 + 1e-9)


def test_a_constant_channel_does_no_harm():
    x = torch.randn(8, 4, 9, 9)
    x[:, 2] = 3.0
    covariance = input_covariance(x)
    assert float(covariance[2].abs().max()) < 1e-6
    encode, decode = input_axes(positive(4, 0), covariance, 3)
    assert torch.isfinite(encode).all()
    assert torch.isfinite(decode).all()


def narrow_network():
    """A network with a convolution of many taps whose 16 input channels are mixtures of 3."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 3, 1),
        nn.Conv2d(3, 16, 1),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


@pytest.mark.parametrize("regions", [1, 4])
def test_inputs_that_are_mixtures_of_a_few_channels_are_brought_to_about_as_many(regions):
    network = narrow_network()
    images = torch.randn(48, 3, 12, 12)
    calibration = calibrate(network, images)
    compressed = compress(calibration, Setting(regions, 1, budget=3))
    (plan,) = [layer for layer in compressed.plan if layer.name == "2"]
    assert all(rank <= 4 for rank in plan.input_ranks)
    assert f"of {plan.input_ranks[0]} inputs" in plan.summary
    cost = measure_cost(compressed.network, 12)
    assert cost.macs == cost.macs_torch == compressed.macs
    with torch.no_grad():
        error = (compressed.network(images) - network(images)).norm() / network(images).norm()
    assert error < 0.1


def test_filters_of_one_tap_keep_all_their_inputs():
    network = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Flatten(), nn.Linear(32 * 64, 4))
    compressed = compress(calibrate(network, torch.randn(32, 3, 8, 8)), Setting(budget=2))
    assert {rank for layer in compressed.plan for rank in layer.input_ranks} <= {None}
