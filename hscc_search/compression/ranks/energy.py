"""How many basis filters a cluster gets."""

from collections.abc import Sequence

import torch

from hscc_search.errors import CompressionError


def check_share(name: str, share: float) -> None:
    """Raise CompressionError unless a share is above 0 and at most 1."""
    if not 0 < share <= 1:
        raise CompressionError(f"{name} must be above 0 and at most 1, not {share}")


def rank_for_energy(eigenvalues: torch.Tensor, energy: float) -> int:
    """The smallest rank whose eigenvalues hold at least a share ``energy`` of their sum.

    Args:
        eigenvalues: float64, shape (channels,), descending; negative ones count as 0.
        energy: share of the variance, above 0 and up to 1.

    Returns:
        0 where there is no variance, else 1 up to the number of positive eigenvalues.

    Raises:
        CompressionError: the energy is out of range.
    """
    check_share("energy", energy)
    kept = eigenvalues.clamp(min=0)
    total = kept.sum()
    if total <= 0:
        return 0
    held = kept.cumsum(0)
    # The last sum stands in for the total, so that energy 1 is reached in spite of rounding.
    reached = int((held < energy * held[-1]).sum()) + 1
    return min(reached, int((kept > 0).sum()))


def largest_first(eigenvalues: Sequence[torch.Tensor], ranks: Sequence[int], total: int) -> tuple[int, ...]:
    """Ranks of clusters, raised until they add up to ``total`` by whatever holds most variance next.

    Args:
        eigenvalues: of each cluster, descending, one per channel.
        ranks: to begin with, of each cluster.
        total: not below their sum and not above the number of channels.
    """
    left = [
        (-float(value), cluster, position)
        for cluster, (values, rank) in enumerate(zip(eigenvalues, ranks, strict=True))
        for position, value in enumerate(values[rank:].tolist())
    ]
    raised = list(ranks)
    for _, cluster, _ in sorted(left)[: total - sum(ranks)]:
        raised[cluster] += 1
    return tuple(raised)
