"""Study files of any content: each is read or refused in one line, at once."""

import json
import time
from datetime import date

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hscc_search.config import StudyConfig
from hscc_search.config.metrics import METRICS
from hscc_search.config.study_file import shipped_study_files
from hscc_search.errors import HsccError, printable

SCHEMA = StudyConfig.model_json_schema()
SHIPPED = {path.stem: path.read_bytes() for path in shipped_study_files()}
# The file of a test is written anew for each example.
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**12, -(10**12), 2**64, 10**400, -(10**4000)])
    | st.floats()
    | st.text()
    | st.text(st.characters(codec=None), min_size=200)
    | st.binary(max_size=40)
    | st.dates(date(1, 1, 1))
    | st.datetimes()
    | st.sampled_from(
        ["1e400", "${NOWHERE}", "~nobody/x", "$HOME", "x" * 5000, "../" * 2000, "a/b\0", "module:function"]
    )
)
WRONG = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(SCALARS, inner, max_size=5), max_leaves=12
)
TOKENS = [
    *(
        b"&a ",
        b"*a ",
        b"&a [*a, *a]",
        b"<<: *a\n",
        b"<<",
        b"!!int ",
        b"!!float ",
        b"!!bool ",
        b"!!timestamp ",
        b"!!set ",
    ),
    *(b"!!binary ", b"!!omap ", b"!!pairs ", b"!!merge ", b"!!null ", b"!!str ", b"!!python/object:os.system ", b"!x "),
    *(b"[", b"]", b"{", b"}", b": ", b"- ", b"? ", b", ", b"|\n", b">-\n", b"#", b"'", b'"', b"%YAML 1.1\n", b"---\n"),
    *(b"...\n", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\r", b"\n", b"  ", b"~", b"=", b"`", b"@"),
    *(b"1e400", b".inf", b"-.nan", b"0x" + b"f" * 4000, b"9" * 4000, b"59:" * 400, b"2020-13-45", b"0b2", b"08", b"1_"),
    *(b'"\\ud800"', b'"\\0"', b"${NOWHERE}", b"$HOME", b"~nobody/", b"x" * 300, b"[" * 40, b"- " * 40, b"? " * 40),
]


def right(schema):
    """Values that a JSON schema allows."""
    if "$ref" in schema:
        section = schema["$ref"].rpartition("/")[2]
        return right(SCHEMA["$defs"][section]).map(FITTING.get(section, dict))
    if "anyOf" in schema:
        return st.one_of([right(kind) for kind in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "properties" in schema:
        return _section(schema, right)
    if schema["type"] == "object":
        names = st.sampled_from(["regions", "clusters", "energy", "budget", "energy@stage1"]) | st.text(max_size=9)
        return st.dictionaries(names, right(schema["additionalProperties"]), max_size=4)
    if schema["type"] == "array":
        return st.lists(right(schema["items"]), min_size=schema.get("minItems", 0), max_size=schema.get("maxItems", 4))
    if schema["type"] in ("integer", "number"):
        return _numbers(schema)
    if schema["type"] == "string":
        return st.from_regex(schema["pattern"]) if "pattern" in schema else st.sampled_from(METRICS) | st.text()
    return {"boolean": st.booleans(), "null": st.none()}[schema["type"]]


def source_with_path(data):
    return {**data, "source": "folder", "path": "images"}


def one_bound(constraint):
    return {"metric": constraint["metric"], "at_most": abs(constraint.get("at_most") or 0.5)}


def one_rule(space):
    return {key: value for key, value in space.items() if key != ("energy" if space.get("budget") else "budget")}


def low_first(range_):
    return {**range_, "low": min(range_["low"], range_["high"]), "high": max(range_["low"], range_["high"])}


# Changes after which the values of a section go together.
FITTING = {
    "DataConfig": source_with_path,
    "ConstraintConfig": one_bound,
    "SpaceConfig": one_rule,
    **dict.fromkeys(["IntegerRange", "EnergyRange", "BudgetRange"], low_first),
}


def mixed(schema):
    """Values that a JSON schema allows, now and then with another one somewhere within."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    within = _section(schema, mixed) if "properties" in schema else right(schema)
    return st.integers(0, 9).flatmap(lambda drawn: WRONG if drawn == 9 else within)


def _section(schema, values):
    required = schema.get("required", ())
    fields = {key: values(field) for key, field in schema["properties"].items()}
    return st.fixed_dictionaries(
        {key: field for key, field in fields.items() if key in required},
        optional={key: field for key, field in fields.items() if key not in required},
    )


def _numbers(schema):
    low, high = (schema.get(key, schema.get(f"exclusive{key.capitalize()}")) for key in ("minimum", "maximum"))
    if schema["type"] == "integer":
        return st.integers(low, high)
    return st.floats(
        low,
        high,
        exclude_min="exclusiveMinimum" in schema,
        exclude_max="exclusiveMaximum" in schema,
        allow_nan=False,
        allow_infinity=False,
    )


changes = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=3), st.integers(0, 12)),
    min_size=1,
    max_size=6,
)


def changed(content, places):
    """A file with bytes replaced at some places, given as shares of its length."""
    for share, new, dropped in places:
        at = int(share * len(content))
        content = content[:at] + new + content[at + dropped :]
    return content


@pytest.fixture
def taken_or_refused(tmp_path):
    """Read a study file that may be refused; returns its study, or None."""
    path = tmp_path / "own.yaml"

    def read(content):
        path.write_bytes(content)
        began = time.process_time()
        try:
            config = StudyConfig.from_file(path)
        except HsccError as error:
            config = None
            assert len(str(error)) <= 2000
            assert len(str(error).splitlines()) == 1
            assert printable(error) == str(error)
        assert time.process_time() - began < 20  # as in test_yaml_file.py
        if config is not None:  # what is accepted can be stored
            assert StudyConfig.from_tree(json.loads(json.dumps(config.stored())), "storage") == config
        return config

    return read


@given(right(SCHEMA))
@SETTINGS
def test_a_file_of_right_values_is_read_or_refused_in_one_line(taken_or_refused, tree):
    taken_or_refused(yaml.safe_dump(tree).encode())


@given(mixed(SCHEMA))
@SETTINGS
def test_a_file_of_right_and_wrong_values_is_read_or_refused_in_one_line(taken_or_refused, tree):
    taken_or_refused(yaml.safe_dump(tree).encode())


@given(st.sampled_from([*SHIPPED.values()]), changes)
@SETTINGS
def test_a_damaged_file_is_read_or_refused_in_one_line(taken_or_refused, content, places):
    taken_or_refused(changed(content, places))


@given(st.binary(max_size=200) | st.lists(st.sampled_from(TOKENS), max_size=12).map(b"".join))
@SETTINGS
def test_bytes_that_are_no_study_file_are_refused_in_one_line(taken_or_refused, content):
    assert taken_or_refused(content) is None


@given(st.text() | st.sampled_from(["digits\0", "/", ".", "..", "~", "x" * 5000, "a/" * 3000, "\ud800", "digits\n"]))
@SETTINGS
def test_any_name_of_a_study_is_answered_in_one_line(name):
    assume(name not in SHIPPED)
    with pytest.raises(HsccError) as refused:
        StudyConfig.from_file(name)
    assert len(str(refused.value)) <= 2000
    assert printable(refused.value) == str(refused.value)
