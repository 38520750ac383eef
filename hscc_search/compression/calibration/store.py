"""Format of a calibration in the cache, where all processes of a machine find it.

::

    calibration.json   everything that is no array
    statistics.npz     effects, profiles and input statistics of all layers
    images.npy         the calibration images
    0.npy, 1.npy, ...  the responses of each layer

The cache adds checksums of all files and compares them before they are read, see :mod:`hscc_search.cache`. Responses
and images are mapped when they are read, so that all processes share one copy in the machine's page cache.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_search.compression.calibration.lattice import Lattice
from hscc_search.compression.calibration.record import InputStatistics, LayerRecord
from hscc_search.compression.form import Fold, PlainLayer
from hscc_search.compression.inspection import Inspection

# Part of the key, so that a calibration of another version is not found. Raise it whenever the format changes, or what
# a calibration computes.
_VERSION = 7

_TREE, _STATISTICS, _IMAGES = "calibration.json", "statistics.npz", "images.npy"


@dataclass(frozen=True)
class StoredCalibration:
    """The part of a :class:`hscc_search.compression.calibration.calibrate.Calibration` that a folder stores.

    Its attributes are those of the calibration. The network is not stored: the reader has it.
    """

    images: torch.Tensor
    plain: tuple[PlainLayer, ...]
    folds: tuple[Fold, ...]
    records: tuple[LayerRecord, ...]
    inspection: Inspection


def cache_key(network: nn.Module, images: torch.Tensor, batch_size: int) -> str:
    """SHA-256, in hexadecimal, of everything that a calibration depends on."""
    digest = hashlib.sha256(f"{_VERSION} {batch_size} {type(network).__qualname__} {network}".encode())
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    for name, value in [*named, ("images", images)]:
        values, channels_last = _in_order(value.detach().cpu())
        digest.update(f"{name} {value.dtype} {list(values.shape)} {channels_last}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_calibration(folder: Path, calibration: StoredCalibration) -> None:
    """Write all files of a calibration but the responses, which are in the folder already."""
    images, channels_last = _in_order(calibration.images.detach().cpu())
    np.save(folder / _IMAGES, images.numpy())
    arrays: dict[str, Any] = {}
    for number, record in enumerate(calibration.records):
        arrays |= {f"effects.{number}": record.effects, f"profiles.{number}": record.profiles}
        if record.inputs is not None:
            arrays[f"covariance.{number}"] = record.inputs.covariance
    np.savez(folder / _STATISTICS, **{name: value.cpu().numpy() for name, value in arrays.items()})
    tree = {
        "channels_last": channels_last,
        "plain": [asdict(layer) for layer in calibration.plain],
        "folds": [asdict(fold) for fold in calibration.folds],
        "records": [_layer_stored(record) for record in calibration.records],
        "inspection": calibration.inspection.stored(),
    }
    (folder / _TREE).write_text(json.dumps(tree, indent=1))


def read_calibration(folder: Path, device: torch.device) -> StoredCalibration:
    """Undo :func:`write_calibration`.

    Args:
        folder: a folder that :func:`write_calibration` has completed.
        device: for the images and the statistics; the responses stay in their files.
    """
    tree = json.loads((folder / _TREE).read_text())
    images = torch.from_numpy(np.load(folder / _IMAGES, mmap_mode="c"))
    if tree["channels_last"]:
        images = images.permute(0, 3, 1, 2)
    with np.load(folder / _STATISTICS) as statistics:
        arrays = {name: torch.from_numpy(statistics[name]) for name in statistics.files}
    records = [
        _layer_from_stored(folder, number, stored, arrays, device) for number, stored in enumerate(tree["records"])
    ]
    return StoredCalibration(
        images=images.to(device),
        plain=tuple(PlainLayer.from_stored(layer) for layer in tree["plain"]),
        folds=tuple(Fold(**fold) for fold in tree["folds"]),
        records=tuple(records),
        inspection=Inspection.from_stored(tree["inspection"]),
    )


def _layer_stored(record: LayerRecord) -> dict[str, Any]:
    """JSON-compatible values of a record, without its arrays."""
    return {
        "name": record.name,
        "lattice": asdict(record.lattice),
        "inputs": record.inputs and {"size": record.inputs.size, "correlation": record.inputs.correlation},
        "macs": record.macs,
        "groups": record.groups,
        "fully_connected": record.fully_connected,
        "bounds": record.bounds,
        "file": record.file.name,
    }


def _layer_from_stored(
    folder: Path, number: int, stored: dict[str, Any], arrays: Mapping[str, torch.Tensor], device: torch.device
) -> LayerRecord:
    """Undo :func:`_layer_stored`."""
    bounds, inputs = stored["bounds"], None
    if stored["inputs"] is not None:
        height, width = stored["inputs"]["size"]
        covariance = arrays[f"covariance.{number}"].to(device)
        inputs = InputStatistics((height, width), covariance, stored["inputs"]["correlation"])
    return LayerRecord(
        name=stored["name"],
        lattice=Lattice(**stored["lattice"]),
        effects=arrays[f"effects.{number}"].to(device),
        profiles=arrays[f"profiles.{number}"],
        inputs=inputs,
        macs=stored["macs"],
        groups=stored["groups"],
        fully_connected=stored["fully_connected"],
        bounds=bounds and tuple(bounds),
        file=folder / stored["file"],
    )


def _in_order(values: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Values in their order in memory, and whether that is channels last.

    The order is stored, since sums in another order round differently.
    """
    channels_last = (
        values.dim() == 4 and not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last)
    )
    return (values.permute(0, 2, 3, 1) if channels_last else values.contiguous()), channels_last
