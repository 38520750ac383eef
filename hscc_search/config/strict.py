"""Values of JSON read as a type, converting nothing: no text for a number, no number for a truth, no 3.0 for 3."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import FailFast, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from hscc_search.errors import quoted, shortened

T = TypeVar("T")
# The keys and positions that lead to a place within a value.
Steps = tuple[int | str, ...]

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
_REFUSED, _CHARACTERS = "is not allowed: it has to be", "a text of valid characters"


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
        raise ValueError(_in_words(kind, error.errors(include_url=False), value, where)) from error
    except RecursionError as error:
        raise ValueError(f"{where or 'the file'} is nested too deeply") from error


def _in_words(kind: TypeAdapter[Any], errors: list[ErrorDetails], value: Any, where: str) -> str:
    """The first wrong place, what stands there and what may; of a value that may be of several types, all of them."""
    if errors[0]["type"] == "json_invalid":  # half a character, or nested more deeply than pydantic reads
        steps, text = next(_halved(value), ((), None))
        name = _name(where, steps)
        return f"{name} is nested too deeply" if text is None else f"{name}: {quoted(text)} {_REFUSED} {_CHARACTERS}"
    places = [_steps(error, value) for error in errors]
    # Of a union, the alternative whose error lies deepest is the one that was meant.
    within = [place for place in places if place[: len(places[0])] == places[0]]
    deepest = max(within, key=len)
    chosen = [error for error, place in zip(errors, places, strict=True) if place == deepest]
    name = _name(where, deepest)
    if chosen[0]["type"] == "missing" and not isinstance(chosen[0]["input"], list):
        return f"{name} is missing"
    allowed = [*(_allowed(error, chosen) for error in chosen), *(["null"] if _null_fits(kind, value, deepest) else [])]
    return f"{name}: {quoted(chosen[0]['input'])} {_REFUSED} {' or '.join(dict.fromkeys(allowed))}"


def _name(where: str, steps: Steps) -> str:
    """The place that some steps lead to from ``where``, or from the whole file."""
    return shortened(".".join(map(str, (*([where] if where else []), *steps)))) or "the file"


def _halved(value: Any, steps: Steps = ()) -> Iterator[tuple[Steps, str]]:
    """The texts of a value that hold half a character, which JSON can say and no text may hold, with their places."""
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        yield steps, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _halved(key, steps)
            yield from _halved(item, (*steps, key))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _halved(item, (*steps, position))


def _null_fits(kind: TypeAdapter[Any], value: Any, place: Steps) -> bool:
    """Tell whether null may stand in a place, which pydantic's errors do not say."""

    def with_null(value: Any, place: Steps) -> Any:
        if not place:
            return None
        copied = value.copy()
        copied[place[0]] = with_null(value[place[0]], place[1:])
        return copied

    changed = with_null(value, place)
    try:
        kind.validate_json(json.dumps(changed), strict=True)
    except ValidationError as error:
        return all(_steps(each, changed) != place for each in error.errors(include_url=False))
    return True


def _allowed(error: ErrorDetails, beside: list[ErrorDetails]) -> str:
    """What may stand in a place, by one error of those of this place."""
    if error["type"] == "missing":  # in a list that is too short, for each value that it lacks
        length = 1 + max(int(each["loc"][-1]) for each in beside if each["type"] == "missing")
        return f"a list of {length} values"
    words = _WORDS.get(error["type"])
    if words is None:
        return f"something else ({error['msg']})"
    return words.format(**error.get("ctx", {})).replace("a list of 0 values", "an empty list")


def _steps(error: ErrorDetails, value: Any) -> Steps:
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
    return tuple(steps)


def _is_missing(error: ErrorDetails, steps: int) -> bool:
    """Tell whether so many steps of an error's place lead to a key that is missing."""
    return error["type"] == "missing" and steps == len(error["loc"])
