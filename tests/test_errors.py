import pytest

from hscc_search.errors import ConfigError, DataError, HsccError, one_line, printable, quoted, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("scan [left] \\ 😀 👩‍🔬 é\u00a0ñ 漢字", "scan [left] \\ 😀 👩‍🔬 é\u00a0ñ 漢字"),
        ("a\nb\r\tc\0", r"a\nb\r\tc\x00"),
        ("\x1b[31mred\x9b0m", r"\x1b[31mred\x9b0m"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("caf\udce9.png", r"caf\xe9.png"),
        ("\ud800", r"\ud800"),
        ("benign\u202egnp.x", r"benign\u202egnp.x"),
        ("\u2067א\u2069 שלום", r"\u2067א\u2069 שלום"),
    ],
    ids=[
        "letters and signs",
        "line breaks",
        "escapes of a terminal",
        "line separators",
        "no UTF-8",
        "half a sign",
        "turned",
        "isolated",
    ],
)
def test_a_text_is_shown_in_one_line(text, shown):
    assert printable(text) == shown
    assert len(shown.encode().splitlines()) == 1


@pytest.mark.parametrize("kind", [HsccError, DataError])
def test_the_message_of_an_error_is_one_line(kind):
    assert str(kind("cannot read a\n\udcff.png")) == r"cannot read a\n\xff.png"


def test_a_message_is_one_line_that_no_terminal_acts_on():
    error = ConfigError("file a\nb\x1b[31m\u2028\ud800 grün  5 °C 図")
    assert str(error) == "file a\\nb\\x1b[31m\\u2028\\ud800 grün  5 °C 図"


@pytest.mark.parametrize("count", [1, 1900, 1901, 10**6])
def test_a_message_fits_on_a_screen_and_keeps_both_ends(count):
    message = str(HsccError("beginning " + "x" * count + " end"))
    assert len(message) <= 1900
    assert message.startswith("beginning x")
    assert message.endswith("x end")


@pytest.mark.parametrize(
    "value",
    ["x" * 10**5, 10**4000, 16**5000, [["x" * 99] * 99] * 99, {"a": {"b": {"c": {"d": {}}}}}, b"x" * 9999],
    ids=["text", "number", "longer number", "lists", "mappings", "bytes"],
)
def test_a_quoted_value_is_short(value):
    assert 0 < len(quoted(value)) <= 120


@pytest.mark.parametrize("value", [3, 2.5, "many", None, True, [1, 2], {"low": 1}, 10**30])
def test_a_short_value_is_quoted_as_it_is(value):
    assert quoted(value) == repr(value)


def test_a_shortened_text_keeps_both_ends():
    assert shortened("abc", 10) == "abc"
    assert shortened("a" * 50 + "b" * 50, 20) == "a" * 10 + " ... " + "b" * 5


def test_the_text_of_another_error_is_one_short_line():
    assert one_line(ValueError("a\n  b\t\x1bc")) == "a b \\x1bc"
    assert one_line(KeyError("a"), with_type=True) == "KeyError: 'a'"
    assert len(one_line("x\n" * 9999)) == 500
