import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from hscc_search.compression.channels import coactivation, correlation

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
seeds = st.integers(0, 2**32 - 1)


def normal(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_partition(labels, channels, clusters):
    assert labels.shape == (channels,)
    assert labels.dtype == np.int64
    found = np.unique(labels)
    assert found.tolist() == list(range(len(found)))
    assert len(found) <= max(1, min(clusters, channels))


@given(samples=st.integers(1, 40), channels=st.integers(1, 16), clusters=st.integers(1, 6), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_each_channel_is_in_one_cluster_with_labels_from_0(samples, channels, clusters, seed):
    assert_partition(coactivation(normal(seed, samples, channels), clusters, 0), channels, clusters)


@given(groups=st.integers(2, 5), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_planted_groups_that_activate_together_are_found(groups, seed):
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(groups), 5))
    drivers = normal(seed, 300, groups)
    responses = drivers[:, order] + 0.1 * normal(seed + 1, 300, len(order))
    labels = coactivation(responses, groups, 0)
    assert len(set(zip(order.tolist(), labels.tolist(), strict=True))) == groups
    assert len(set(labels.tolist())) == groups


def test_channels_are_grouped_by_what_passes_the_activation():
    # Below zero the four go two by two, above zero the other way round.
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
    ],
    ids=["constant", "always off", "zero", "one sample", "huge constant"],
)
def test_responses_without_variance_fall_into_one_cluster(responses):
    assert coactivation(responses, 3, 0).tolist() == [0] * 6


def test_dead_channels_share_a_cluster_and_leave_the_others_apart():
    drivers = normal(3, 200, 2)
    responses = torch.cat([drivers[:, [0, 0, 1, 1]], torch.full((200, 2), -5.0)], dim=1)
    labels = coactivation(responses, 3, 0)
    assert labels[0] == labels[1]
    assert labels[2] == labels[3]
    assert labels[4] == labels[5]
    assert len(set(labels.tolist())) == 3


@given(channels=st.integers(1, 4), extra=st.integers(1, 5), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_there_are_never_more_clusters_than_channels(channels, extra, seed):
    assert_partition(coactivation(normal(seed, 30, channels), channels + extra, 0), channels, channels)


def test_the_same_seed_gives_the_same_clusters():
    responses = normal(4, 100, 32)
    assert np.array_equal(coactivation(responses, 4, 7), coactivation(responses, 4, 7))


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
    found = correlation(values).numpy()
    assert (found[3] == 0).all()
    assert (found[:, 3] == 0).all()
    np.testing.assert_allclose(found[:3, :3], expected, atol=1e-5)


def test_clustering_of_live_channels_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        coactivation(normal(5, 100, 12), 3, 0)
