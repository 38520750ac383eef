"""Open the images, the split and the dense network of a study together."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn

from hscc_search.cache import TRAINING_LOCK, cache_folder, warn_unwritable
from hscc_search.config import StudyConfig
from hscc_search.data import Dataset, Parts, load_dataset, split
from hscc_search.dense.device import choose_device
from hscc_search.dense.networks import build_network, kaiming_initialise, user_module_source
from hscc_search.dense.training import train
from hscc_search.dense.weights import load_weights, read_checkpoint, read_trained, weights_digest
from hscc_search.errors import ModelError, StudyError, UnwritableError
from hscc_search.files import check_writable
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
) -> Opened:
    """Open the images and the dense network of a study, and train the network unless its weights are in the cache.

    Args:
        config: of the study.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading and training.
        fingerprint: of the images that the study was started on, None for a new study.
        weights: digest of the dense network that the study was started with, None for a new study.

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
        if not _load_trained(network, path):
            with _exclusively(path, Progress("training the dense network", 0, config.training.epochs), report) as kept:
                if not (kept and _load_trained(network, path)):
                    train(network, config, parts, path if kept else None, device, report)
    return network.to(device).eval()


def _load_trained(network: nn.Module, path: Path) -> bool:
    """Load weights from the cache; False where there are none, or not those that were written for this network."""
    state = read_trained(path)
    if state is None:
        return False
    try:
        load_weights(network, state, f"checkpoint {path}")
    except ModelError:
        return False
    return True


@contextmanager
def _exclusively(path: Path, progress: Progress, report: Report) -> Iterator[bool]:
    """Hold the lock of a file while it is made; where another process holds the lock, report that and wait.

    Yields whether the file can be written at all; where it cannot, that is told and nothing is locked.
    """
    try:
        check_writable(path.parent, path)
    except UnwritableError:
        warn_unwritable()
        yield False
        return
    lock = FileLock(path.with_suffix(TRAINING_LOCK))
    try:
        acquired = lock.acquire(blocking=False)
    except Timeout:
        report(replace(progress, note="waiting for another process that trains it"))
        acquired = lock.acquire()
    with acquired:
        yield True


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
        "data": config.data.model_dump(exclude={"path"}),
        "fingerprint": dataset.fingerprint,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    name = config.model.name.replace(":", "-").replace("/", "-")
    return cache_folder("checkpoints") / f"{name}-{digest}.safetensors"
