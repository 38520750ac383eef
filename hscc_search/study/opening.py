"""The images and the dense network of a stored study, and the images that it calibrates on."""

import numpy as np
import torch

from hscc_search.config import StudyConfig
from hscc_search.data.dataset import kept_labels
from hscc_search.data.grouping import in_order
from hscc_search.dense.opened import Opened, open_dense
from hscc_search.dense.weights import weights_digest
from hscc_search.errors import StudyError
from hscc_search.evaluation.draws import alone
from hscc_search.evaluation.predictions import network_input
from hscc_search.progress import Report, silent
from hscc_search.study.record import StudyRecord


def open_again(record: StudyRecord, config: StudyConfig, device: str = "auto", report: Report = silent) -> Opened:
    """Open the images and the dense network that a study was started with.

    Args:
        record: of the study.
        config: its configuration with the paths of this machine.
        device: ``auto``, ``cpu`` or ``cuda``.
        report: told of reading and training.

    Raises:
        HsccError: they cannot be used, or are others than those of the study.
    """
    opened = open_dense(
        config,
        device,
        report,
        fingerprint=record.fingerprint,
        weights=record.dense.weights,
        network=record.dense.network,
        labels=record.labels,
    )
    if not _same_groups(opened, record):
        raise StudyError(
            f"study {config.name} was started with other groups of images: restore them, or start a study of another "
            "name"
        )
    return opened


def _same_groups(opened: Opened, record: StudyRecord) -> bool:
    """Tell whether the same validation images belong together as when the study was started."""
    groups, stored = opened.parts.validation.groups, record.groups
    if stored is None or alone(groups):
        return stored is None and alone(groups)
    return np.array_equal(in_order(groups), in_order(stored))


def same_as_stored(opened: Opened, record: StudyRecord) -> Opened:
    """Check that images and dense network in memory are those that a study was started with.

    Raises:
        StudyError: they are others.
    """
    labels = kept_labels(opened.parts.validation.labels, len(opened.dataset.classes))
    same_labels = np.array_equal(labels, record.labels)
    if opened.dataset.fingerprint != record.fingerprint or not same_labels:
        other = "images"
    elif not _same_groups(opened, record):
        other = "groups of images"
    elif weights_digest(opened.network) != record.dense.weights:
        other = "weights of the dense network"
    else:
        return opened
    raise StudyError(f"study {record.config.name} was started with other {other}: start a study of another name")


def calibration_images(opened: Opened, count: int | None = None) -> torch.Tensor:
    """Draw the calibration images of a study, or a number of images in the same way.

    Returns:
        Normalised, float32, shape (images, channels, height, width), on the device.
    """
    return network_input(calibration_pixels(opened, count).to(opened.device), opened.config.data)


def calibration_pixels(opened: Opened, count: int | None = None) -> torch.Tensor:
    """The same images as they are stored: uint8, uint16 or float32, on the CPU."""
    config = opened.config
    subset = opened.parts.train.subset(count or config.compression.calibration_images, config.seed)
    return torch.from_numpy(np.asarray(subset.images))
