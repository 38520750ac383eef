"""Random changes to training images."""

import torch
from torch.nn import functional


def _augmented(batch: torch.Tensor, flip: bool, affine: bool) -> torch.Tensor:
    """Flip, turn, shift and scale every image of a batch by amounts of its own."""
    if not flip and not affine:
        return batch
    count = len(batch)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    turn, shift, scale = torch.zeros(count), torch.zeros(count, 2), torch.ones(count)
    if affine:
        turn = (torch.rand(count) * 2 - 1) * (15 * torch.pi / 180)
        shift = (torch.rand(count, 2) * 2 - 1) * 0.2  # of half a side
        scale = 0.85 + torch.rand(count) * 0.3
    cosine, sine = torch.cos(turn) / scale, torch.sin(turn) / scale
    rows = torch.stack([cosine * mirror, -sine, shift[:, 0], sine * mirror, cosine, shift[:, 1]], dim=1).view(
        count, 2, 3
    )
    grid = functional.affine_grid(rows.to(batch.device), list(batch.shape), align_corners=False)
    return functional.grid_sample(batch, grid, padding_mode="border", align_corners=False)
