"""Open the images, the split and the dense network of a study together."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from hscc_search.config import StudyConfig
from hscc_search.data import Dataset, Parts, load_dataset, split
from hscc_search.dense.device import choose_device
from hscc_search.dense.networks import build_network, kaiming_initialise, user_module_source
from hscc_search.dense.training import train
from hscc_search.dense.weights import load_weights, read_checkpoint, weights_digest
from hscc_search.errors import StudyError
from hscc_search.files import cache_folder
from hscc_search.progress import Progress, Report, silent

# Part of the cache key: raise it when the same configuration would train to other weights.
_TRAINING_VERSION = 1


@dataclass(frozen=True, eq=False)
class Opened:
    """Images, split and dense network of a study.

    Attributes:
        config: of the study.
        dataset: all images.
        parts: the same images, divided.
        network: the dense network with its weights, in evaluation mode.
        device: where the network is.
    """

    config: StudyConfig
    dataset: Dataset
    parts: Parts
    network: nn.Module
    device: torch.device


def open_dense(
    config: StudyConfig,
    device: str = "auto",
    report: Report = silent,
    fingerprint: str | None = None,
    weights: str | None = None,
    labels: np.ndarray | None = None,
) -> Opened:
    """Open the images and the dense network of a study, and train the network unless its weights are in the cache.

    Args:
        config: of the study.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading and training.
        fingerprint: of the images that the study was started on, None for a new study.
        weights: digest of the dense network that the study was started with, None for a new study.
        labels: of the validation part that the study was started on, None for a new study.

    Raises:
        HsccError: the images or the network cannot be used, a metric names an unknown class, or the study was started
            with other images or another network.
    """
    chosen_device = choose_device(device)
    dataset = load_dataset(config.data, report)
    # Checked before a network would be trained on the wrong images.
    if fingerprint not in (None, dataset.fingerprint):
        raise StudyError(
            f"study {config.name} was started on other images than those at {config.data.path}: "
            "give the same images with --data DIR, or start a study of another name on these"
        )
    config.check_classes(dataset.classes)
    parts = split(dataset, config.data.validation, config.data.test, config.data.split_seed)
    if labels is not None and not np.array_equal(labels, parts.validation.labels):
        raise StudyError(
            f"study {config.name} was started on another split of these images (version 0.1.0 took images of equal "
            "shape and other colours for copies): start a study of another name on them"
        )
    network = _with_weights(config, dataset, parts, chosen_device, report)
    if weights not in (None, weights_digest(network)):
        raise StudyError(
            f"study {config.name} was started with another dense network: "
            "give the same weights with --checkpoint FILE, or start a study of another name with this one"
        )
    return Opened(config, dataset, parts, network, chosen_device)


def _with_weights(
    config: StudyConfig, dataset: Dataset, parts: Parts, device: torch.device, report: Report
) -> nn.Module:
    """Build the dense network with weights from the checkpoint, from the cache, or trained now."""
    network = build(config, len(dataset.classes))
    if config.model.checkpoint is not None:
        state = read_checkpoint(config.model.checkpoint)
        load_weights(network, state, f"checkpoint {config.model.checkpoint}")
    else:
        path = checkpoint_path(config, dataset)
        if not path.exists():
            with _exclusively(path, Progress("training the dense network", 0, config.training.epochs), report):
                if not path.exists():
                    train(network, config, parts, path, device, report)
        load_weights(network, read_checkpoint(path), f"checkpoint {path}")
    return network.to(device).eval()


@contextmanager
def _exclusively(path: Path, progress: Progress, report: Report) -> Iterator[None]:
    """Hold the lock of a file while it is made; where another process holds the lock, report that and wait."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        acquired = lock.acquire(blocking=False)
    except Timeout:
        report(replace(progress, note="waiting for another process that trains it"))
        acquired = lock.acquire()
    with acquired:
        yield


def build(config: StudyConfig, classes: int) -> nn.Module:
    """Build the dense network of a study before any training; equal seeds give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = build_network(config.model.name, classes, config.data.image_size, config.model.weights)
        # Published weights are kept, and so are those of a user's own function, which may have loaded them.
        if config.model.weights is None and ":" not in config.model.name:
            kaiming_initialise(network)
    return network


def checkpoint_path(config: StudyConfig, dataset: Dataset) -> Path:
    """Path of the trained weights of a study in the cache, named by a digest of all that they depend on."""
    key = {
        "version": _TRAINING_VERSION,
        "seed": config.seed,
        "model": config.model.model_dump(exclude={"checkpoint"}),
        "source": user_module_source(config.model.name),
        "training": config.training.model_dump(),
        "data": config.data.model_dump(exclude={"path", "class_level", "copies"}),
        "fingerprint": dataset.fingerprint,
    }
    if dataset.judgement:  # else the split is that of version 0.1.0, whose weights are still found
        key["copies"] = dataset.judgement
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    name = config.model.name.replace(":", "-").replace("/", "-")
    return cache_folder("checkpoints") / f"{name}-{digest}.safetensors"
