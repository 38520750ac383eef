import pytest

from hscc_search.errors import DataError, HsccError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("scan [left] \\ 😀 👩‍🔬 é\u00a0ñ 漢字", "scan [left] \\ 😀 👩‍🔬 é\u00a0ñ 漢字"),
        ("a\nb\r\tc\0", r"a\nb\r\tc\x00"),
        ("\x1b[31mred\x9b0m", r"\x1b[31mred\x9b0m"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("caf\udce9.png", r"caf\xe9.png"),
        ("\ud800", r"\ud800"),
    ],
    ids=["letters and signs", "line breaks", "escapes of a terminal", "line separators", "no UTF-8", "half a sign"],
)
def test_a_text_is_shown_in_one_line(text, shown):
    assert printable(text) == shown
    assert len(shown.encode().splitlines()) == 1


@pytest.mark.parametrize("kind", [HsccError, DataError])
def test_the_message_of_an_error_is_one_line(kind):
    assert str(kind("cannot read a\n\udcff.png")) == r"cannot read a\n\xff.png"
