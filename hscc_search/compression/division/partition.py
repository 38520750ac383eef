"""Partition of one layer into blocks, one per region, with the clusters and spectra of each.

It depends on the dense network's responses alone and not on the ranks, so it is computed once per division of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from hscc_search.compression.calibration.record import LayerRecord, region_effects
from hscc_search.compression.divided import coactivation_picture
from hscc_search.compression.division.clusters import check_clusters, cluster_labels, coactivations
from hscc_search.compression.division.regions import check_regions, label_map
from hscc_search.compression.factors import principal_axes
from hscc_search.config import ClusterStrategy, RegionStrategy

# Images that suffice to estimate how the channels of a map vary.
_IMAGES = 512


@dataclass(frozen=True)
class Division:
    """The way to divide a layer: strategies, and numbers of regions and clusters.

    Attributes:
        region_strategy: a key of :data:`hscc_search.compression.division.regions.STRATEGIES`.
        regions: regions per convolution, at most.
        cluster_strategy: a key of :data:`hscc_search.compression.division.clusters.STRATEGIES`.
        clusters: clusters per region, at most.
        seed: for the strategies that draw.

    Raises:
        CompressionError: a strategy is unknown or a number is out of range.
    """

    region_strategy: RegionStrategy
    regions: int
    cluster_strategy: ClusterStrategy
    clusters: int
    seed: int

    def __post_init__(self) -> None:
        check_regions(self.region_strategy, self.regions)
        check_clusters(self.cluster_strategy, self.clusters)


@dataclass(frozen=True, eq=False)
class Block:
    """One region of one layer, for one group where the convolution is grouped.

    Attributes:
        positions: int64, numbers of the lattice's positions that stand for the region.
        area: number of output positions of the region, on and off the lattice.
        channels: slice of the layer's output channels.
        effects: float64 (C,): RMS gradient of the loss by each channel's response in this region.
        clusters: int64 (C,), the cluster of each channel.
        eigenvalues: for each cluster those of the covariance of its responses times ``effects``, descending.
        axes: for each cluster the eigenvectors that belong to them, float32 (members, axes); where there are fewer
            samples than members, there are fewer axes.
        coactivation: of the clusters, see :class:`hscc_search.compression.divided.DividedLayer`; None for one cluster.
    """

    positions: torch.Tensor
    area: int
    channels: slice
    effects: torch.Tensor
    clusters: np.ndarray
    eigenvalues: tuple[torch.Tensor, ...]
    axes: tuple[torch.Tensor, ...]
    coactivation: np.ndarray | None

    def basis(self, ranks: Sequence[int]) -> torch.Tensor:
        """The leading axes of each cluster, side by side.

        Args:
            ranks: rank of each cluster; a cluster that has fewer axes gets columns of zeros.

        Returns:
            float32 (C, sum of ranks).
        """
        basis = self.axes[0].new_zeros(len(self.clusters), sum(ranks))
        first = 0
        for cluster, (axes, rank) in enumerate(zip(self.axes, ranks, strict=True)):
            members = torch.from_numpy(np.flatnonzero(self.clusters == cluster))
            leading = axes[:, :rank]
            basis[members, first : first + leading.shape[1]] = leading
            first += rank
        return basis


@dataclass(frozen=True)
class Partition:
    """One divided layer.

    Attributes:
        labels: int64 (height, width), the region of each output position.
        blocks: for each group of the convolution one block per region.
    """

    labels: np.ndarray
    blocks: tuple[tuple[Block, ...], ...]

    @property
    def megabytes(self) -> float:
        """Memory that the axes take, in 10^6 bytes."""
        return sum(axes.nbytes for blocks in self.blocks for block in blocks for axes in block.axes) / 1e6


@torch.no_grad()
def divide(record: LayerRecord, division: Division) -> Partition:
    """Divide one layer.

    A fully connected layer has one region, which on a vector is its single position, and one cluster.
    """
    responses = record.responses
    if record.fully_connected:
        division = replace(division, region_strategy="none", cluster_strategy="none")
    else:
        responses = responses[:, :: max(1, responses.shape[1] // _IMAGES)]
    labels = label_map(division.region_strategy, record.profiles.numpy(), division.regions, division.seed)
    areas = np.bincount(labels.ravel()).tolist()
    positions = _lattice_positions(record, labels, len(areas))
    width = responses.shape[2] // record.groups
    blocks = []
    for group in range(record.groups):
        channels = slice(group * width, (group + 1) * width)
        regions = zip(positions, areas, strict=True)
        blocks.append(tuple(_block(record, responses, division, channels, *region) for region in regions))
    return Partition(labels, tuple(blocks))


def _lattice_positions(record: LayerRecord, labels: np.ndarray, regions: int) -> list[torch.Tensor]:
    """The numbers of the lattice's positions that stand for each region."""
    rows, columns = (indices.numpy() for indices in record.lattice.indices)
    on_lattice = labels[rows[:, None], columns[None, :]].ravel()
    positions = [np.flatnonzero(on_lattice == region) for region in range(regions)]
    # A small region may lie between the lattice's positions: then all of them stand for it.
    every = np.arange(len(on_lattice))
    return [torch.from_numpy(inside if len(inside) else every.copy()) for inside in positions]


def _block(
    record: LayerRecord,
    responses: torch.Tensor,
    division: Division,
    channels: slice,
    positions: torch.Tensor,
    area: int,
) -> Block:
    """Group the channels of one region into clusters and find their spectra."""
    samples = responses[positions][:, :, channels].flatten(0, 1)
    clusters = cluster_labels(division.cluster_strategy, samples, division.clusters, division.seed)
    effects = region_effects(record.effects, positions, channels)
    eigenvalues, axes = _spectra(samples.to(effects.device), effects, clusters)
    picture = coactivation_picture(coactivations(samples, division.seed), clusters) if clusters.any() else None
    return Block(positions, area, channels, effects, clusters, eigenvalues, axes, picture)


def _spectra(
    samples: torch.Tensor, effects: torch.Tensor, clusters: np.ndarray
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """The eigenvalues and the axes of a :class:`Block`."""
    count = len(samples)
    centred = samples - samples.mean(dim=0)
    members = [torch.from_numpy(np.flatnonzero(clusters == cluster)) for cluster in range(int(clusters.max()) + 1)]
    if count < centred.shape[1]:
        weighted = (centred * effects.to(centred.dtype)).T.double() / count**0.5
        spectra = [principal_axes(weighted[channels]) for channels in members]
    else:
        covariance = (centred.T @ centred).double() / count * effects[:, None] * effects
        spectra = [_eigen(covariance[channels][:, channels]) for channels in members]
    eigenvalues = [_complete(values, len(channels)) for (_, values), channels in zip(spectra, members, strict=True)]
    return tuple(eigenvalues), tuple(axes.float() for axes, _ in spectra)


def _eigen(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The eigenvectors, as columns, and the eigenvalues of a covariance, descending."""
    values, axes = torch.linalg.eigh(covariance)
    return axes.flip(1), values.flip(0).clamp(min=0)


def _complete(eigenvalues: torch.Tensor, members: int) -> torch.Tensor:
    """One eigenvalue per member; those at the level of float32 rounding belong to no direction and are 0."""
    values = functional.pad(eigenvalues, (0, members))[:members]
    return values * (values > 1e-9 * values.sum())
