"""Calibration: what one pass of the dense network over calibration images tells of its layers."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from hscc_search.cache import DamagedError, Use, cache_folder, entry_written, tidy, use_entry, warn_unwritable
from hscc_search.compression.calibration.batch_norm import absorb
from hscc_search.compression.calibration.dense_pass import run_dense
from hscc_search.compression.calibration.plain_layers import plain_again
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.calibration.store import cache_key, read_calibration, write_calibration
from hscc_search.compression.form import Fold, PlainLayer
from hscc_search.compression.inspection import Inspection
from hscc_search.dense.trainable import make_trainable
from hscc_search.errors import CompressionError, UnwritableError
from hscc_search.progress import Report, silent
from hscc_search.temporary import TemporaryFolder

Derived = TypeVar("Derived")

# Images per batch wherever compression runs a network or a layer over calibration images.
BATCH_SIZE = 64
# Age at which an unused calibration is removed: one takes up to a gigabyte, and can be made again.
_UNUSED_SECONDS = 30 * 86400


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration images and what the dense network answered to them.

    The responses of all layers together may be larger than the memory. They lie in files, in a folder that is
    removed with this object or stays in the cache.

    Attributes:
        network: the dense network with its layers made plain, and its batch norms folded into the layers before them.
        plain: the layers whose weight is computed no longer.
        folds: the folded batch norms.
        images: as the network takes them, float32 (images, channels, height, width).
        records: the layers that can be compressed, in execution order.
        inspection: of the network, layer by layer.
        folder: the folder of the responses, which is removed with this object, or the use of an entry of the cache.
    """

    network: nn.Module
    plain: tuple[PlainLayer, ...]
    folds: tuple[Fold, ...]
    images: torch.Tensor
    records: tuple[LayerRecord, ...]
    inspection: Inspection
    folder: TemporaryFolder | Use | None = None
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def record(self, name: str) -> LayerRecord:
        """The record of one layer."""
        return next(record for record in self.records if record.name == name)

    def remember(self, key: Hashable, derive: Callable[[], Derived]) -> Derived:
        """Call ``derive`` once for a key and give its result from then on.

        The result must depend on this calibration and the key alone. What ``dataclasses.replace`` makes of a
        calibration remembers nothing.
        """
        if key not in self._derived:
            self._derived[key] = derive()
        derived: Derived = self._derived[key]
        return derived

    @property
    def macs(self) -> int:
        """Multiply-adds per image of the whole dense network."""
        return self.inspection.macs


def calibrate(
    network: nn.Module,
    images: torch.Tensor,
    report: Report = silent,
    batch_size: int = BATCH_SIZE,
    keep: bool = False,
) -> Calibration:
    """Run the dense network over calibration images, forwards and backwards, and record its responses.

    The effect of a response is the root mean square of the gradient that it receives from the log-likelihood of a
    class drawn from the network's own prediction, which is the square root of its diagonal Fisher information: how
    strongly, to second order, an error there moves the prediction.

    Args:
        network: the dense network; it is not changed.
        images: as it takes them, float32 (images, channels, height, width).
        report: told after each batch.
        batch_size: images per batch.
        keep: whether to keep the calibration in the user's cache, and to take it from there if it is in it. One
            process then computes what all others on the machine read, and they share its memory.

    Raises:
        ModelError: a weight is not finite, or the network is none whose answers depend on the image alone.
        CompressionError: a response is not finite, nothing can be compressed, or what was written to the cache cannot
            be read back.
        ConfigError: there is no cache folder.
        DiskFullError: there is no room for the responses.
    """
    if keep:
        return _from_cache(network, images, report, batch_size)
    folder = TemporaryFolder("hscc-calibration")
    folded, made = run_dense(network, images, folder.path, report, batch_size)
    return Calibration(folded, made.plain, made.folds, images, made.records, made.inspection, folder)


def _from_cache(network: nn.Module, images: torch.Tensor, report: Report, batch_size: int) -> Calibration:
    """Read the calibration from the cache, where it is made first if there is none."""
    cache = cache_folder("calibrations")
    entry = cache / cache_key(network, images, batch_size)
    calibration = _read(entry, network, images.device)
    if calibration is not None:
        return calibration
    tidy(cache, _UNUSED_SECONDS)
    try:
        _make(entry, network, images, report, batch_size)
    except UnwritableError:
        warn_unwritable()
        return calibrate(network, images, report, batch_size)
    calibration = _read(entry, network, images.device)
    if calibration is None:
        raise CompressionError(f"what was just written to {entry} cannot be read back: set HSCC_CACHE to a sound disk")
    return calibration


def _make(entry: Path, network: nn.Module, images: torch.Tensor, report: Report, batch_size: int) -> None:
    """Calibrate into an entry of the cache."""
    with entry_written(entry) as temporary:
        _, made = run_dense(network, images, temporary, report, batch_size)
        write_calibration(temporary, made)


def _read(entry: Path, network: nn.Module, device: torch.device) -> Calibration | None:
    """Read a network's calibration from an entry of the cache. None without an entry, or with a damaged one."""
    try:
        use = use_entry(entry)
    except DamagedError:
        return None
    stored = read_calibration(entry, device)
    folded = plain_again(network, stored.images[:1], stored.plain)
    make_trainable(folded)
    absorb(folded, stored.folds)
    return Calibration(folded, stored.plain, stored.folds, stored.images, stored.records, stored.inspection, use)
