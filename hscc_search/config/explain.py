"""Errors in a study file, explained in one line."""

import difflib
from typing import get_args

from pydantic import BaseModel, ValidationError

from hscc_search.errors import quoted, shortened


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Explain the first wrong key: its name, its value and what is allowed.

    Args:
        error: from validating a tree as ``root``.
        root: the model of the whole file.
    """
    first = error.errors(include_url=False)[0]
    key = shortened(".".join(map(str, first["loc"]))) or "file"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        allowed = _keys_beside(first["loc"], root)
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        suggestion = f"did you mean {close[0]}? " if close else ""
        return f"{key}: unknown key (value {quoted(first['input'])}): {suggestion}allowed here are {', '.join(allowed)}"
    if first["type"] == "missing":
        return f"{key}: missing: it has no default"
    if first["type"] == "value_error":  # raised by a section's own check, whose message names the value
        return f"{key}: {message}" if first["loc"] else message
    if first["type"] == "invalid_key":
        return f"{quoted(first['input'])} is not allowed as a key: keys are texts"
    if first["type"] == "model_type":
        return f"{key}: {quoted(first['input'])} is not allowed: it is a section, with keys of its own"
    return f"{key}: {quoted(first['input'])} is not allowed: {message[0].lower()}{message[1:]}"


def _keys_beside(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys that are allowed in place of a wrong one."""
    section = root
    for step in location[:-1]:
        # Indices into a list, and names that are no keys, are those of items, which are all of one section.
        if step in section.model_fields:
            section = _section_of(section.model_fields[str(step)].annotation)
    return list(section.model_fields)


def _section_of(annotation: object) -> type[BaseModel]:
    """The section among the types that a field allows."""
    (section,) = (
        allowed
        for allowed in (annotation, *get_args(annotation))
        if isinstance(allowed, type) and issubclass(allowed, BaseModel)
    )
    return section
