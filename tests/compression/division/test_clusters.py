import typing
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hscc_search.compression.division.clusters import (
    STRATEGIES,
    check_clusters,
    cluster_labels,
    coactivation,
    correlation,
    k_means,
)
from hscc_search.config import ClusterStrategy
from hscc_search.errors import CompressionError

seeds = st.integers(0, 2**32 - 1)


def normal(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def grouped(order, samples, seed, noise=0.1):
    """Responses of channels that vary with one common factor per group, and noise."""
    factors = normal(seed, samples, int(max(order)) + 1)
    return factors[:, order] + noise * normal(seed + 1, samples, len(order))


def assert_partition(labels, channels, clusters):
    assert labels.shape == (channels,)
    assert labels.dtype == np.int64
    present = np.unique(labels)
    assert present.tolist() == list(range(len(present)))
    assert len(present) <= max(1, min(clusters, channels))


def assert_same_groups(labels, expected):
    pairs = set(zip(np.asarray(labels).tolist(), np.asarray(expected).tolist(), strict=True))
    assert len(pairs) == len(set(labels.tolist())) == len(np.unique(expected))


def test_the_strategies_are_those_that_the_study_file_names():
    assert set(STRATEGIES) == set(typing.get_args(ClusterStrategy))


# Every strategy


@pytest.mark.parametrize("strategy", STRATEGIES)
class TestEveryStrategy:
    """The rules that every cluster strategy keeps; a new one in STRATEGIES is included."""

    @given(
        values=arrays(
            np.float32,
            array_shapes(min_dims=2, max_dims=2, max_side=16),
            elements=st.sampled_from([-1.0, 0.0, 1.0]) | st.floats(-(2.0**40), 2.0**40, width=32),
        ),
        clusters=st.integers(1, 20),
        seed=seeds,
    )
    @settings(max_examples=100, deadline=None)
    def test_each_channel_is_in_one_cluster_without_a_warning_and_in_the_same_again(
        self, strategy, values, clusters, seed
    ):
        responses = torch.from_numpy(values.copy())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            labels = cluster_labels(strategy, responses, clusters, seed)
        assert_partition(labels, values.shape[1], clusters)
        assert np.array_equal(labels, cluster_labels(strategy, responses, clusters, seed))
        assert np.array_equal(responses.numpy(), values)

    @pytest.mark.parametrize("channels", [1, 2, 5])
    def test_one_cluster_holds_all_channels(self, strategy, channels):
        assert not cluster_labels(strategy, normal(0, 30, channels), 1, 0).any()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_responses_of_any_precision_are_taken(self, strategy, dtype):
        assert_partition(cluster_labels(strategy, normal(0, 60, 9).to(dtype), 3, 0), 9, 3)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_responses_on_another_device_give_the_same_clusters(self, strategy):
        responses = grouped(np.repeat(np.arange(3), 5), 20_000, 0)
        expected = cluster_labels(strategy, responses, 3, 0)
        assert np.array_equal(cluster_labels(strategy, responses.cuda(), 3, 0), expected)

    def test_responses_that_need_a_gradient_are_taken(self, strategy):
        assert_partition(cluster_labels(strategy, normal(0, 60, 9).requires_grad_(), 3, 0), 9, 3)

    @pytest.mark.parametrize("clusters", [0, -1])
    def test_fewer_than_one_cluster_is_an_error(self, strategy, clusters):
        with pytest.raises(CompressionError, match=rf"clusters must be 1 or more, not {clusters}"):
            cluster_labels(strategy, normal(0, 4, 4), clusters, 0)
        with pytest.raises(CompressionError, match=str(clusters)):
            check_clusters(strategy, clusters)


@pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if strategy != "none"])
@given(channels=st.integers(1, 30), clusters=st.integers(1, 12), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_live_channels_get_as_many_clusters_as_asked_for_or_one_each(strategy, channels, clusters, seed):
    labels = cluster_labels(strategy, normal(seed, 50, channels), clusters, seed)
    assert len(np.unique(labels)) == min(clusters, channels)


# Controls


@given(channels=st.integers(1, 60), clusters=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_contiguous_clusters_are_equal_runs_in_order(channels, clusters):
    labels = cluster_labels("contiguous", torch.zeros(2, channels), clusters, 0)
    assert (np.diff(labels) >= 0).all()
    shares = np.bincount(labels)
    assert shares.max() - shares.min() <= 1


@given(channels=st.integers(1, 60), clusters=st.integers(1, 12), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_random_clusters_are_equal_shares(channels, clusters, seed):
    shares = np.bincount(cluster_labels("random", torch.zeros(2, channels), clusters, seed))
    assert shares.max() - shares.min() <= 1


def test_random_clusters_depend_on_the_seed_alone():
    drawn = [cluster_labels("random", normal(seed, 20, 32), 4, seed) for seed in range(5)]
    assert len({labels.tobytes() for labels in drawn}) == 5
    assert np.array_equal(cluster_labels("random", normal(9, 20, 32), 4, 0), drawn[0])


@pytest.mark.parametrize("clusters", [1, 3, 100])
def test_none_is_one_cluster_whatever_is_asked_for(clusters):
    assert cluster_labels("none", normal(0, 20, 7), clusters, 0).tolist() == [0] * 7


# Co-activation


@given(groups=st.integers(2, 5), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_planted_groups_that_activate_together_are_found(groups, seed):
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(groups), 5))
    assert_same_groups(coactivation(grouped(order, 300, seed), groups, 0), order)


def test_channels_are_grouped_by_what_passes_the_activation():
    # Below zero neighbouring channels vary together, above zero every second one.
    below, above = normal(0, 400, 2).abs(), normal(1, 400, 2).abs()
    positive = normal(2, 400, 1) > 0
    responses = torch.where(positive, above[:, [0, 1, 0, 1]], -10 * below[:, [0, 0, 1, 1]])
    labels = coactivation(responses, 2, 0)
    assert labels[0] == labels[2] != labels[1] == labels[3]


@pytest.mark.parametrize(
    "responses",
    [
        torch.full((20, 6), 3.0),
        torch.full((20, 6), -1.0),
        torch.zeros(20, 6),
        torch.ones(1, 6),
        torch.full((20, 6), 1e12),
        torch.full((9000, 6), 0.1),
    ],
    ids=["constant", "always off", "zero", "one sample", "huge constant", "many samples"],
)
def test_responses_without_variance_fall_into_one_cluster(responses):
    assert coactivation(responses, 3, 0).tolist() == [0] * 6


def test_dead_channels_share_a_cluster_and_leave_the_others_apart():
    factors = normal(3, 200, 2)
    responses = torch.cat([factors[:, [0, 0, 1, 1]], torch.full((200, 2), -5.0)], dim=1)
    assert_same_groups(coactivation(responses, 3, 0), [0, 0, 1, 1, 2, 2])


@given(groups=st.integers(2, 4), seed=seeds)
@settings(max_examples=10, deadline=None)
def test_groups_are_found_in_more_samples_than_are_drawn(groups, seed):
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(groups), 6))
    # With this much noise the samples of a few images would not tell the groups apart.
    responses = grouped(order, 50_000, seed, noise=1.5)
    labels = coactivation(responses, groups, 0)
    assert_same_groups(labels, order)
    assert_same_groups(labels, k_means(correlation(torch.relu(responses)).numpy(), groups, 0))


