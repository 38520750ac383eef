import json
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import StringConstraints, TypeAdapter

from hscc_search.config.strict import Numbers, strictly


@dataclass(frozen=True)
class Inner:
    name: str
    size: int | tuple[int, int] | None = None


@dataclass(frozen=True)
class Outer:
    code: Annotated[str, StringConstraints(pattern="^a{2,3}$")] = "aa"
    way: Literal["up", "down"] = "up"
    inner: Inner | None = None
    counts: Numbers = ()
    shares: dict[str, float] | None = None


OUTER = TypeAdapter(Outer)


def said(tree, where=""):
    with pytest.raises(ValueError) as refused:
        strictly(OUTER, tree, where)
    return str(refused.value)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            {"code": "b"},
            "code: 'b' is not allowed: it has to be something else (String should match pattern '^a{2,3}$')",
        ),
        ({"way": 1}, "way: 1 is not allowed: it has to be 'up' or 'down'"),
        ({"way": None}, "way: None is not allowed: it has to be 'up' or 'down'"),
        ({"inner": 7}, "inner: 7 is not allowed: it has to be a mapping or null"),
        ({"inner": {}}, "inner.name is missing"),
        (
            {"inner": {"name": "x", "size": "8"}},
            "inner.size: '8' is not allowed: it has to be a whole number or a list or null",
        ),
        ({"inner": {"name": "x", "size": [1, "8"]}}, "inner.size.1: '8' is not allowed: it has to be a whole number"),
        ({"counts": [1, True, None]}, "counts.1: True is not allowed: it has to be a whole number"),
        ({"shares": [0.5]}, "shares: [0.5] is not allowed: it has to be a mapping or null"),
        ({"shares": {"a": "b"}}, "shares.a: 'b' is not allowed: it has to be a number"),
        ([], "the file: [] is not allowed: it has to be a mapping"),
        (None, "the file: None is not allowed: it has to be a mapping"),
    ],
)
def test_the_place_what_stands_there_and_what_may_are_said(tree, words):
    assert said(tree) == words
    placed = words.replace("the file", "form") if words.startswith("the file") else f"form.{words}"
    assert said(tree, "form") == placed


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"way": "\ud800"}, "way"),
        ({"inner": {"name": "a\udfffb"}}, "inner.name"),
        ({"shares": {"x\udc80": 1.0}}, "shares"),
        ("\ud800", "the file"),
    ],
)
def test_a_text_that_holds_half_a_character_is_named(tree, place):
    assert json.loads(json.dumps(tree)) == tree  # such a text can stand in a file
    words = said(tree)
    assert words.startswith(f"{place}: ")
    assert words.endswith(" is not allowed: it has to be a text of valid characters")


@pytest.mark.parametrize("depth", [500, 100_000])
def test_what_is_nested_too_deeply_is_said_to_be(depth):
    tree = []
    for _ in range(depth):
        tree = [tree]
    assert said(tree) == "the file is nested too deeply"
    assert said(tree, "form") == "form is nested too deeply"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(Outer.__dataclass_fields__, values)) | values)
def test_any_value_is_read_or_refused_in_words(tree):
    try:
        assert isinstance(strictly(OUTER, tree), Outer)
    except ValueError as refused:
        assert type(refused) is ValueError
        assert str(refused).partition(":")[0].split(" is ")[0]
