"""Where one layer is divided, and what each part holds: regions, clusters, and their spectra.

All of it comes from the dense network's responses alone, so it is the same for every rank that may be chosen, and is
found once per division of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from hscc_search.compression.calibration.record import LayerRecord, region_effects
from hscc_search.compression.division import clusters as channels
from hscc_search.compression.division import regions
from hscc_search.compression.factors import principal_axes

# So many images are enough to know how a map's channels vary.
_IMAGES = 512


@dataclass(frozen=True)
class Division:
    """How layers are divided.

    Attributes:
        region_strategy: a key of :data:`hscc_search.compression.division.regions.STRATEGIES`.
        regions: regions per convolution, at most.
        cluster_strategy: a key of :data:`hscc_search.compression.division.clusters.STRATEGIES`.
        clusters: clusters per region, at most.
        seed: of whatever is drawn.

    Raises:
        CompressionError: a strategy is unknown or a number is out of range.
    """

    region_strategy: str
    regions: int
    cluster_strategy: str
    clusters: int
    seed: int

    def __post_init__(self) -> None:
        regions.check_regions(self.region_strategy, self.regions)
        channels.check_clusters(self.cluster_strategy, self.clusters)


@dataclass(frozen=True, eq=False)
class Block:
    """One region of one layer, of one of its groups where the convolution is grouped.

    Attributes:
        positions: int64, those of the lattice that speak for the region.
        area: output positions of the region, off the lattice too.
        channels: the output channels, a slice of the layer's.
        effects: float64 (C,): root mean square gradient of the loss by each channel's response in this region.
        clusters: int64 (C,), the cluster of each channel.
        eigenvalues: for each cluster those of the covariance of its responses times ``effects``, descending.
        axes: for each cluster the axes that belong to them, float32 (members, axes): fewer than members where there
            are fewer samples.
    """

    positions: torch.Tensor
    area: int
    channels: slice
    effects: torch.Tensor
    clusters: np.ndarray
    eigenvalues: tuple[torch.Tensor, ...]
    axes: tuple[torch.Tensor, ...]

    def basis(self, ranks: Sequence[int]) -> torch.Tensor:
        """The leading axes of each cluster, side by side.

        Args:
            ranks: of each cluster; beyond the axes that it has they are 0.

        Returns:
            float32 (C, sum of ranks).
        """
        found = self.axes[0].new_zeros(len(self.clusters), sum(ranks))
        first = 0
        for cluster, (axes, rank) in enumerate(zip(self.axes, ranks, strict=True)):
            members = torch.from_numpy(np.flatnonzero(self.clusters == cluster))
            kept = axes[:, :rank]
            found[members, first : first + kept.shape[1]] = kept
            first += rank
        return found


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
        """What its axes take, in 10^6 bytes."""
        return sum(axes.nbytes for row in self.blocks for block in row for axes in block.axes) / 1e6


@torch.no_grad()
def divide(record: LayerRecord, division: Division) -> Partition:
    """Divide one layer.

    A fully connected layer has a single position and therefore one region; its features are not clustered either, as
    one cluster's axes serve all of them.
    """
    lattice, responses = record.lattice, record.responses
    if not record.fully_connected:
        responses = responses[:, :: max(1, responses.shape[1] // _IMAGES)]
    strategy = "none" if record.fully_connected else division.region_strategy
    labels = regions.label_map(strategy, record.profiles.numpy(), division.regions, division.seed)
    rows, columns = (indices.numpy() for indices in lattice.indices)
    seen = labels[rows[:, None], columns[None, :]].ravel()
    width = responses.shape[2] // record.groups
    areas = np.bincount(labels.ravel())
    blocks = []
    for group in range(record.groups):
        part = slice(group * width, (group + 1) * width)
        row = []
        for region, area in enumerate(areas.tolist()):
            positions = np.flatnonzero(seen == region)
            # A region may lie between the lattice's positions on a tiny map: then the whole map speaks for it.
            chosen = torch.from_numpy(positions if len(positions) else np.arange(len(seen)))
            samples = responses[chosen][:, :, part].flatten(0, 1)
            clusters = channels.cluster_labels(
                division.cluster_strategy, samples, 1 if record.fully_connected else division.clusters, division.seed
            )
            effects = region_effects(record.effects, chosen, part)
            spectra = _spectra(samples.to(effects.device), effects, clusters)
            row.append(Block(chosen, area, part, effects, clusters, *spectra))
        blocks.append(tuple(row))
    return Partition(labels, tuple(blocks))


def _spectra(
    samples: torch.Tensor, effects: torch.Tensor, clusters: np.ndarray
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """The eigenvalues and the axes of :class:`Block`."""
    count = len(samples)
    centred = samples - samples.mean(dim=0)
    members = [torch.from_numpy(np.flatnonzero(clusters == cluster)) for cluster in range(int(clusters.max()) + 1)]
    if count < centred.shape[1]:
        weighted = (centred * effects.to(centred.dtype)).T.double() / count**0.5
        found = [principal_axes(weighted[chosen]) for chosen in members]
    else:
        covariance = (centred.T @ centred).double() / count * effects[:, None] * effects
        found = [_eigen(covariance[chosen][:, chosen]) for chosen in members]
    spectra = [
        functional.pad(values, (0, len(chosen)))[: len(chosen)]
        for (_, values), chosen in zip(found, members, strict=True)
    ]
    # Eigenvalues at the level of float32 rounding belong to no direction.
    return tuple(values * (values > 1e-9 * values.sum()) for values in spectra), tuple(
        axes.float() for axes, _ in found
    )


def _eigen(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, axes = torch.linalg.eigh(covariance)
    return axes.flip(1), values.flip(0).clamp(min=0)
