"""Random changes to training images."""

import torch
from torch.nn import functional

# Limits of the affine changes. Shifts are in the units of torch's sampling grid, where an image reaches from -1 to 1.
_TURN = 15 * torch.pi / 180
_SHIFT = 0.2
_SMALLEST_SCALE, _SCALE_RANGE = 0.85, 0.3


def augment(images: torch.Tensor, flip: bool, affine: bool) -> torch.Tensor:
    """Flip, turn, shift and scale every image by amounts of its own, drawn from torch's global generator.

    Args:
        images: float, shape (images, channels, height, width).
        flip: whether to mirror half of the images left to right.
        affine: whether to turn by up to 15 degrees, shift by up to a tenth of the image and scale by 0.85 to 1.15.

    Returns:
        Images of the same shape; pixels from beyond an edge repeat the edge.
    """
    if not flip and not affine:
        return images
    count = len(images)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    turn, shift, scale = torch.zeros(count), torch.zeros(count, 2), torch.ones(count)
    if affine:
        turn = (torch.rand(count) * 2 - 1) * _TURN
        shift = (torch.rand(count, 2) * 2 - 1) * _SHIFT
        scale = _SMALLEST_SCALE + torch.rand(count) * _SCALE_RANGE
    cosine, sine = torch.cos(turn) / scale, torch.sin(turn) / scale
    # The grid reaches from -1 to 1 along both sides: what is turned goes from the units of one to those of the other.
    aspect = images.shape[2] / images.shape[3]
    coefficients = [cosine * mirror, -sine * aspect, shift[:, 0], sine * mirror / aspect, cosine, shift[:, 1]]
    matrices = torch.stack(coefficients, dim=1).view(count, 2, 3)
    grid = functional.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def mirror(images: torch.Tensor, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror half of the images left to right, and their maps with them.

    Args:
        images: shape (images, channels, height, width).
        maps: shape (images, height, width), perhaps of another size.

    Returns:
        Both, each of its shape.
    """
    mirrored = (torch.rand(len(images)) < 0.5).to(images.device)
    return (
        torch.where(mirrored[:, None, None, None], images.flip(-1), images),
        torch.where(mirrored[:, None, None], maps.flip(-1), maps),
    )


def mix(
    images: torch.Tensor, labels: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, tuple[tuple[float, torch.Tensor], ...]]:
    """Blend every image of a batch with another one, all in the same proportion (mixup, Zhang et al. 2018).

    Args:
        images: float, shape (images, channels, height, width).
        labels: int64, shape (images,).
        alpha: of the Beta(alpha, alpha) distribution that the proportion is drawn from; 0 leaves the batch as it is.

    Returns:
        The blended images, and the labels of each image's components with their weights, which add up to 1.
    """
    if alpha == 0:
        return images, ((1.0, labels),)
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    partners = torch.randperm(len(images)).to(images.device)
    blended = weight * images + (1 - weight) * images[partners]
    return blended, ((weight, labels), (1 - weight, labels[partners]))
