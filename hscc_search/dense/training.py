"""Train the dense network, once: the user's cache folder holds finished weights and the state after each epoch."""

import time
import zipfile
from pathlib import Path

import torch
from torch import nn

from hscc_search.config import StudyConfig
from hscc_search.data import Parts
from hscc_search.dense.epochs import Descent, label_loss, run_epoch, start_descent
from hscc_search.dense.weights import write_trained
from hscc_search.evaluation.predictions import predict
from hscc_search.files import written_whole
from hscc_search.progress import Progress, Report, silent

# Largest share of the time that goes into writing the state of an unfinished training.
_WRITING_SHARE = 0.05


def train(
    network: nn.Module,
    config: StudyConfig,
    parts: Parts,
    path: Path | None,
    device: torch.device,
    report: Report = silent,
) -> None:
    """Train on the train part and write the weights to ``path``, continuing after the last epoch that was written.

    The state is written after each epoch, or less often where that would take more than a twentieth of the time, as
    on a GPU.

    Args:
        network: changed in place and left in evaluation mode.
        config: of the study.
        parts: train part to learn from, validation part to report on.
        path: of the safetensors file; the unfinished state lies beside it. None keeps nothing.
        device: where to train.
        report: told after each epoch.
    """
    training = config.training
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    descent = start_descent(network, config, parts.train, training.learning_rate, training.epochs, device)
    unfinished = path.with_suffix(".unfinished") if path is not None else None
    finished_epochs = _restore(descent, unfinished, device) if unfinished is not None and unfinished.exists() else 0
    last_written, writing_seconds = time.monotonic(), 0.0
    for epoch in range(finished_epochs, training.epochs):
        loss = run_epoch(descent, epoch, label_loss(config))
        start = time.monotonic()
        if unfinished is not None and (start - last_written) * _WRITING_SHARE >= writing_seconds:
            _write_state(descent, epoch + 1, unfinished)
            last_written = time.monotonic()
            writing_seconds = last_written - start
        right = predict(network, parts.validation, config.data, device).argmax(1) == parts.validation.labels
        note = f"loss {loss:.3f}, validation accuracy {right.mean():.3f}"
        report(Progress("training the dense network", epoch + 1, training.epochs, note))
    network.eval()
    if path is not None and unfinished is not None:
        write_trained(network, path)
        unfinished.unlink(missing_ok=True)


def _restore(descent: Descent, path: Path, device: torch.device) -> int:
    """Read what :func:`_write_state` wrote, and return the number of finished epochs; 0 for a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums, and does not compare them
            damaged = archive.testzip() is not None
    except (OSError, zipfile.BadZipFile):
        damaged = True
    if damaged:
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    descent.network.load_state_dict(state["network"])
    descent.optimizer.load_state_dict(state["optimizer"])
    descent.schedule.load_state_dict(state["schedule"])
    return int(state["epochs"])


def _write_state(descent: Descent, epochs: int, path: Path) -> None:
    state = {
        "network": descent.network.state_dict(),
        "optimizer": descent.optimizer.state_dict(),
        "schedule": descent.schedule.state_dict(),
        "epochs": epochs,
    }
    with written_whole(path) as temporary:
        torch.save(state, temporary)
