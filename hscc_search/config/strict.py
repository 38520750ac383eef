"""Values of JSON read as a type, converting nothing: no text for a number, no number for a truth, no 3.0 for 3."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import FailFast, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from hscc_search.errors import quoted, shortened

T = TypeVar("T")

# Lists, of which the first wrong item is looked at, and not the millions behind it.
Numbers = Annotated[tuple[int, ...], FailFast()]

# What may stand in a place, by pydantic's names of what is wrong there.
_WORDS = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_parsing_size": "a number of fewer digits",
    "int_type": "a whole number",
    "list_type": "a list",
    "literal_error": "{expected}",
    "string_type": "a text",
    "too_long": "a list of {max_length} values",
    "tuple_type": "a list",
}


def strictly(kind: TypeAdapter[T], value: Any, where: str = "") -> T:
    """Read a value as a type, such as a dataclass; lists become tuples, as JSON has none.

    Args:
        kind: the type.
        value: of JSON: None, a truth, a number, a text, a list or a mapping.
        where: it stands in its file, for the message; empty for the whole file.

    Raises:
        ValueError: it is none of this type; the message names the first place, what stands there and what may.
    """
    try:
        return kind.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ValueError(_in_words(error.errors(include_url=False), value, where)) from error
    except RecursionError as error:
        raise ValueError(f"{where or 'it'} is nested too deeply") from error


def _in_words(errors: list[ErrorDetails], value: Any, where: str) -> str:
    """The first wrong place, what stands there and what may; of a value that may be of several types, all of them."""
    places = [_steps(error, value) for error in errors]
    # What is wrong within the first place is one of the types that may stand there, which fits as far as that.
    within = [place for place in places if place[: len(places[0])] == places[0]]
    deepest = max(within, key=len)
    chosen = [error for error, place in zip(errors, places, strict=True) if place == deepest]
    name = shortened(".".join(map(str, (*([where] if where else []), *deepest))))
    if chosen[0]["type"] == "missing" and not isinstance(chosen[0]["input"], list):
        return f"{name} is missing"
    allowed = " or ".join(dict.fromkeys(_allowed(error, chosen) for error in chosen))
    return f"{name}: {quoted(chosen[0]['input'])} is not allowed: it has to be {allowed}"


def _allowed(error: ErrorDetails, beside: list[ErrorDetails]) -> str:
    """What may stand in a place, by one error of those of this place."""
    if error["type"] == "missing":  # in a list that is too short, for each value that it lacks
        length = 1 + max(int(each["loc"][-1]) for each in beside if each["type"] == "missing")
        return f"a list of {length} values"
    words = _WORDS.get(error["type"], f"something else ({error['msg']})").format(**error.get("ctx", {}))
    return words.replace("a list of 0 values", "an empty list")


def _steps(error: ErrorDetails, value: Any) -> list[int | str]:
    """The keys and positions of a place within a value, without the names of types that pydantic puts between."""
    steps: list[int | str] = []
    for number, step in enumerate(error["loc"], start=1):
        if isinstance(value, dict) and (step in value or _is_missing(error, number)):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            continue
        steps.append(step)
    return steps


def _is_missing(error: ErrorDetails, steps: int) -> bool:
    """Tell whether so many steps of an error's place lead to a key that is missing."""
    return error["type"] == "missing" and steps == len(error["loc"])
