"""Train the dense network, once: finished weights and every finished epoch are kept in the user's cache folder."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hscc_search import models
from hscc_search.config import StudyConfig, TrainingConfig
from hscc_search.data import Dataset, Part, Parts
from hscc_search.evaluation.predict import normalised, predict
from hscc_search.files import cache_folder, written_whole
from hscc_search.progress import Progress, Report, silent

# Part of the cache key: raise it when the same configuration would train to other weights.
_TRAINING_VERSION = 1
# Writing what an unfinished training has reached takes at most this share of the time.
_WRITING_SHARE = 0.05
# The share of the steps of fine-tuning that the average of its weights reaches back.
_AVERAGED_SHARE = 0.1


def dense_network(
    config: StudyConfig, dataset: Dataset, parts: Parts, device: torch.device, report: Report = silent
) -> nn.Module:
    """The dense network of a study with its weights: from the checkpoint, from the cache, or trained now.

    Returns:
        The network on ``device``, in evaluation mode.

    Raises:
        ModelError: the network cannot be built or the checkpoint does not fit it.
    """
    network = build(config, len(dataset.classes))
    if config.model.checkpoint is not None:
        state = models.read_checkpoint(config.model.checkpoint)
        models.load_weights(network, state, f"checkpoint {config.model.checkpoint}")
    else:
        path = checkpoint_path(config, dataset)
        if not path.exists():
            with _alone(path, Progress("training the dense network", 0, config.training.epochs), report):
                if not path.exists():
                    train(network, config, parts, path, device, report)
        models.load_weights(network, models.read_checkpoint(path), f"checkpoint {path}")
    return network.to(device).eval()


@contextmanager
def _alone(path: Path, progress: Progress, report: Report) -> Iterator[None]:
    """Be the only process that makes a file; where another one is at it, say so and wait for its end."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        report(replace(progress, note="another process is at it"))
        held = lock.acquire()
    with held:
        yield


def build(config: StudyConfig, classes: int) -> nn.Module:
    """The dense network of a study before any training, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = models.build(config.model.name, classes, config.data.image_size, config.model.weights)
        # A function of the user's own may return weights that it has loaded; those are not ours to draw anew.
        if config.model.weights is None and ":" not in config.model.name:
            models.kaiming_initialise(network)
    return network


def checkpoint_path(config: StudyConfig, dataset: Dataset) -> Path:
    """Where the trained weights of a study are kept, keyed by all that they depend on."""
    key = {
        "version": _TRAINING_VERSION,
        "seed": config.seed,
        "model": config.model.model_dump(exclude={"checkpoint"}),
        "source": models.source_of_own(config.model.name),
        "training": config.training.model_dump(),
        "data": config.data.model_dump(exclude={"path"}),
        "fingerprint": dataset.fingerprint,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    name = config.model.name.replace(":", "-").replace("/", "-")
    return cache_folder("checkpoints") / f"{name}-{digest}.safetensors"


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


def fine_tune(
    network: nn.Module,
    dense: nn.Module,
    config: StudyConfig,
    train: Part,
    device: torch.device,
    report: Report = silent,
) -> None:
    """Train a compressed network further, in place, with distillation from the dense network (Hinton et al. 2015).

    The loss is ``(1 - d) * cross entropy + d * t^2 * KL(dense || compressed)`` of scores divided by t, with weight d
    and temperature t of ``config.finetuning``; both networks see the same augmented images. What is left at the end is
    an exponential moving average of the weights over about the last tenth of the steps (Polyak and Juditsky 1992).

    Args:
        network: a compressed network, or any other that takes the same images and gives the same classes.
        dense: the teacher.
        config: of the study.
        train: the train part.
        device: where both networks are.
        report: told after each epoch.
    """
    tuning = config.finetuning
    data = _on_device(train, device)
    network.requires_grad_(True)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(network, config.training, tuning.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=tuning.learning_rate, total_steps=tuning.epochs * _steps(config, data)
    )
    teacher = Teacher(dense, tuning.distillation, tuning.temperature) if tuning.distillation > 0 else None
    decay = max(0.0, 1 - 1 / (_AVERAGED_SHARE * tuning.epochs * _steps(config, data)))
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    optimizer.register_step_post_hook(lambda *_: averaged.update_parameters(network))
    for epoch in range(tuning.epochs):
        loss = _train_epoch(network, data, config, epoch, optimizer, schedule, teacher)
        report(Progress("fine-tuning", epoch + 1, tuning.epochs, f"loss {loss:.3f}"))
    network.load_state_dict(averaged.module.state_dict())
    network.eval()


@dataclass(frozen=True)
class Teacher:
    """A network to learn from.

    Attributes:
        network: gives the scores.
        weight: of its scores against the labels, 0 to 1.
        temperature: that softens the scores.
    """

    network: nn.Module
    weight: float
    temperature: float

    def loss(self, batch: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """How far the scores ``output`` of a batch are from the teacher's."""
        with torch.no_grad():
            wanted = _scores(self.network, batch)
        divergence = functional.kl_div(
            (output / self.temperature).log_softmax(1),
            (wanted / self.temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * self.temperature**2


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
            batch = _augmented(normalised(images[chosen], config.data), settings.flip, settings.affine)
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


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 autocast trains faster on a device than float32 does."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
