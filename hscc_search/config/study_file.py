"""Read a study file as a tree of plain values, with its variables and relative paths resolved."""

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hscc_search.config.yaml_file import read_yaml, shown
from hscc_search.errors import ConfigError, quoted, shortened
from hscc_search.resources import resource_folder

# Keys whose values name a folder, a file or a database, with the option that replaces each.
_LOCATIONS = {
    "data.path": "--data PATH",
    "model.checkpoint": "--checkpoint FILE",
    "storage": "--storage URL",
}
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)


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
    what_it_is = _what_is_no_file(path)
    raise ConfigError(
        f"no study file {shown(study)}{what_it_is}: give a path to a YAML file or one of {', '.join(shipped)}"
    )


def _what_is_no_file(path: Path) -> str:
    """Say what a path is that is no file; empty where there is nothing."""
    with contextlib.suppress(OSError, ValueError):
        mode = path.stat().st_mode
        return ", which is a folder" if stat.S_ISDIR(mode) else ", which is a pipe or a device"
    return ""


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
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"study file {shown(path)} must hold keys such as name, data and model")
    for key, option in _LOCATIONS.items():
        if key not in overrides:
            _resolve_location(tree, key, option, path)
    for key, value in overrides.items():
        _replace(tree, key.split("."), value)
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
                f"study file {shown(study_file)}: {key}: environment variable {shortened(name)} is not set: "
                f"set it or give {option}"
            )
        return os.environ[name]

    text = _VARIABLE.sub(variable, section[last])
    try:
        section[last] = text if key == "storage" else study_file.parent.absolute() / Path(text).expanduser()
    except (RuntimeError, ValueError) as error:  # ValueError: no name of a user at all
        raise ConfigError(
            f"study file {shown(study_file)}: {key}: {quoted(text)} names a user without a home folder"
        ) from error


def _replace(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        section = tree.setdefault(key, {})
        if not isinstance(section, dict):
            return  # of the wrong type, which checking the tree reports
        tree = section
    tree[keys[-1]] = value
