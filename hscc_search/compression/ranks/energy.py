"""The rank of a cluster by the variance along its axes: eigenvalues in, ranks out."""

from collections.abc import Sequence

import torch

from hscc_search.compression.setting import check_share


def rank_for_energy(eigenvalues: torch.Tensor, energy: float) -> int:
    """Find the smallest rank whose eigenvalues hold at least a share ``energy`` of their sum.

    Args:
        eigenvalues: float64, shape (channels,), descending; negative ones count as 0.
        energy: share of the variance, above 0 and up to 1.

    Returns:
        0 where there is no variance, else 1 up to the number of positive eigenvalues.

    Raises:
        CompressionError: the energy is out of range.
    """
    check_share("energy", energy)
    variances = eigenvalues.clamp(min=0)
    if variances.sum() <= 0:
        return 0
    held = variances.cumsum(0)
    # The last partial sum stands in for the total, so that energy 1 is reached in spite of rounding.
    rank = int((held < energy * held[-1]).sum()) + 1
    return min(rank, int((variances > 0).sum()))


def raise_to_total(eigenvalues: Sequence[torch.Tensor], ranks: Sequence[int], total: int) -> tuple[int, ...]:
    """Raise the ranks of clusters until they add up to ``total``, each time where most variance is left.

    Args:
        eigenvalues: of each cluster, descending, one per channel.
        ranks: of each cluster, to begin with.
        total: from the sum of ``ranks`` up to the number of channels.

    Returns:
        The raised rank of each cluster.
    """
    unused = [
        (-float(value), cluster, position)
        for cluster, (values, rank) in enumerate(zip(eigenvalues, ranks, strict=True))
        for position, value in enumerate(values[rank:].tolist())
    ]
    raised = list(ranks)
    for _, cluster, _ in sorted(unused)[: total - sum(ranks)]:
        raised[cluster] += 1
    return tuple(raised)
