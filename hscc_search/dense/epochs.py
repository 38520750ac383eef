"""Epochs of stochastic gradient descent, shared by training and fine-tuning."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from hscc_search.config import StudyConfig
from hscc_search.data import Images, Part
from hscc_search.dense.augmentation import augment, mirror, mix
from hscc_search.dense.device import fast_bfloat16
from hscc_search.errors import ModelError
from hscc_search.evaluation.predictions import network_input

# Bytes of images that are held on the device while a network is trained; more are read from the cache batch by batch.
_HELD = 1 << 30


@dataclass(frozen=True, eq=False)
class Descent:
    """A network in training, with all that its steps need.

    Attributes:
        network: changed in place.
        config: of the study.
        images: as they are stored, shape (images, ...); on the network's device unless they are many.
        labels: integers, shape (images,), or maps of them, shape (images, height, width); on the network's device.
        optimizer: of all weights.
        schedule: of the learning rate, advanced after each step.
        steps_per_epoch: number of full batches, or 1 where there is none.
    """

    network: nn.Module
    config: StudyConfig
    images: torch.Tensor | Images
    labels: torch.Tensor
    optimizer: torch.optim.Optimizer
    schedule: OneCycleLR
    steps_per_epoch: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Images with the labels that a network should give them.

    Attributes:
        images: float32, shape (images, channels, height, width), as the network takes them.
        labels: pairs of a weight and int64 labels, shape (images,) or (images, height, width): one pair, or two where
            images are mixed.
    """

    images: torch.Tensor
    labels: tuple[tuple[float, torch.Tensor], ...]


# Computes a scalar loss from a batch and the network's scores for it, float32, shape (images, classes, ...).
Loss = Callable[[Batch, torch.Tensor], torch.Tensor]


def start_descent(
    network: nn.Module, config: StudyConfig, part: Part, learning_rate: float, epochs: int, device: torch.device
) -> Descent:
    """Set up SGD with Nesterov momentum under a one-cycle schedule.

    Args:
        network: on ``device``.
        config: of the study.
        part: images to learn from.
        learning_rate: highest of the schedule.
        epochs: length of the schedule.
        device: where the images are put.
    """
    training = config.training
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.momentum > 0,
        # One pass over the weights, which cannot be complex: with AlexNet's 57 million the plain one takes a fifth of a
        # step.
        fused=all(weight.is_floating_point() for weight in network.parameters() if weight.requires_grad),
    )
    steps_per_epoch = len(part) // training.batch_size or 1
    schedule = OneCycleLR(optimizer, max_lr=learning_rate, total_steps=epochs * steps_per_epoch)
    images: torch.Tensor | Images = part.images
    if math.prod(images.shape) * images.dtype.itemsize <= _HELD:
        images = torch.from_numpy(np.asarray(images)).to(device)
    # torch computes little with unsigned integers of more than 8 bits.
    labels = torch.from_numpy(part.labels if part.labels.itemsize == 1 else part.labels.astype(np.int64)).to(device)
    return Descent(network, config, images, labels, optimizer, schedule, steps_per_epoch)


def run_epoch(descent: Descent, epoch: int, loss: Loss) -> float:
    """Go once over the images, in random order, and leave the network in evaluation mode.

    All random numbers of an epoch come from its own seed, so that a training that was stopped and continued gives the
    same weights as an unbroken one.

    Args:
        descent: network, images, optimizer and schedule.
        epoch: number of the epoch, from 0.
        loss: minimised.

    Returns:
        Mean loss over the steps.

    Raises:
        ModelError: the loss is not finite.
    """
    network, labels, batch_size = descent.network, descent.labels, descent.config.training.batch_size
    network.train()
    total = torch.zeros((), device=labels.device)
    with torch.random.fork_rng():
        torch.manual_seed(descent.config.seed * 100_003 + epoch)
        order = torch.randperm(len(labels))
        for step in range(descent.steps_per_epoch):
            batch = _batch(descent, order[step * batch_size : (step + 1) * batch_size])
            value = loss(batch, training_scores(network, batch.images))
            descent.optimizer.zero_grad()
            value.backward()
            descent.optimizer.step()
            descent.schedule.step()
            total += value.detach()  # read only after the epoch: reading it makes the CPU wait for a GPU
    network.eval()
    mean = float(total) / descent.steps_per_epoch
    if not math.isfinite(mean):
        raise ModelError(
            f"the network diverged in epoch {epoch + 1} (loss {mean}): lower the learning rate, and look at data.mean, "
            "data.std and weight_decay"
        )
    return mean


def _batch(descent: Descent, indices: torch.Tensor) -> Batch:
    """Augment and mix the images at ``indices``, which are on the CPU."""
    training, device = descent.config.training, descent.labels.device
    if isinstance(descent.images, torch.Tensor):
        pixels = descent.images[indices.to(device)]
    else:
        pixels = torch.from_numpy(descent.images[indices.numpy()]).to(device)
    images, labels = network_input(pixels, descent.config.data), descent.labels[indices.to(device)].long()
    if pixels.is_floating_point():  # what is no image is neither flipped nor turned
        pass
    elif labels.ndim > 1:
        images, labels = mirror(images, labels) if training.flip else (images, labels)
    else:
        images = augment(images, training.flip, training.affine)
    return Batch(*mix(images, labels, training.mixup))


def training_scores(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The scores of a network in the precision of training: bfloat16 where the device is faster with it.

    Args:
        network: returns scores, or a tuple that begins with them, as some networks do in training mode.
        images: float32, shape (images, channels, height, width).

    Returns:
        float32, shape (images, classes, ...).
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=fast_bfloat16(images.device)):
        output = network(images)
    return (output if isinstance(output, torch.Tensor) else output[0]).float()


def label_loss(config: StudyConfig) -> Loss:
    """The cross entropy with the labels, of maps at each position, smoothed by ``training.label_smoothing``."""
    smoothing = config.training.label_smoothing

    def loss(batch: Batch, scores: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=scores.device)
        for weight, labels in batch.labels:
            if weight > 0:
                total = total + weight * functional.cross_entropy(scores, labels, label_smoothing=smoothing)
        return total

    return loss
