"""The reference of the study file, generated from its sections by ``python -m hscc_search.config.reference``."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hscc_search.config.study import StudyConfig
from hscc_search.files import written_whole
from hscc_search.resources import resource_folder

Schema = Mapping[str, Any]

COMMAND = "python -m hscc_search.config.reference"

_HEAD = f"""# The study file

Every key that a study file may have. Only `name`, `data` and `model` are required; `hscc-search run STUDY` names a key
that is wrong. Paths are relative to the study file and may start with `~`; paths and the storage may hold environment
variables such as `${{IMAGES}}`.

Generated from the code by `{COMMAND}`.
"""
# The kinds of JSON values in words.
_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}


def reference_path() -> Path:
    """The path of the reference."""
    return resource_folder("studies") / "REFERENCE.md"


def reference() -> str:
    """The reference as Markdown: a table for each section."""
    schema = StudyConfig.model_json_schema()
    parts = [_HEAD, _table("The whole file", schema, schema["$defs"])]
    parts += [_table(f"`{path}`", section, schema["$defs"]) for path, section in _sections(schema, schema["$defs"])]
    return "\n".join(parts)


def _sections(schema: Schema, definitions: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Go through the sections below one, each with its dotted path.

    A list of sections is called ``path[]``, and sections by name ``path.NAME``.
    """
    for key, field in schema["properties"].items():
        for kind in _kinds(field):
            name = f"{path}{key}"
            if kind.get("type") == "array":
                name, kind = f"{name}[]", kind["items"]
            elif "additionalProperties" in kind and kind.get("type") == "object":
                name, kind = f"{name}.NAME", kind["additionalProperties"]
            if "$ref" in kind:
                section = definitions[kind["$ref"].rpartition("/")[2]]
                yield name, section
                yield from _sections(section, definitions, f"{name}.")


def _table(title: str, section: Schema, definitions: Schema) -> str:
    """A section as a heading, its description, and a table with a row for each key."""
    required = section.get("required", ())
    lines = [f"## {title}", "", _one_line(section["description"]), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in section["properties"].items():
        value = " or ".join(_value(kind) for kind in _kinds(field))
        default = "required" if key in required else _default(field, definitions)
        lines.append(f"| `{key}` | {value} | {default} | {field['description']} |")
    return "\n".join([*lines, ""])


def _kinds(field: Schema) -> list[Schema]:
    """The kinds of values that a field allows, without null."""
    return [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]


def _value(kind: Schema) -> str:
    """The allowed values in words."""
    if "$ref" in kind:
        return "section"
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    if kind["type"] == "object":
        return "values by name"
    if kind["type"] == "array":
        return _list(kind)
    if kind.get("format") == "path":
        return "path"
    limits = _limits(kind)
    return f"{_KINDS[kind['type']]}, {limits}" if limits else _KINDS[kind["type"]]


def _list(kind: Schema) -> str:
    """The allowed items of a list, and their number, in words."""
    least, most = kind.get("minItems"), kind.get("maxItems")
    count = "" if least is None else f" of {least}" if least == most else f" of {least} to {most}"
    return f"list{count}; each: {_value(kind['items'])}"


def _limits(kind: Schema) -> str:
    """The bounds of a number; empty without any."""
    if "minimum" in kind and "maximum" in kind:
        return f"{kind['minimum']:.9g} to {kind['maximum']:.9g}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " and ".join(f"{sign} {kind[key]}" for key, sign in signs.items() if key in kind)


def _default(field: Schema, definitions: Schema) -> str:
    """The default of a key; that of a section with a table of its own is shown in that table."""
    default = field["default"]
    if default is None:
        return "none"
    if default == {}:
        return "none"
    if isinstance(default, dict):
        return f"`{{low: {default['low']}, high: {default['high']}}}`" if "low" in default else "its defaults"
    return f"`{json.dumps(default)}`"


def _one_line(text: str) -> str:
    """A docstring as Markdown on one line."""
    return " ".join(text.split()).replace("``", "`")


if __name__ == "__main__":
    with written_whole(reference_path()) as temporary:
        temporary.write_text(reference(), encoding="utf-8")
