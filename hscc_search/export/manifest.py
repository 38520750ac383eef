"""The files of an exported folder beside its models: written, and compared with its manifest."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hscc_search.errors import ExportError
from hscc_search.export import run
from hscc_search.export.run import MANIFEST, REFERENCE
from hscc_search.files import sha256

SCRIPT = "run.py"


def write_manifest(folder: Path) -> None:
    """Write the digests of a folder's files, by which :func:`check_digests` sees what was changed."""
    listed = sorted(path for path in folder.iterdir() if path.name not in run.UNLISTED)
    write_json(folder / MANIFEST, {"sha256": {path.name: sha256(path) for path in listed}})


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what ``run.py`` refuses into an error of this package."""
    try:
        yield
    except run.Refused as error:
        raise ExportError(str(error)) from error


def check_digests(folder: Path, names: Sequence[str]) -> None:
    """Compare some files of a folder with the manifest.

    Raises:
        ExportError: the folder has no readable manifest, the manifest names what is no file of the folder, or a file
            is missing, a link, or was changed.
    """
    if not (folder / MANIFEST).is_file():
        raise ExportError(f"{folder} is not an exported folder: it has no readable {MANIFEST}")
    with refusing():
        for fault in run.changed_files(folder, names):
            raise ExportError(f"{fault}: export again")


def write_script(folder: Path) -> None:
    """Copy ``run.py`` into a folder."""
    shutil.copyfile(run.__file__, folder / SCRIPT)


def write_reference(folder: Path, scores: Mapping[str, np.ndarray], tolerances: Mapping[str, float]) -> None:
    """Write what models answer to the inputs that ``run.py`` makes.

    Args:
        folder: of the models.
        scores: of each by the name of its file.
        tolerances: how far answers may be from these, as a share of the largest score, likewise.
    """
    numbers = {name: run.some_numbers(values) for name, values in scores.items()}
    tree = {"inputs": "made_inputs() of run.py", "tolerances": dict(tolerances), "scores": numbers}
    (folder / REFERENCE).write_text(json.dumps(tree) + "\n", encoding="utf-8")


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a file of an exported folder as JSON."""
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def write_yaml(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a file of an exported folder as YAML."""
    path.write_text(yaml.safe_dump(dict(tree), sort_keys=False), encoding="utf-8")
