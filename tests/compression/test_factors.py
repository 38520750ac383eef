import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hscc_search.compression import factors
from hscc_search.compression.factors import factorise, fit_predictor, principal_axes, refit, refit_clipped
from hscc_search.compression.ranks.energy import rank_for_energy

seeds = st.integers(0, 2**32 - 1)
energies = st.floats(0.05, 1)
channel_counts = st.integers(2, 10)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def responses(seed, count, channels):
    """Correlated channels of unequal variance and mean, and the same with noise and errors added."""
    dense = normal(seed, count, channels) @ normal(seed + 1, channels, channels) + 3 * normal(seed + 2, channels)
    delivered = dense @ (torch.eye(channels) + 0.2 * normal(seed + 3, channels, channels))
    return dense, delivered + 0.3 * normal(seed + 4, count, channels) - 1


def approximated(dense, fitted, delivered):
    centred = delivered - delivered.mean(dim=0)
    return dense.mean(dim=0) + centred @ fitted.basis.T @ fitted.recombination.T


def matrix(predictor):
    return predictor.apply(torch.eye(len(predictor.axes), dtype=torch.float64))


def least_squares(inputs, outputs):
    """X that minimises the distance of ``inputs @ X.T`` from ``outputs``, both centred."""
    inputs, outputs = inputs - inputs.mean(dim=0), outputs - outputs.mean(dim=0)
    return torch.from_numpy(np.linalg.lstsq(inputs.numpy(), outputs.numpy(), rcond=None)[0].T)


def covariance(samples):
    centred = samples - samples.mean(dim=0)
    return centred.T @ centred / len(samples)


def rank_for(dense, energy):
    return rank_for_energy(torch.linalg.eigvalsh(covariance(dense)).flip(0), energy)


