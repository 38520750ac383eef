"""Errors in a study file, explained in one line."""

import difflib
from typing import Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

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
    if first["type"] == "tuple_type":
        return f"{key}: {quoted(first['input'])} is not allowed: it is a list{_such_as(first, root)}"
    message = message.replace("Tuple should have", "it is a list of").replace(" after validation", "")
    return f"{key}: {quoted(first['input'])} is not allowed: {message[0].lower()}{message[1:]}"


def _such_as(error: ErrorDetails, root: type[BaseModel]) -> str:
    """Give an example of the list that is allowed in place of another value: two of its choices, or what it was."""
    location, value = error["loc"], error["input"]
    field = _section_at(location, root).model_fields.get(str(location[-1]))
    if field is None:
        return ""
    choices = _choices(field.annotation) or field.get_default() or ()
    if isinstance(value, (str, int, float)) and not choices:
        choices = (value, "...") if any(getattr(rule, "min_length", 0) > 1 for rule in field.metadata) else (value,)
    if choices:
        return f", such as [{shortened(', '.join(map(str, choices)))}]"
    return ", each item after a '- '" if isinstance(value, dict) else ""


def _choices(annotation: object) -> tuple[object, ...]:
    """Two of the values that the items of a list may have, where these are named."""
    for part in get_args(annotation):
        found = get_args(part)[:2] if get_origin(part) is Literal else _choices(part)
        if found:
            return found
    return ()


def _keys_beside(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys that are allowed in place of a wrong one."""
    return list(_section_at(location, root).model_fields)


def _section_at(location: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel]:
    """The section that a key stands in."""
    section = root
    for step in location[:-1]:
        # Indices into a list, and names that are no keys, are those of items, which are all of one section.
        if step in section.model_fields:
            section = _section_of(section.model_fields[str(step)].annotation)
    return section


def _section_of(annotation: object) -> type[BaseModel]:
    """The section among the types that a field allows."""
    (section,) = (
        allowed
        for allowed in (annotation, *get_args(annotation))
        if isinstance(allowed, type) and issubclass(allowed, BaseModel)
    )
    return section
