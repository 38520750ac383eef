"""Calibration: what one pass of the dense network over calibration images tells of its layers."""

import shutil
import tempfile
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from hscc_search.compression.calibration.batch_norm import absorb
from hscc_search.compression.calibration.dense_pass import run_dense
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.calibration.store import DAMAGE, cache_key, read_calibration, write_calibration
from hscc_search.compression.form import Fold
from hscc_search.compression.inspection import Inspection
from hscc_search.compression.stand_ins import copied
from hscc_search.errors import CompressionError
from hscc_search.files import (
    TemporaryFolder,
    cache_folder,
    folder_written_whole,
    mark_used,
    remove_abandoned,
    remove_unused,
)
from hscc_search.progress import Report, silent

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
        network: the dense network with its batch norms folded into the layers before them.
        folds: the folded batch norms.
        images: as the network takes them, float32 (images, 3, height, width).
        records: the layers that can be compressed, in execution order.
        inspection: of the network, layer by layer.
        folder: the folder of the responses where it is removed with this object, None where it stays in the cache.
    """

    network: nn.Module
    folds: tuple[Fold, ...]
    images: torch.Tensor
    records: tuple[LayerRecord, ...]
    inspection: Inspection
    folder: TemporaryFolder | None = None
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
        images: as it takes them, float32 (images, 3, height, width).
        report: told after each batch.
        batch_size: images per batch.
        keep: whether to keep the calibration in the user's cache, and to take it from there if it is in it. One
            process then computes what all others on the machine read, and they share its memory.

    Raises:
        CompressionError: a weight or a response is not finite, nothing can be compressed, or the calibration in the
            cache is damaged and cannot be made again.
        ConfigError: there is no cache folder.
    """
    if keep:
        return _from_cache(network, images, report, batch_size)
    folder = TemporaryFolder(prefix="hscc-calibration-")
    folded, made = run_dense(network, images, folder.path, report, batch_size)
    return Calibration(folded, made.folds, images, made.records, made.inspection, folder)


def _from_cache(network: nn.Module, images: torch.Tensor, report: Report, batch_size: int) -> Calibration:
    """Read the calibration from the cache, where it is made first if there is none."""
    cache = cache_folder("calibrations")
    folder = cache / cache_key(network, images, batch_size)
    calibration = _read(folder, network, images.device)
    if calibration is None:
        remove_abandoned(cache)
        remove_unused(cache, _UNUSED_SECONDS)
        _make(folder, network, images, report, batch_size)
        calibration = _read(folder, network, images.device)
    if calibration is None:
        raise CompressionError(f"what was just written to {folder} cannot be read back: set HSCC_CACHE to a sound disk")
    return calibration


def _make(folder: Path, network: nn.Module, images: torch.Tensor, report: Report, batch_size: int) -> None:
    """Calibrate into a folder of the cache."""
    try:
        with folder_written_whole(folder) as temporary:
            _, made = run_dense(network, images, temporary, report, batch_size)
            write_calibration(temporary, made)
    except OSError:
        # Where another process was faster, its calibration is as good.
        if not folder.is_dir():
            raise


def _read(folder: Path, network: nn.Module, device: torch.device) -> Calibration | None:
    """Read a network's calibration from a folder. None without a folder; a damaged one is removed."""
    try:
        stored = read_calibration(folder, device)
    except DAMAGE as damage:
        if folder.exists():
            _remove_damaged(folder, damage)
        return None
    mark_used(folder)
    folded = copied(network).requires_grad_(True)
    absorb(folded, stored.folds)
    return Calibration(folded, stored.folds, stored.images, stored.records, stored.inspection)


def _remove_damaged(folder: Path, damage: Exception) -> None:
    try:
        # Moved out of the way of others first, since removing takes time; files that these have mapped stay readable.
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        shutil.rmtree(folder.rename(aside), ignore_errors=True)
    except FileNotFoundError:
        pass  # another process removed it
    except OSError as error:
        raise CompressionError(
            f"the calibration in {folder} is damaged ({damage}) and cannot be removed ({error.strerror})"
        ) from error
