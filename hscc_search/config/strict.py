"""Values of JSON read as a type, converting nothing: no text for a number, no number for a truth, no 3.0 for 3."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import FailFast, TypeAdapter, ValidationError

from hscc_search.errors import quoted, shortened

T = TypeVar("T")

# Lists, of which the first wrong item is looked at, and not the millions behind it.
Numbers = Annotated[tuple[int, ...], FailFast()]


def strictly(kind: TypeAdapter[T], value: Any, where: str) -> T:
    """Read a value as a type, such as a dataclass; lists become tuples, as JSON has none.

    Args:
        kind: the type.
        value: of JSON: None, a truth, a number, a text, a list or a mapping.
        where: it stands, for the message.

    Raises:
        ValueError: it is none of this type; the message names the first place and what stands there.
    """
    try:
        return kind.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = shortened(".".join(map(str, (where, *_steps(first["loc"], value)))))
        reason = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise ValueError(f"{place}: {quoted(first['input'])} is not allowed: {reason}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply") from error


def _steps(place: tuple[int | str, ...], value: Any) -> list[int | str]:
    """The keys and positions of a place within a value, without the names of types that pydantic puts between."""
    steps: list[int | str] = []
    for step in place:
        if isinstance(value, dict) and (step in value or step == place[-1]):  # the last may be a key that is missing
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            continue
        steps.append(step)
    return steps
