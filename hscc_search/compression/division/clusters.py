"""Clusters of a region's output channels that activate together, and the controls.

Every strategy returns one label per channel, int64 of shape (channels,) with labels 0..C-1, each present.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch

from hscc_search.config import ClusterStrategy
from hscc_search.errors import CompressionError

# Samples that correlations are computed from. On AlexNet's last convolutions clusters from 8192 samples explain as much
# of the full correlations as clusters from 27 000; from 4096 it is up to a fifth less.
_SAMPLES = 8192
# Starts of k-means: cheap beside the correlations, and 2 often end in a poor grouping.
_STARTS = 5

# Responses (samples, channels), number of clusters and seed to the cluster of each channel.
Strategy = Callable[[torch.Tensor, int, int], np.ndarray]


def coactivation(responses: torch.Tensor, clusters: int, seed: int) -> np.ndarray:
    """Group channels by k-means++ on the rows of their correlation matrix after the activation.

    The positive part stands for the activation: it is ReLU's, and close to that of its smooth relatives. A channel
    that never changes correlates with none, not even itself. Channels with the same profile stay together, so there
    may be fewer clusters than asked for.
    """
    channels = responses.shape[1]
    if min(clusters, channels) <= 1:
        return np.zeros(channels, np.int64)
    return k_means(coactivations(responses, seed), clusters, seed)


def contiguous(responses: torch.Tensor, clusters: int, seed: int) -> np.ndarray:
    """Runs of neighbouring channel numbers whose lengths differ by at most one channel."""
    channels = responses.shape[1]
    return np.arange(channels) * min(clusters, channels) // channels


def random(responses: torch.Tensor, clusters: int, seed: int) -> np.ndarray:
    """Channels at random, in clusters whose sizes differ by at most one channel."""
    channels = responses.shape[1]
    return np.random.default_rng(seed).permutation(np.arange(channels) % min(clusters, channels))


def none(responses: torch.Tensor, clusters: int, seed: int) -> np.ndarray:
    """All channels in one cluster."""
    return np.zeros(responses.shape[1], np.int64)


STRATEGIES: dict[ClusterStrategy, Strategy] = {
    "coactivation": coactivation,
    "contiguous": contiguous,
    "random": random,
    "none": none,
}


def cluster_labels(strategy: ClusterStrategy, responses: torch.Tensor, clusters: int, seed: int) -> np.ndarray:
    """Group the channels of a region into clusters.

    Args:
        strategy: a key of ``STRATEGIES``.
        responses: float, shape (samples, channels), before the activation, on any device.
        clusters: number of clusters, at most; never more than there are channels.
        seed: for the strategies that draw, 0 to 2^32 - 1.

    Returns:
        The cluster of each channel: int64, shape (channels,), labels 0..C-1, each present.

    Raises:
        CompressionError: there is no such strategy, or ``clusters`` is below 1.
    """
    check_clusters(strategy, clusters)
    return STRATEGIES[strategy](responses, clusters, seed)


def check_clusters(strategy: str, clusters: int) -> None:
    """Raise CompressionError unless there is such a strategy and ``clusters`` is 1 or more."""
    if clusters < 1:
        raise CompressionError(f"clusters must be 1 or more, not {clusters}")
    if strategy not in STRATEGIES:
        raise CompressionError(f"no cluster strategy {strategy!r}: use one of {', '.join(STRATEGIES)}")


def coactivations(responses: torch.Tensor, seed: int) -> np.ndarray:
    """Correlate channels after the activation, on at most ``_SAMPLES`` samples.

    Args:
        responses: float, shape (samples, channels), before the activation.
        seed: of the samples that are drawn.

    Returns:
        float64, shape (channels, channels).
    """
    return np.asarray(correlation(torch.relu(_drawn(responses, seed).float())).numpy())


def correlation(samples: torch.Tensor) -> torch.Tensor:
    """Correlations between columns, float64, shape (channels, channels); 0 for a column that never changes."""
    centred = samples - samples.mean(dim=0)
    covariance = (centred.T @ centred).double().cpu()
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    # A deviation below float32's resolution of the values themselves is rounding.
    floor = 1e-6 * samples.abs().amax(dim=0).double().cpu() * len(samples) ** 0.5
    scale = torch.where(deviation > floor, 1 / deviation, torch.zeros_like(deviation))
    return covariance * scale[:, None] * scale[None, :]


def k_means(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Group points by k-means++.

    Args:
        points: float, shape (points, features).
        clusters: number of clusters, at most; fewer where points coincide.
        seed: 0 to 2^32 - 1.

    Returns:
        The cluster of each point: int64, shape (points,), labels 0..C-1, each present.
    """
    from sklearn.cluster import KMeans  # slow to import, and not every study has clusters
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it warns of coinciding points
        labels = KMeans(min(clusters, len(points)), n_init=_STARTS, random_state=seed).fit_predict(points)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _drawn(responses: torch.Tensor, seed: int) -> torch.Tensor:
    """Draw at most ``_SAMPLES`` of the samples, on the CPU.

    They are drawn rather than taken at equal distances: samples are ordered by position, and within it by image, so a
    distance that divides the number of images would use the same few images at all positions.
    """
    if len(responses) > _SAMPLES:
        chosen = np.random.default_rng(seed).choice(len(responses), _SAMPLES, replace=False)
        responses = responses[torch.from_numpy(np.sort(chosen)).to(responses.device)]
    return responses.detach().cpu()
