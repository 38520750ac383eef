"""How many basis filters a cluster gets."""

import torch

from hscc_search.errors import CompressionError


def check_energy(energy: float) -> None:
    """Raise CompressionError unless an energy is above 0 and at most 1."""
    if not 0 < energy <= 1:
        raise CompressionError(f"energy must be above 0 and at most 1, not {energy}")


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
    check_energy(energy)
    kept = eigenvalues.clamp(min=0)
    total = kept.sum()
    if total <= 0:
        return 0
    held = kept.cumsum(0)
    # The last sum stands in for the total, so that energy 1 is reached in spite of rounding.
    reached = int((held < energy * held[-1]).sum()) + 1
    return min(reached, int((kept > 0).sum()))
