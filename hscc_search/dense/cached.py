"""Trained weights in the user's cache folder: under which name they lie there, and how they are read."""

import hashlib
import importlib
import inspect
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from errno import EACCES, EROFS
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from hscc_search.cache import TRAINING_LOCK, cache_folder
from hscc_search.config import DataConfig, StudyConfig
from hscc_search.data import Dataset
from hscc_search.dense.identity import UNKNOWN
from hscc_search.dense.weights import load_weights, read_checkpoint
from hscc_search.errors import ModelError, UnwritableError
from hscc_search.files import check_writable
from hscc_search.progress import Notice, Progress, Report

# Part of the cache key: raise it when the same configuration would train to other weights.
_TRAINING_VERSION = 2
# What of the images' section does not stand in the key for itself: the fingerprint and the judgement hold what it does.
_JUDGED = {"path", "class_level", "factory", "copies", "columns", "groups", "split", "allow_leaks"}
# The fields that the key of version 1 was made of.
_FIELDS_BEFORE = {
    "model": ("name", "weights"),
    "training": (
        *("epochs", "batch_size", "learning_rate", "momentum", "weight_decay", "label_smoothing"),
        *("flip", "affine", "mixup"),
    ),
    "data": ("source", "image_size", "validation", "test", "split_seed", "mean", "std"),
}


def checkpoint_path(config: StudyConfig, dataset: Dataset, network: Mapping[str, str]) -> Path:
    """Path of the trained weights of a study in the cache, named by a digest of all that they depend on.

    Args:
        config: of the study.
        dataset: the images.
        network: identity of the network as it is built. Where a part of it is unknown the path is a new one each time.
    """
    key = {
        "version": _TRAINING_VERSION,
        "seed": config.seed,
        # The function that picks the scores is a part of the network's identity.
        "model": config.model.model_dump(exclude={"checkpoint", "checkpoint_key", "output"}),
        "network": dict(network),
        "training": config.training.model_dump(exclude={"when"}),
        "data": _data_key(config.data),
        "copies": dataset.judgement,  # decides on the split, as the fields left out do
        "fingerprint": dataset.fingerprint,
    }
    if UNKNOWN in network.values():
        key["network"] = uuid.uuid4().hex
    return _cache_path(config, key)


def _data_key(data: DataConfig) -> dict[str, Any]:
    """The fields of the images that a training depends on; those that came later count where they say something."""
    dumped = data.model_dump(include=set(_FIELDS_BEFORE["data"]))
    later = data.model_dump(exclude=set(_FIELDS_BEFORE["data"]) | _JUDGED, exclude_defaults=True)
    return dumped | later


def path_before(config: StudyConfig, dataset: Dataset) -> Path:
    """Path of the trained weights of a study in version 1 of the cache, which knew a user's network by its module."""
    tree = config.model_dump()
    key = {
        "version": 1,
        "seed": config.seed,
        "source": _module_source(config.model.name),
        **{section: {name: tree[section][name] for name in names} for section, names in _FIELDS_BEFORE.items()},
        "fingerprint": dataset.fingerprint,
    }
    return _cache_path(config, key)


def _cache_path(config: StudyConfig, key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    name = config.model.name.replace(":", "-").replace("/", "-")
    return cache_folder("checkpoints") / f"{name}-{digest}.safetensors"


def _module_source(name: str) -> str | None:
    """Read the text of the module of a name ``module:function``; None for other names, and without a text."""
    try:
        return inspect.getsource(importlib.import_module(name.partition(":")[0])) if ":" in name else None
    except (OSError, TypeError):
        return None


def read_cached(network: nn.Module, path: Path, report: Report) -> bool:
    """Read weights from a file of the cache into a network, and tell whether it was there and sound.

    A damaged file is removed, so that it is made again; where nothing can be written it stays.

    Raises:
        ModelError: it cannot be removed.
    """
    try:
        if not path.exists():
            return False
        load_weights(network, read_checkpoint(path).tensors, f"checkpoint {path}")
    except PermissionError:  # a folder of another user
        return False
    except ModelError as error:
        report(Notice(f"training: weights in the cache are of no use and made again: {error}"))
        try:
            path.unlink(missing_ok=True)
        except OSError as reason:
            if reason.errno not in (EACCES, EROFS):  # else what is trained is not kept either
                raise ModelError(f"cannot remove {path} ({reason.strerror}): remove it, or set HSCC_CACHE") from error
        return False
    return True


@contextmanager
def exclusively(path: Path, progress: Progress, report: Report) -> Iterator[bool]:
    """Hold the lock of a file while it is made; where another process holds the lock, report that and wait.

    Yields whether the file can be written at all; where it cannot, nothing is locked.
    """
    try:
        check_writable(path.parent, path)
    except UnwritableError:
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