@pytest.mark.parametrize("images", [32, 64, 512])
def test_samples_are_drawn_from_all_images(images):
    # Sample numbers are position * images + image. Channel c responds to images of number c modulo 4 alone: every
    # fourth sample would leave three groups without a response.
    positions = 32_768 // images
    image = torch.arange(images).repeat(positions)
    order = torch.arange(12) % 4
    responses = (image[:, None] % 4 == order) * normal(0, len(image), 4).abs()[:, order]
    assert_same_groups(coactivation(responses, 4, 0), order.numpy())


# Correlation


@given(samples=st.integers(3, 40), channels=st.integers(2, 8), seed=seeds, shift=st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_correlation_is_numpys(samples, channels, seed, shift):
    values = normal(seed, samples, channels, dtype=torch.float64) + shift
    expected = np.corrcoef(values.numpy(), rowvar=False)
    np.testing.assert_allclose(correlation(values).numpy(), expected, atol=1e-9)


@given(constant=st.floats(-1e6, 1e6, width=32), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_a_constant_column_correlates_with_none_and_disturbs_none(constant, seed):
    values = normal(seed, 50, 4)
    expected = np.corrcoef(values[:, :3].double().numpy(), rowvar=False)
    values[:, 3] = constant
    correlations = correlation(values).numpy()
    assert (correlations[3] == 0).all()
    assert (correlations[:, 3] == 0).all()
    np.testing.assert_allclose(correlations[:3, :3], expected, atol=1e-5)


# k-means


def test_points_that_coincide_are_one_cluster():
    points = np.repeat([[0.0, 0.0], [1.0, 1.0]], 4, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_groups(k_means(points, 5, 0), np.repeat([0, 1], 4))


def test_more_clusters_than_points_are_one_each():
    assert sorted(k_means(np.eye(3), 7, 0).tolist()) == [0, 1, 2]


# Errors


def test_an_unknown_strategy_is_named_with_those_that_exist():
    with pytest.raises(CompressionError, match=r"'spectral'.*coactivation, contiguous, random, none"):
        cluster_labels("spectral", normal(0, 4, 4), 2, 0)
