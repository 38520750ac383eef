"""Train the dense network, once: finished weights and every finished epoch are kept in the user's cache folder."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from hscc_search.config import StudyConfig, TrainingConfig
from hscc_search.data import Part, Parts
from hscc_search.dense.augmentation import _augmented
from hscc_search.dense.device import fast_bfloat16
from hscc_search.dense.fine_tuning import Teacher
from hscc_search.evaluation.predictions import network_input, predict
from hscc_search.files import written_whole
from hscc_search.progress import Progress, Report, silent

# Writing what an unfinished training has reached takes at most this share of the time.
_WRITING_SHARE = 0.05


def train(
    network: nn.Module,
    config: StudyConfig,
    parts: Parts,
    path: Path,
    device: torch.device,
    report: Report = silent,
) -> None:
    """Train on the train part and write the weights to ``path``, going on after the last epoch that was written.

    Each epoch is written, or one of several where that would take more than a twentieth of the time, as on a GPU.
    """
    settings = config.training
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = _on_device(parts.train, device)
    optimizer = _optimizer(network, settings, settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=settings.epochs * _steps(config, data)
    )
    unfinished = path.with_suffix(".unfinished")
    first = 0
    if unfinished.exists():
        state = torch.load(unfinished, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epochs"]
    written, writing = time.monotonic(), 0.0
    for epoch in range(first, settings.epochs):
        loss = _train_epoch(network, data, config, epoch, optimizer, schedule)
        start = time.monotonic()
        if (start - written) * _WRITING_SHARE >= writing:
            with written_whole(unfinished) as temporary:
                torch.save(
                    {
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                        "epochs": epoch + 1,
                    },
                    temporary,
                )
            written = time.monotonic()
            writing = written - start
        right = predict(network, parts.validation, config.data, device).argmax(1) == parts.validation.labels
        note = f"loss {loss:.3f}, validation accuracy {right.mean():.3f}"
        report(Progress("training the dense network", epoch + 1, settings.epochs, note))
    network.eval()
    with written_whole(path) as temporary:
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, temporary)
    unfinished.unlink(missing_ok=True)


def _on_device(part: Part, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(np.array(part.images)).to(device), torch.from_numpy(part.labels).to(device)


def _optimizer(network: nn.Module, settings: TrainingConfig, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        network.parameters(),
        lr=learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
        fused=True,  # one pass over the weights: with AlexNet's 57 million the plain one takes a fifth of a step
    )


def _steps(config: StudyConfig, data: tuple[torch.Tensor, torch.Tensor]) -> int:
    return len(data[1]) // config.training.batch_size or 1


def _scores(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=fast_bfloat16(batch.device)):
        output = network(batch)
    return (output if isinstance(output, torch.Tensor) else output[0]).float()


def _train_epoch(
    network: nn.Module,
    data: tuple[torch.Tensor, torch.Tensor],
    config: StudyConfig,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    teacher: Teacher | None = None,
) -> float:
    """One epoch; returns its mean loss.

    It draws from a seed of its own, so that going on after a stop gives what an unbroken run would have given.
    """
    settings = config.training
    images, labels = data
    device = images.device
    network.train()
    total = torch.zeros((), device=device)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed * 100_003 + epoch)
        order = torch.randperm(len(labels)).to(device)
        for step in range(_steps(config, data)):
            chosen = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            batch = _augmented(network_input(images[chosen], config.data), settings.flip, settings.affine)
            share, other = 1.0, torch.arange(len(chosen), device=device)
            if settings.mixup > 0:
                share = float(torch.distributions.Beta(settings.mixup, settings.mixup).sample())
                other = torch.randperm(len(chosen)).to(device)
                batch = share * batch + (1 - share) * batch[other]
            output = _scores(network, batch)
            loss = torch.zeros((), device=device)
            for weight, target in ((share, labels[chosen]), (1 - share, labels[chosen][other])):
                if weight > 0:
                    smoothing = settings.label_smoothing
                    loss = loss + weight * functional.cross_entropy(output, target, label_smoothing=smoothing)
            if teacher is not None:
                loss = (1 - teacher.weight) * loss + teacher.weight * teacher.loss(batch, output)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()  # to read it would make the CPU wait for a GPU in each step
    network.eval()
    return float(total) / _steps(config, data)
