"""Clusters of a region's output channels that activate together."""

import numpy as np
import torch
from sklearn.cluster import KMeans


def coactivation(responses: torch.Tensor, clusters: int, seed: int) -> np.ndarray:
    """Group channels by k-means++ on the rows of their correlation matrix after the activation.

    The positive part stands for the activation: it is ReLU's, and close to that of its smooth relatives. A channel
    that never changes correlates with none, itself included.

    Args:
        responses: float, shape (samples, channels), before the activation.
        clusters: how many at most; never more than there are channels.
        seed: of k-means++.

    Returns:
        int64, shape (channels,), labels 0..C-1, each present.
    """
    channels = responses.shape[1]
    clusters = min(clusters, channels)
    if clusters <= 1:
        return np.zeros(channels, np.int64)
    profiles = correlation(torch.relu(responses))
    labels = KMeans(clusters, n_init=2, random_state=seed).fit_predict(profiles.numpy())
    # k-means finds fewer clusters where profiles coincide.
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def correlation(samples: torch.Tensor) -> torch.Tensor:
    """Correlations between columns, float64, shape (channels, channels); 0 for a column that never changes."""
    centred = samples - samples.mean(dim=0)
    covariance = (centred.T @ centred).double().cpu()
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    # Below float32's resolution of the values themselves a deviation is rounding.
    floor = 1e-6 * samples.double().abs().amax(dim=0).cpu() * len(samples) ** 0.5
    scale = torch.where(deviation > floor, 1 / deviation, torch.zeros_like(deviation))
    return covariance * scale[:, None] * scale[None, :]
