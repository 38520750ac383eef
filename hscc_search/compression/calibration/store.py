"""The folder in the cache that keeps a calibration for other processes."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_search.compression.calibration.lattice import Lattice
from hscc_search.compression.calibration.record import Inputs, LayerRecord
from hscc_search.compression.form import Fold

# Raise it whenever what is kept changes, in form or in content.
_VERSION = 3


_TREE, _STATISTICS, _IMAGES = "calibration.json", "statistics.npz", "images.npy"


# What reading a damaged folder raises.
DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Kept:
    """What a folder keeps of one :class:`hscc_search.compression.calibration.calibrate.Calibration`, under the same names."""

    images: torch.Tensor
    folds: tuple[Fold, ...]
    records: tuple[LayerRecord, ...]
    left_dense: dict[str, tuple[int, str]]


def key(network: nn.Module, images: torch.Tensor, batch_size: int) -> str:
    """SHA-256, in hexadecimal, of all that a calibration follows from."""
    digest = hashlib.sha256(f"{_VERSION} {batch_size} {type(network).__qualname__} {network}".encode())
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    for name, value in [*named, ("images", images)]:
        values, channels_last = _in_order(value.detach().cpu())
        digest.update(f"{name} {value.dtype} {list(values.shape)} {channels_last}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(folder: Path, kept: Kept) -> None:
    """Add to a folder, which holds the responses, all that :func:`read` needs."""
    images, channels_last = _in_order(kept.images.detach().cpu())
    np.save(folder / _IMAGES, images.numpy())
    arrays: dict[str, Any] = {}
    for at, record in enumerate(kept.records):
        arrays |= {f"effects.{at}": record.effects, f"profiles.{at}": record.profiles}
        if record.inputs is not None:
            arrays[f"covariance.{at}"] = record.inputs.covariance
    np.savez(folder / _STATISTICS, **{name: value.cpu().numpy() for name, value in arrays.items()})
    tree = {
        "channels_last": channels_last,
        "folds": [asdict(fold) for fold in kept.folds],
        "records": [_stored(record) for record in kept.records],
        "left_dense": kept.left_dense,
        "sizes": {file.name: file.stat().st_size for file in folder.iterdir()},
    }
    (folder / _TREE).write_text(json.dumps(tree, indent=1))


def read(folder: Path, device: torch.device) -> Kept:
    """Undo :func:`write`.

    Args:
        folder: that was written.
        device: of the images and the statistics; the responses stay in their files.

    Raises:
        Exception: one of ``DAMAGE``, when a file is missing or not what was written.
    """
    tree = json.loads((folder / _TREE).read_text())
    for name, size in tree["sizes"].items():
        if (folder / name).stat().st_size != size:
            raise ValueError(f"{name} is not of the size that it was written with")
    images = torch.from_numpy(np.load(folder / _IMAGES, mmap_mode="c"))
    with np.load(folder / _STATISTICS) as statistics:
        arrays = {name: torch.from_numpy(statistics[name]) for name in statistics.files}
    return Kept(
        (images.permute(0, 3, 1, 2) if tree["channels_last"] else images).to(device),
        tuple(Fold(**fold) for fold in tree["folds"]),
        tuple(_record(folder, at, stored, arrays, device) for at, stored in enumerate(tree["records"])),
        {name: (macs, reason) for name, (macs, reason) in tree["left_dense"].items()},
    )


def _stored(record: LayerRecord) -> dict[str, Any]:
    """JSON-compatible values: all but the arrays."""
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


def _record(
    folder: Path, at: int, stored: dict[str, Any], arrays: Mapping[str, torch.Tensor], device: torch.device
) -> LayerRecord:
    """Undo :func:`_stored`."""
    inputs, bounds = stored["inputs"], stored["bounds"]
    record = LayerRecord(
        name=stored["name"],
        lattice=Lattice(**stored["lattice"]),
        effects=arrays[f"effects.{at}"].to(device),
        profiles=arrays[f"profiles.{at}"],
        inputs=inputs
        and Inputs(
            (inputs["size"][0], inputs["size"][1]), arrays[f"covariance.{at}"].to(device), inputs["correlation"]
        ),
        macs=stored["macs"],
        groups=stored["groups"],
        fully_connected=stored["fully_connected"],
        bounds=bounds and tuple(bounds),
        file=folder / stored["file"],
    )
    if record.responses.shape[::2] != record.effects.shape:
        raise ValueError(f"the responses of {record.name} are not those that were written")
    return record


def _in_order(values: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Values in the order of the memory, and whether that is channels last: sums in another order round otherwise."""
    channels_last = (
        values.dim() == 4 and not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last)
    )
    return (values.permute(0, 2, 3, 1) if channels_last else values.contiguous()), channels_last
