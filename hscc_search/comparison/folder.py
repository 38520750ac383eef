"""The folder of a comparison: a file on what its networks share, and a file for each measured network.

::

    comparison.json   shared by all networks: study, images, checkpoint, epochs of fine-tuning
    rows/             a file for each network, written whole when it is measured

A comparison that was stopped can continue: a network that has a file is not measured again.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hscc_search.comparison.record import Asked, ComparedNetwork, ComparisonRecord
from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError
from hscc_search.files import check_new_folder, read_whole, written_whole

# Bytes of a file: one of a network holds its answer to each image.
_MOST_BYTES = 1 << 28


def claim(folder: Path, record: ComparisonRecord) -> StudyConfig:
    """Make the folder of a comparison, or check that it belongs to the same one.

    The same comparison may ask for other methods, budgets and splits, and may leave fine-tuning out; its number of
    epochs of fine-tuning stays the same once it is above 0.

    Returns:
        The configuration to go on with, see :meth:`hscc_search.config.StudyConfig.as_started`.

    Raises:
        ConfigError: the folder holds something else, is damaged, or cannot be written to.
    """
    if not os.path.lexists(folder):
        check_new_folder(folder)
    path = folder / "comparison.json"
    if path.exists():
        before = _read_record(path)
        record = replace(record, config=record.config.as_started(before.config))
        _check_same(folder, before, record)
        if record.epochs == 0:
            return record.config
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and holds no comparison: name another output folder")
    try:
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        _write(path, record.stored())
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}): name another output folder") from error
    return record.config


def network_path(folder: Path, asked: Asked) -> Path:
    """The path of the file of one network."""
    stage = f"{asked.epochs}epochs" + ("-refined" if asked.refined else "")
    return folder / "rows" / f"split{asked.seed}-{asked.method}-{asked.budget:.12g}x-{stage}.json"


def write_network(folder: Path, network: ComparedNetwork) -> None:
    """Write the file of a measured network."""
    _write(network_path(folder, network.asked), network.stored())


def read_network(path: Path) -> ComparedNetwork:
    """Read the file of a measured network.

    Raises:
        ConfigError: the file cannot be read, is damaged, or in a format that this version does not read.
    """
    try:
        return ComparedNetwork.from_stored(json.loads(read_whole(path, _MOST_BYTES)), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): make it readable") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: delete it, and it is measured again") from error


def read_comparison(folder: Path) -> tuple[ComparisonRecord, list[ComparedNetwork]]:
    """Read what a comparison has measured so far.

    Raises:
        ConfigError: the folder holds no comparison, or one that cannot be read, is damaged or of another format.
    """
    if not (folder / "comparison.json").is_file():
        raise ConfigError(f"{folder} holds no comparison: name a folder that `hscc-search compare --out` wrote")
    return _read_record(folder / "comparison.json"), [
        read_network(path) for path in sorted((folder / "rows").glob("split*.json"))
    ]


def _read_record(path: Path) -> ComparisonRecord:
    try:
        return ComparisonRecord.from_stored(json.loads(read_whole(path, _MOST_BYTES)), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}): make it readable, or name another folder") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: name another output folder") from error


def _check_same(folder: Path, before: ComparisonRecord, now: ComparisonRecord) -> None:
    """Check that two records are of the same comparison.

    Raises:
        ConfigError: they differ; the error names the differences.
    """
    differences = now.config.differences(before.config)
    if now.fingerprint != before.fingerprint:
        differences.append("other images")
    if now.checkpoint != before.checkpoint:
        differences.append("other checkpoint")
    if before.epochs and now.epochs and before.epochs != now.epochs:
        differences.append(f"finetune: {before.epochs} -> {now.epochs}")
    if now.config.refine != before.config.refine and any((folder / "rows").glob("*-refined.json")):
        differences.append("another refine section")
    if differences:
        raise ConfigError(f"{folder} holds another comparison ({'; '.join(differences)}): name another output folder")


def _write(path: Path, tree: Mapping[str, Any]) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
