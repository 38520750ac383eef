"""Run a network over images."""

import numpy as np
import torch
from torch import nn

from hscc_search.config import DataConfig
from hscc_search.data import Part


def normalised(images: torch.Tensor, config: DataConfig) -> torch.Tensor:
    """What a network takes: ``(images / 255 - mean) / std``.

    Args:
        images: uint8, shape (images, 3, side, side).
        config: holds mean and std per channel.

    Returns:
        float32, the same shape, channels last in memory, which is up to 2.5 times faster on a CPU.
    """
    mean = torch.tensor(config.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(config.std, device=images.device).view(1, 3, 1, 1)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(
    network: nn.Module, part: Part, config: DataConfig, device: torch.device, batch_size: int = 64
) -> np.ndarray:
    """The network's outputs before softmax.

    Returns:
        float32, shape (images, classes).
    """
    network.eval()
    outputs = [
        network(normalised(torch.from_numpy(part.images[start : start + batch_size]).to(device), config)).float().cpu()
        for start in range(0, len(part), batch_size)
    ]
    return torch.cat(outputs).numpy()
