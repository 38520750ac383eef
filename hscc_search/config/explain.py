"""Errors in a study file, explained in one line."""

from typing import get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Explain the first wrong key: its name, its value and what is allowed.

    Args:
        error: from validating a tree as ``root``.
        root: the model of the whole file.
    """
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])) or "file"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(_keys_beside(first["loc"], root))
        return f"{key}: unknown key (value {first['input']!r}): allowed here are {allowed}"
    if first["type"] == "missing":
        return f"{key}: missing: it has no default"
    if first["type"] == "value_error":  # raised by a section's own check, whose message names the value
        return f"{key}: {message}"
    return f"{key}: {first['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def _keys_beside(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys that are allowed in place of a wrong one."""
    section = root
    for step in location[:-1]:
        if isinstance(step, str):  # an integer is an index into a list, whose items are of one section
            section = _section_of(section.model_fields[step].annotation)
    return list(section.model_fields)


def _section_of(annotation: object) -> type[BaseModel]:
    """The section among the types that a field allows."""
    (section,) = (
        allowed
        for allowed in (annotation, *get_args(annotation))
        if isinstance(allowed, type) and issubclass(allowed, BaseModel)
    )
    return section