@contextmanager
def without_ridge():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors, "ridge", lambda values, samples: 1e-14 * values.mean())
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(count=st.integers(2, 30), channels=channel_counts, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_an_intact_input_is_predicted_by_exactly_the_identity(dtype, count, channels, seed):
    dense = responses(seed, count, channels)[0].to(dtype)
    weight = normal(seed, channels, 7)
    assert torch.equal(fit_predictor(dense, dense.clone()).apply(weight), weight)


@given(channels=channel_counts, spare=st.integers(2, 20), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_the_computations_for_few_and_for_many_samples_agree(channels, spare, seed):
    count = channels + spare
    dense, delivered = responses(seed, count, channels)
    # Silent channels change nothing, but make the samples fewer than the channels.
    silent = torch.zeros(count, spare + 3, dtype=torch.float64)
    many = fit_predictor(dense, delivered)
    few = fit_predictor(torch.cat([dense, silent], dim=1), torch.cat([delivered, silent], dim=1))
    assert few.axes.shape[1] == channels
    torch.testing.assert_close(few.variances, many.variances, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(matrix(few)[:channels, :channels], matrix(many), rtol=1e-6, atol=1e-6)
    rank = max(1, channels // 2)
    expected = approximated(dense, factorise(many, rank), delivered)
    few_factors = factorise(few, rank)
    padded = approximated(torch.cat([dense, silent], dim=1), few_factors, torch.cat([delivered, silent], dim=1))
    torch.testing.assert_close(padded[:, :channels], expected, rtol=1e-5, atol=1e-5)
    assert padded[:, channels:].abs().max() < 1e-6


@given(channels=channel_counts, seed=seeds)
@settings(max_examples=40, deadline=None)
def test_without_ridge_the_predictor_is_least_squares(channels, seed):
    dense, delivered = responses(seed, 80, channels)
    with without_ridge():
        predicted = matrix(fit_predictor(dense, delivered))
    torch.testing.assert_close(predicted, least_squares(delivered, dense), rtol=1e-6, atol=1e-6)


@given(count=st.integers(3, 200) | st.integers(5000, 20_000), channels=channel_counts, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_the_predictor_is_ridge_regression_towards_the_identity(count, channels, seed):
    dense, delivered = responses(seed, count, channels)
    predicted = matrix(fit_predictor(dense, delivered))
    T = covariance(delivered)
    both = covariance(torch.cat([dense, delivered], dim=1))
    S = both[:channels, channels:]
    I = torch.eye(channels, dtype=torch.float64)  # noqa: E741
    # The mean of the r eigenvalues times r / n is the trace over n, unless the smallest ridge is larger.
    ridge = T.trace() * max(1 / count, factors.RIDGE / min(channels, count - 1))
    expected = I + (S - T) @ torch.linalg.inv(T + ridge * I)
    torch.testing.assert_close(predicted, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [4, 40, 100, 400])
def test_noise_is_not_overfitted(channels):
    """Noise that is independent of the response correlates with it in few samples; other samples would suffer."""
    count = 100
    dense = normal(0, 20 * count, channels) * torch.linspace(2, 0.1, channels, dtype=torch.float64)
    delivered = dense + 0.1 * normal(1, 20 * count, channels)

    def error_on_others():
        predictor = fit_predictor(dense[:count], delivered[:count])
        predicted = dense[:count].mean(dim=0) + (delivered - delivered[:count].mean(dim=0)) @ matrix(predictor).T
        return (predicted - dense)[count:].square().mean()

    untouched = (delivered - dense)[count:].square().mean()
    assert error_on_others() < 1.3 * untouched
    if channels == count:  # then samples just allow an exact fit, which is the worst for others
        with without_ridge():
            assert error_on_others() > 2 * untouched


@given(count=st.integers(2, 40), channels=channel_counts, seed=seeds)
@settings(max_examples=80, deadline=None)
def test_full_rank_reproduces_the_response(count, channels, seed):
    dense, _ = responses(seed, count, channels)
    fitted = factorise(fit_predictor(dense, dense), channels)
    torch.testing.assert_close(approximated(dense, fitted, dense), dense, rtol=1e-5, atol=1e-5)


@given(channels=channel_counts, data=st.data(), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_without_ridge_the_recombination_is_least_squares(channels, data, seed):
    dense, delivered = responses(seed, 80, channels)
    with without_ridge():
        fitted = factorise(fit_predictor(dense, delivered), data.draw(st.integers(1, channels)))
    expected = least_squares(delivered @ fitted.basis.T, dense)
    torch.testing.assert_close(fitted.recombination, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [3, 40], ids=["few samples", "many samples"])
def test_filters_beyond_the_axes_of_the_responses_are_harmless(count):
    dense = normal(3, count, 8)
    dense[:, 4:] = 1.0
    fitted = factorise(fit_predictor(dense, dense), 6)
    assert fitted.basis.shape == (6, 8)
    assert fitted.recombination.isfinite().all()
    torch.testing.assert_close(approximated(dense, fitted, dense), dense)


@given(count=st.integers(1, 12), channels=st.integers(1, 12), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_principal_axes_are_those_of_the_rows(count, channels, seed):
    rows = normal(seed, channels, count)
    axes, values = principal_axes(rows)
    expected = torch.linalg.eigvalsh(rows @ rows.T).flip(0)[: len(values)]
    torch.testing.assert_close(values, expected.clamp(min=0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close((axes * values) @ axes.T, rows @ rows.T, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(axes.T @ axes, torch.eye(len(values), dtype=torch.float64))


@given(count=st.integers(2, 60), channels=channel_counts, energy=energies, seed=seeds)
@settings(max_examples=80, deadline=None)
def test_the_error_of_one_cluster_is_the_dropped_variance(count, channels, energy, seed):
    dense, _ = responses(seed, count, channels)
    rank = rank_for(dense, energy)
    fitted = factorise(fit_predictor(dense, dense), rank)
    error = (approximated(dense, fitted, dense) - dense).square().sum() / count
    values = torch.linalg.eigvalsh(covariance(dense)).flip(0)
    dropped = values[rank:].clamp(min=0).sum()
    torch.testing.assert_close(error, dropped, rtol=1e-6, atol=1e-9 * float(values.sum()))


@given(channels=channel_counts, energy=energies, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_without_ridge_the_error_on_a_damaged_input_is_the_optimum_of_that_rank(channels, energy, seed):
    dense, delivered = responses(seed, 80, channels)
    rank = rank_for(dense, energy)
    with without_ridge():
        fitted = factorise(fit_predictor(dense, delivered), rank)
    error = (approximated(dense, fitted, delivered) - dense).square().sum() / len(dense)
    # Reduced-rank regression: the optimum keeps the leading axes of the predicted response.
    M = least_squares(delivered, dense)
    predicted = torch.linalg.eigvalsh(M @ covariance(delivered) @ M.T).flip(0)
    optimum = covariance(dense).trace() - predicted[:rank].sum()
    torch.testing.assert_close(error, optimum, rtol=1e-5, atol=1e-7)


@given(channels=channel_counts, damaged=st.booleans(), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_the_error_does_not_rise_with_the_rank(channels, damaged, seed):
    dense, delivered = responses(seed, 2000, channels)
    delivered = delivered if damaged else dense
    predictor = fit_predictor(dense, delivered)
    errors = []
    for rank in range(1, channels + 1):
        fitted = factorise(predictor, rank)
        errors.append((approximated(dense, fitted, delivered) - dense).square().mean())
    # The ridge alone may cost a part in a thousand.
    slack = 1e-3 * dense.var() if damaged else 1e-9
    assert all(later <= earlier + slack for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("count", [1, 2, 5, 40], ids=lambda count: f"{count} samples")
@pytest.mark.parametrize("rank", [1, 3])
def test_a_constant_response_is_exact_at_any_rank(count, rank):
    channels = 6
    dense = torch.arange(channels, dtype=torch.float64).expand(count, channels) - 2.5
    delivered = dense + 1
    fitted = factorise(fit_predictor(dense, delivered), rank)
    assert len(fitted.basis) == rank
    assert torch.equal(approximated(dense, fitted, delivered), dense)


@pytest.mark.parametrize("count", [4, 40], ids=["few samples", "many samples"])
def test_a_constant_input_is_answered_by_the_mean(count):
    dense = normal(1, count, 6)
    delivered = torch.ones(count, 6, dtype=torch.float64)
    fitted = factorise(fit_predictor(dense, delivered), 3)
    expected = dense.mean(dim=0).expand(count, 6)
    torch.testing.assert_close(approximated(dense, fitted, delivered), expected)


# Recombinations


@given(channels=channel_counts, rank=st.integers(1, 8), count=st.integers(3, 300), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_refitting_is_ridge_regression_towards_the_given_recombination(channels, rank, count, seed):
    dense, _ = responses(seed, count, channels)
    coordinates, start = normal(seed + 5, count, rank) + 1, normal(seed + 6, channels, rank)
    fitted, offset = refit(dense, coordinates, start)
    both = covariance(torch.cat([dense, coordinates], dim=1))
    cross, within = both[:channels, channels:], both[channels:, channels:]
    ridge = max(factors.RIDGE, rank / count) * within.trace() / rank * torch.eye(rank, dtype=torch.float64)
    expected = (cross + start @ ridge) @ torch.linalg.inv(within + ridge)
    torch.testing.assert_close(fitted, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(coordinates.mean(dim=0) @ fitted.T + offset, dense.mean(dim=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 5])
def test_constant_coordinates_leave_a_recombination_unchanged(dtype, count):
    dense, start = normal(0, count, 4).to(dtype), normal(1, 4, 2).to(dtype)
    coordinates = torch.full((count, 2), 3.0, dtype=dtype)
    fitted, offset = refit(dense, coordinates, start)
    assert torch.equal(fitted, start)
    low, high = torch.full((4,), -9.0, dtype=dtype), torch.full((4,), 9.0, dtype=dtype)
    refined, offset = refit_clipped(dense, coordinates, fitted, offset, low, high)
    assert torch.equal(refined, start)
    answers = coordinates @ refined.T + offset
    torch.testing.assert_close(answers, dense.mean(dim=0).expand(count, 4))


# Behind a clipping activation


def matching_loss(dense, predicted, low, high):
    """The convex function of ``predicted`` whose gradient is clip(predicted) - clip(dense), as a mean over samples."""
    within = predicted.clamp(low, high)
    integral = within.square() / 2 + within * (predicted - within)
    return float((integral - dense.clamp(low, high) * predicted).sum() / len(predicted))


@given(
    seed=seeds,
    count=st.integers(2, 60),
    channels=st.integers(1, 6),
    rank=st.integers(1, 5),
    low=st.floats(-2, 0),
    high=st.sampled_from([0.5, 2.0, float("inf")]),
)
@settings(max_examples=80, deadline=None)
def test_refining_never_raises_the_matching_loss(seed, count, channels, rank, low, high):
    dense, coordinates = 2 * normal(seed, count, channels), normal(seed + 1, count, rank) + 1
    before = normal(seed + 2, channels, rank), normal(seed + 3, channels)
    low, high = low * torch.ones(channels).double(), high * torch.ones(channels).double()
    recombination, offset = refit_clipped(dense, coordinates, *before, low, high)
    start = matching_loss(dense, coordinates @ before[0].T + before[1], low, high)
    assert matching_loss(dense, coordinates @ recombination.T + offset, low, high) <= start + 1e-9 * abs(start)


@pytest.mark.slow
@given(seed=seeds, channels=st.integers(1, 4), rank=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_refining_recovers_the_factors_behind_the_values_that_are_let_through(seed, channels, rank):
    """Responses below 0 are damaged: that misleads least squares, and does not matter behind a ReLU."""
    coordinates = normal(seed, 400, rank)
    true, bias = normal(seed + 1, channels, rank), 0.5 * normal(seed + 2, channels)
    made = coordinates @ true.T + bias
    dense = torch.where(made < 0, made - normal(seed + 3, *made.shape).abs(), made)
    fitted = least_squares(coordinates, dense), dense.mean(dim=0)
    low, high = torch.zeros(channels).double(), torch.full((channels,), float("inf")).double()
    # A channel that is rarely above 0 is recovered too, but after many more steps.
    assume((made > 0).double().mean(dim=0).min() > 0.25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factors, "SAMPLES_PER_FILTER", len(dense))  # each step takes all samples
        for _ in range(300):
            fitted = refit_clipped(dense, coordinates, *fitted, low, high)
    torch.testing.assert_close((coordinates @ fitted[0].T + fitted[1]).relu(), made.relu(), atol=1e-3, rtol=1e-3)


def test_refining_leaves_an_exact_recombination_unchanged():
    coordinates, true, bias = normal(0, 50, 3), normal(1, 6, 3), normal(2, 6)
    low, high = torch.zeros(6).double(), torch.full((6,), float("inf")).double()
    refined = refit_clipped(coordinates @ true.T + bias, coordinates, true, bias, low, high)
    torch.testing.assert_close(refined[0], true)
    torch.testing.assert_close(refined[1], bias)
