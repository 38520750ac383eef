"""Refine a compressed network: all its weights at once, towards the dense network's answers, without labels.

The fit goes layer by layer, and what each layer misses adds up. Here all weights of the compressed network descend
together on the Kullback-Leibler divergence of its answers from the dense network's (Hinton et al. 2015), on images that
need no labels. Some images are set aside: what the network was on them at its best, it becomes; where it was best
before the first step, it stays as it was.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from hscc_search.dense.device import fast_bfloat16
from hscc_search.progress import Progress, Report, silent

# Images per step, and per batch where answers are only computed.
_BATCH = 64
# One of so many images is set aside to judge by.
ONE_KEPT_OF = 10
# Gives the inputs of a network, float32 (images, channels, height, width), by their positions, int64 (images,).
Take = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Refinement:
    """The request for a refinement.

    Attributes:
        epochs: passes over the images, at most.
        learning_rate: highest of the one-cycle schedule.
        images: number of them at most, with those that are set aside.
        seed: of the choice of the images and of their order.
    """

    epochs: int = 4
    learning_rate: float = 3e-4
    images: int = 4096
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Lessons:
    """Images with the answers that a compressed network should give to them: those of the dense network.

    Attributes:
        take: reads images by position.
        answers: scores before softmax, float32, shape (images, classes) or (images, classes, height, width).
        learnt: positions of the images to learn from, int64.
        kept: positions of those that are set aside to judge by, int64.
    """

    take: Take
    answers: torch.Tensor
    learnt: torch.Tensor
    kept: torch.Tensor


@dataclass(frozen=True)
class Refined:
    """The course of a refinement.

    Attributes:
        before: mean divergence from the dense network's answers to the images that were set aside, in nats.
        after: the same of the refined network, at most ``before``.
        best_epoch: number of passes that it took to get there; 0 where none made it better.
    """

    before: float
    after: float
    best_epoch: int


@torch.no_grad()
def lessons(dense: nn.Module, take: Take, count: int, kept: torch.Tensor, report: Report = silent) -> Lessons:
    """Ask the dense network for its answers to all images.

    Args:
        dense: in evaluation mode.
        take: reads images by position.
        count: number of images.
        kept: positions of those to set aside, int64.
        report: told of each batch.
    """
    positions, answers = torch.arange(count).split(_BATCH), []
    for done, batch in enumerate(positions, 1):
        answers.append(dense(take(batch)).float())
        report(Progress("asking the dense network", done, len(positions)))
    learnt = torch.ones(count, dtype=torch.bool)
    learnt[kept] = False
    return Lessons(take, torch.cat(answers), learnt.nonzero()[:, 0], kept)


def refine(network: nn.Module, taught: Lessons, refinement: Refinement, report: Report = silent) -> Refined:
    """Refine a compressed network in place; it never ends farther from the dense network on images set aside.

    Args:
        network: a compressed one in evaluation mode, in which it stays: nothing is dropped at random.
        taught: images and the dense network's answers.
        refinement: how long.
        report: told after each pass.
    """
    before = best = divergence(network, taught)
    best_weights, best_epoch = _weights(network), 0
    network.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), refinement.learning_rate, fused=True)
    steps = max(1, len(taught.learnt) // _BATCH)
    schedule = OneCycleLR(optimizer, refinement.learning_rate, total_steps=refinement.epochs * steps)
    generator = torch.Generator().manual_seed(refinement.seed)
    for epoch in range(1, refinement.epochs + 1):
        order = taught.learnt[torch.randperm(len(taught.learnt), generator=generator)]
        for step in range(steps):
            batch = order[step * _BATCH : (step + 1) * _BATCH]
            optimizer.zero_grad()
            _loss(_answers(network, taught.take(batch)), taught.answers[batch]).backward()
            optimizer.step()
            schedule.step()
        reached = divergence(network, taught)
        if reached < best:  # never where it is not a number
            best, best_weights, best_epoch = reached, _weights(network), epoch
        report(Progress("refining", epoch, refinement.epochs, f"divergence {reached:.4f}, at first {before:.4f}"))
    network.load_state_dict(best_weights)
    network.requires_grad_(False)
    return Refined(before, best, best_epoch)


def refine_on_images(network: nn.Module, dense: nn.Module, images: torch.Tensor, refinement: Refinement) -> Refined:
    """Refine a compressed network in place on images in memory, of which every tenth is set aside.

    Args:
        network: a compressed one in evaluation mode.
        dense: likewise.
        images: as both take them, float32 (images, channels, height, width).
        refinement: its number of images is that of ``images`` at most.
    """
    count = min(len(images), refinement.images)
    kept = torch.arange(0, count, ONE_KEPT_OF)
    return refine(network, lessons(dense, images.__getitem__, count, kept), refinement)


@torch.no_grad()
def divergence(network: nn.Module, taught: Lessons) -> float:
    """The mean divergence of a network's answers from the dense network's to the images set aside, in nats."""
    total = 0.0
    for batch in taught.kept.split(_BATCH):
        total += float(_loss(network(taught.take(batch)).float(), taught.answers[batch])) * len(batch)
    return total / len(taught.kept) if math.isfinite(total) else math.inf


def _answers(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=fast_bfloat16(images.device)):
        answers: torch.Tensor = network(images)
    return answers.float()


def _loss(answers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The mean divergence over images and, of maps, over positions."""
    terms = functional.kl_div(answers.log_softmax(1), wanted.log_softmax(1), reduction="none", log_target=True)
    return terms.sum(dim=1).mean()


def _weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())
