"""Where one layer is divided, and what each part holds: regions, clusters, and their spectra.

All of it comes from the dense network's responses alone, so it is the same for every rank that may be chosen, and is
found once per division of a layer.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from hscc_search.compression import channels, regions
from hscc_search.compression.records import LayerRecord, region_effects


@dataclass(frozen=True)
class Division:
    """How layers are divided.

    Attributes:
        region_strategy: a key of :data:`hscc_search.compression.regions.STRATEGIES`.
        regions: regions per convolution, at most.
        cluster_strategy: a key of :data:`hscc_search.compression.channels.STRATEGIES`.
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
    """

    positions: torch.Tensor
    area: int
    channels: slice
    effects: torch.Tensor
    clusters: np.ndarray
    eigenvalues: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Partition:
    """One divided layer.

    Attributes:
        labels: int64 (height, width), the region of each output position.
        blocks: for each group of the convolution one block per region.
    """

    labels: np.ndarray
    blocks: tuple[tuple[Block, ...], ...]


@torch.no_grad()
def divide(record: LayerRecord, division: Division) -> Partition:
    """Divide one layer.

    A fully connected layer has a single position and therefore one region; its features are not clustered either, as
    one cluster's axes serve all of them.
    """
    lattice, responses = record.lattice, record.responses
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
            row.append(Block(chosen, area, part, effects, clusters, _spectra(samples, effects, clusters)))
        blocks.append(tuple(row))
    return Partition(labels, tuple(blocks))


def _spectra(samples: torch.Tensor, effects: torch.Tensor, clusters: np.ndarray) -> tuple[torch.Tensor, ...]:
    count = len(samples)
    centred = samples - samples.mean(dim=0)
    members = [torch.from_numpy(np.flatnonzero(clusters == cluster)) for cluster in range(int(clusters.max()) + 1)]
    if count < centred.shape[1]:
        weighted = centred * effects.to(centred.dtype)
        matrices = [(weighted[:, chosen] @ weighted[:, chosen].T).double() / count for chosen in members]
    else:
        covariance = (centred.T @ centred).double() / count * effects[:, None] * effects
        matrices = [covariance[chosen][:, chosen] for chosen in members]
    spectra = [torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0) for matrix in matrices]
    padded = [
        functional.pad(values, (0, len(chosen)))[: len(chosen)] for values, chosen in zip(spectra, members, strict=True)
    ]
    # Eigenvalues at the level of float32 rounding belong to no direction.
    return tuple(values * (values > 1e-9 * values.sum()) for values in padded)
