import contextlib
import os
import time

import pytest

from hscc_search.config.yaml_file import read_yaml
from hscc_search.errors import ConfigError


@pytest.fixture
def read(tmp_path):
    """Read a text, or bytes, as a YAML file."""

    def value_of(content):
        path = tmp_path / "own.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_yaml(path)

    return value_of


@pytest.fixture
def refused(read):
    """Read a text that must be refused at once, and return the one line that says why."""

    def message_of(content):
        began = time.process_time()
        with pytest.raises(ConfigError) as caught:
            read(content)
        # A second at most on a quiet machine; what grows without bound takes minutes.
        assert time.process_time() - began < 20
        message = str(caught.value)
        assert "own.yaml" in message
        assert len(message.splitlines()) == 1
        assert len(message) <= 2000
        return message.partition("own.yaml")[2]

    return message_of


def laughs(first, form):
    """Nine lines of which each repeats the one before nine times."""
    repeated = (form.format(", ".join([f"*a{number - 1}"] * 9)) for number in range(1, 10))
    return "\n".join(
        [f"a0: &a0 {first}", *(f"a{number}: &a{number} {text}" for number, text in enumerate(repeated, 1))]
    )


@pytest.mark.parametrize(
    "text",
    [
        laughs("[x, x, x]", "[{}]"),
        laughs("{k: 1}", "{{<<: [{}]}}"),
        laughs("{k: 1}", "[{}]"),
    ],
    ids=["lists", "merged", "mappings"],
)
def test_aliases_that_multiply_are_refused_before_they_are_expanded(refused, text):
    assert "more than 10,000 values, counting what aliases repeat" in refused(text)


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "&a {b: [c, *a]}", "a: &a [&b [*a], *b]"])
def test_an_alias_within_what_it_repeats_is_refused(refused, text):
    assert "an alias repeats what it is a part of" in refused(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 3000, "nested more than 16 deep"),
        ("a: " + "[" * 20 + "]" * 20, "nested more than 16 deep"),
        ("- " * 3000, "nested more than 16 deep"),
        ("? " * 3000, "nested more than 16 deep"),
        ("a: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40)), "nested more than 16 deep"),
        ("a: " + "x" * 5000, "line 1, column 4: a value of more than 4096 characters"),
        ("a: 1\nb: [" + "1," * 10_001 + "]", "line 2, column 19995: more than 10,000 values"),
        ("a: [" + "x:," * 20_000 + "]", "line 1, column 10001: more than 10,000 values"),
        ("trials: 3\nseed: 4\ntrials: 5", "line 3, column 1: key 'trials' is there twice"),
        ("# " + "x" * 70_000, "is too large: a study file has at most 65,536 bytes"),
    ],
    ids=["lists", "closed", "items", "keys", "aliases", "long", "many", "many mappings", "twice", "large"],
)
def test_what_no_study_file_needs_is_refused_with_its_place(refused, text, said):
    assert said in refused(text)


def test_a_file_of_fifty_megabytes_is_not_read(refused):
    assert "is too large" in refused(b"a: " + b"x" * 50_000_000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('a: !!int ""', "'' is no !!int"),
        ("a: !!int many", "'many' is no !!int"),
        ("a: !!bool maybe", "'maybe' is no !!bool"),
        ("a: !!float x", "'x' is no !!float"),
        ("a: !!timestamp", "'' is no !!timestamp"),
        ("a: 2020-13-45", "'2020-13-45' is no !!timestamp"),
        ("a: !!binary ü", "failed to convert base64"),
        ("a: !!python/object:os.system {}", "could not determine a constructor for the tag"),
        ("a: !!python/object/apply:os.system [touch executed]", "could not determine a constructor"),
        ("? [a]\n: b", "found unhashable key"),
        ("a: *nothing", "found undefined alias 'nothing'"),
        ("\n".join(["a: [1,", "2,"]), "line 2"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: 1\nb: \0", "line 2: it may not hold the character '\\x00'"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_place(refused, text, said):
    message = refused(text)
    assert message.startswith(" is no YAML: line ")
    assert said in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 1".encode("utf-16"), "line 1: byte 0xff is no UTF-8"),
        ("a: 1\nb: grün".encode("latin-1"), "line 2: byte 0xfc is no UTF-8"),
        (bytes(range(256)), "byte 0x80 is no UTF-8"),
    ],
)
def test_a_file_that_is_not_utf_8_is_refused_with_the_byte(refused, content, said):
    assert said in refused(content)


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "/proc/kmsg"])
def test_a_device_is_neither_waited_for_nor_read_without_end(path):
    if not os.access(path, os.R_OK):
        pytest.skip(f"{path} is not there for this user")
    with contextlib.suppress(ConfigError):
        assert read_yaml(path) is None


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ConfigError, match="is no regular file: give a path to a YAML file"):
            read_yaml(path)


def test_what_an_alias_repeats_is_an_object_of_its_own(read):
    tree = read("a: &a {b: [1]}\nc: *a\nd: {<<: *a, e: 2}\n")
    assert tree == {"a": {"b": [1]}, "c": {"b": [1]}, "d": {"b": [1], "e": 2}}
    assert tree["a"] is not tree["c"]
    assert tree["a"]["b"] is not tree["d"]["b"]


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001"])
def test_a_number_needs_no_point_before_its_exponent(read, text):
    assert read(f"a: {text}") == {"a": 0.001}
    assert read(f"a: '{text}'") == {"a": text}


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_text(read):
    assert read(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n") == {"a": 1, "b": 2}
