"""Read a study file as a tree of plain values, with its variables and relative paths resolved."""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hscc_search.errors import ConfigError, one_line
from hscc_search.resources import resource_folder

# Keys whose values name a folder, a file or a database, with the option that replaces each.
_LOCATIONS = {
    "data.path": "--data DIR",
    "model.checkpoint": "--checkpoint FILE",
    "storage": "--storage URL",
}
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def find_study_file(study: str | Path) -> Path:
    """The path of a study file, given as a path or as the name of one that comes with the package.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(study)
    with contextlib.suppress(OSError):  # a name too long for a file
        if path.is_file():
            return path
    shipped = {file.stem: file for file in shipped_study_files()}
    if str(study) in shipped:
        return shipped[str(study)]
    raise ConfigError(f"no study file {study}: give a path to a YAML file or one of {', '.join(shipped)}")


def shipped_study_files() -> list[Path]:
    """The study files that come with the package, by name."""
    return sorted(resource_folder("studies").glob("*.yaml"))


def read_study_file(path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Read a study file as a mapping; its keys and values are not checked yet.

    Args:
        path: of the file.
        overrides: values by dotted key that replace those of the file.

    Raises:
        ConfigError: the file cannot be read, is malformed, or names an environment variable that is not set.
    """
    tree = _parse(path)
    for key, option in _LOCATIONS.items():
        if key not in overrides:
            _resolve_location(tree, key, option, path)
    for key, value in overrides.items():
        _replace(tree, key.split("."), value)
    return tree


def _parse(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML lets errors of its number and date readers, and of deep nesting, through as they are.
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"study file {path} is no YAML: {one_line(error)}") from error
    except OSError as error:
        raise ConfigError(f"cannot read study file {path}: {error.strerror}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"study file {path} must hold keys such as name, data and model")
    return tree


def _resolve_location(tree: dict[str, Any], key: str, option: str, study_file: Path) -> None:
    """Expand variables and ``~`` in the value of one key; a relative path starts at the folder of the study file."""
    *sections, last = key.split(".")
    section: Any = tree
    for name in sections:
        section = section.get(name) if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(section.get(last), str):
        return  # missing or of the wrong type, which checking the tree reports

    def variable(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ConfigError(
                f"study file {study_file}: {key}: environment variable {name} is not set: set it or give {option}"
            )
        return os.environ[name]

    text = _VARIABLE.sub(variable, section[last])
    try:
        section[last] = text if key == "storage" else study_file.parent.absolute() / Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"study file {study_file}: {key}: {text!r} names a user without a home folder") from error


def _replace(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        section = tree.setdefault(key, {})
        if not isinstance(section, dict):
            return  # of the wrong type, which checking the tree reports
        tree = section
    tree[keys[-1]] = value
