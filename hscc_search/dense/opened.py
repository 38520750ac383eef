"""Open the images, the split and the dense network of a study together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hscc_search.cache import warn_unwritable
from hscc_search.config import StudyConfig
from hscc_search.data import Dataset, Parts, load_dataset, split
from hscc_search.data.dataset import kept_labels
from hscc_search.dense.cached import checkpoint_path, exclusively, path_before, read_cached
from hscc_search.dense.device import choose_device
from hscc_search.dense.identity import START, UNKNOWN, changed_parts, identity
from hscc_search.dense.start import Start, build, start_of
from hscc_search.dense.training import train
from hscc_search.dense.weights import (
    check_values,
    learnt,
    load_checkpoint,
    read_checkpoint,
    tensors_digest,
    weights_digest,
)
from hscc_search.errors import ConfigError, ModelError, StudyError, UnwritableError
from hscc_search.evaluation.normalisation import channel_statistics
from hscc_search.evaluation.predictions import predict
from hscc_search.progress import Notice, Progress, Report, silent


@dataclass(frozen=True, eq=False)
class Opened:
    """Images, split and dense network of a study.

    Attributes:
        config: of the study.
        dataset: all images.
        parts: the same images, divided.
        network: the dense network with its weights, in evaluation mode.
        device: where the network is.
        identity: of the network, see :func:`hscc_search.dense.identity.identity`; its weights at build only where these
            were trained or kept.
        weights_file: the checkpoint or the file in the cache that holds the weights; None where no file does.
        given: whether the weights come with the network.
    """

    config: StudyConfig
    dataset: Dataset
    parts: Parts
    network: nn.Module
    device: torch.device
    identity: Mapping[str, str] = field(default_factory=dict)
    weights_file: Path | None = None
    given: bool = False

    @property
    def trained_elsewhere(self) -> bool:
        """Tell whether the weights come from a checkpoint or with the network, trained on images that are not known."""
        return self.given or self.config.model.checkpoint is not None


def open_dense(
    config: StudyConfig,
    device: str = "auto",
    report: Report = silent,
    fingerprint: str | None = None,
    weights: str | None = None,
    network: Mapping[str, str] | None = None,
    labels: np.ndarray | None = None,
    look: Callable[[Opened], None] | None = None,
    keep: bool = False,
) -> Opened:
    """Open the images and the dense network of a study, and train the network unless it has trained weights.

    Args:
        config: of the study.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading and training, and of what becomes of the weights before it happens.
        fingerprint: of the images that the study was started on, None for a new study.
        weights: digest of the dense network that the study was started with, None for a new study.
        network: identity of that network; None or empty for a new study, and for one that stored none.
        labels: of the validation part that the study was started on, as
            :func:`hscc_search.data.dataset.kept_labels` keeps them; None for a new study.
        look: called with the images and the network as it is built, before anything is trained.
        keep: whether not to train at all where the cache cannot keep the weights.

    Raises:
        HsccError: the images or the network cannot be used, a metric names an unknown class, or the study was started
            with other images or another network.
        UnwritableError: the network is to be trained, and its weights are to be kept and could not be.
    """
    opened = open_built(config, device, report, fingerprint, labels)
    if network:
        _check_code(opened, network)
    if look is not None:
        look(opened)
    opened = _with_weights(opened, report, weights, network or {}, keep)
    if weights not in (None, weights_digest(opened.network)):
        raise StudyError(
            f"study {config.name} was started with another dense network: "
            "give the same weights with --checkpoint FILE, or start a study of another name with this one"
        )
    return replace(opened, network=opened.network.to(opened.device).eval())


def open_built(
    config: StudyConfig,
    device: str = "auto",
    report: Report = silent,
    fingerprint: str | None = None,
    labels: np.ndarray | None = None,
) -> Opened:
    """Open the images of a study, and build its dense network without training it.

    The arguments are those of :func:`open_dense`.

    Raises:
        HsccError: the images or the network cannot be used, a metric names an unknown class, or the study was started
            with other images.
    """
    chosen_device = choose_device(device)
    # Checked before a network would be trained on the wrong images.
    dataset, parts = same_images(config, report, fingerprint, labels)
    config = _with_normalisation(config, parts, report)
    built = build(config, len(dataset.classes), dataset.maps)
    return Opened(config, dataset, parts, built, chosen_device, identity(built))


def _with_normalisation(config: StudyConfig, parts: Parts, report: Report) -> StudyConfig:
    """The same study with the mean and std of its train part, where it asks for them and does not hold them yet."""
    if config.data.mean:
        return config
    if parts.train.images.dtype.kind == "f":
        raise ConfigError(
            f"study {config.name}: data.normalisation: dataset is for pixels: floating-point inputs of a data set of "
            "your own go into the network as they are"
        )
    mean, std = channel_statistics(parts.train.images)
    report(Notice(f"normalisation: of the train part: mean {list(mean)}, std {list(std)}"))
    return config.model_copy(update={"data": config.data.normalised_by(mean, std)})


def same_images(
    config: StudyConfig, report: Report, fingerprint: str | None, labels: np.ndarray | None
) -> tuple[Dataset, Parts]:
    """Read and split the images of a study; the arguments are those of :func:`open_dense`.

    Raises:
        HsccError: they cannot be used, or they or their split are others than those that the study was started with.
    """
    dataset = load_dataset(config.data, report)
    if fingerprint not in (None, dataset.fingerprint):
        raise StudyError(
            f"study {config.name} was started on other images than those at "
            f"{config.data.path or config.data.factory or config.data.source}: "
            "give the same images with --data PATH, or start a study of another name on these"
        )
    config.check_classes(dataset.classes)
    if dataset.maps:
        config.check_maps()
    parts = split(dataset, config.data.validation, config.data.test, config.data.split_seed)
    if labels is not None and not np.array_equal(labels, kept_labels(parts.validation.labels, len(dataset.classes))):
        raise StudyError(
            f"study {config.name} was started on another split of these images (version 0.1.0 took images of equal "
            "shape and other colours for copies): start a study of another name on them"
        )
    return dataset, parts


def _check_code(opened: Opened, before: Mapping[str, str]) -> None:
    """Refuse a network whose structure or code is not that of the study."""
    changed = changed_parts(before, opened.identity)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        verb = "has" if len(changed) == 1 else "have"
        raise StudyError(
            f"study {opened.config.name} was started with another dense network: "
            f"{', '.join(changed[:3])}{more} of {opened.config.model.name} {verb} changed: "
            "restore what was changed, or start a study of another name with this network"
        )


def with_checkpoint(opened: Opened, checkpoint: Path, report: Report) -> Opened:
    """Load the weights of a checkpoint into a network that was built."""
    line = load_checkpoint(opened.network, checkpoint, opened.config.model.checkpoint_key)
    report(Notice(f"training: none: the weights are those of checkpoint {checkpoint}"))
    if line is not None:
        report(Notice(line))
    return replace(opened, weights_file=checkpoint, identity={**opened.identity, START: "checkpoint"})


def _with_weights(opened: Opened, report: Report, weights: str | None, before: Mapping[str, str], keep: bool) -> Opened:
    """Give the dense network its weights: from the checkpoint, as they come, from the cache, or trained now."""
    config, network = opened.config, opened.network
    if config.model.checkpoint is not None:
        return with_checkpoint(opened, config.model.checkpoint, report)
    if before.get(START, opened.identity[START]) != opened.identity[START]:
        raise StudyError(
            f"study {config.name} was started with another dense network, of other weights before training: "
            "give the trained ones with --checkpoint FILE, or start a study of another name with this network"
        )
    check_values(learnt(network), f"{config.model.name}, as it is built,")
    start = start_of(config, len(opened.dataset.classes), network, lambda: _knows_something(opened))
    if start.trained:
        return _trained(opened, start, report, weights, keep)
    report(Notice(f"training: {start.words}"))
    return replace(opened, given=True)


def _trained(opened: Opened, start: Start, report: Report, weights: str | None, keep: bool) -> Opened:
    """Take trained weights from the cache, or train the network now."""
    config, network, name = opened.config, opened.network, opened.config.model.name
    path = checkpoint_path(config, opened.dataset, opened.identity)
    for known in (path, *_trained_before(opened, weights)):
        if read_cached(network, known, report):
            report(Notice(f"training: none: {name} was trained before, and its weights are in {known}"))
            return replace(opened, weights_file=known)
    report(Notice(f"training: {start.words}"))
    if opened.dataset.maps and config.training.affine and opened.dataset.images.dtype.kind != "f":
        report(Notice("training: images are not turned, shifted and scaled (training.affine), since targets are maps"))
    with exclusively(path, Progress("training the dense network", 0, config.training.epochs), report) as kept:
        if not kept and keep:
            raise UnwritableError(f"{path.parent} cannot be written to: set HSCC_CACHE to another folder")
        if not kept:
            warn_unwritable()
        unknown = [part for part, digest in opened.identity.items() if digest == UNKNOWN]
        if kept and (unknown or not start.repeatable):
            reason = f"{unknown[0]} cannot be compared" if unknown else f"{name} gives other weights on each call"
            report(Notice(f"training: {reason}, so nothing is taken from the cache: go on with --checkpoint {path}"))
        if not (kept and read_cached(network, path, report)):
            train(network, config, opened.parts, path if kept else None, opened.device, report)
    return replace(opened, weights_file=path if kept else None)


def _trained_before(opened: Opened, weights: str | None) -> tuple[Path, ...]:
    """The file of version 1 with the weights of a study that goes on; none for a new study.

    Args:
        opened: with the network as it was built.
        weights: digest of the weights that the study was started with; the name of the file says too little.
    """
    path = path_before(opened.config, opened.dataset)
    try:
        return (path,) if path.exists() and tensors_digest(read_checkpoint(path).tensors) == weights else ()
    except (ModelError, OSError):  # damaged, or in a folder of another user
        return ()


def _knows_something(opened: Opened) -> bool:
    """Tell whether a network is right more often on validation images than naming the commonest class always is."""
    validation = opened.parts.validation
    predicted = predict(opened.network.to(opened.device), validation, opened.config.data, opened.device).argmax(axis=1)
    accuracy = float((predicted == validation.labels).mean())
    error = float(np.sqrt(accuracy * (1 - accuracy) / len(validation)))
    return bool(accuracy - 2 * error > np.bincount(validation.labels.ravel()).max() / validation.labels.size)
