"""The text of a number as everybody writes it: Python reads digits of other scripts and underscores, too."""


def plain(text: str) -> str:
    """Give back a text that may be a number.

    Raises:
        ValueError: it holds what is no part of a plain number, such as the digits of another script.
    """
    if not text.isascii() or "_" in text:
        raise ValueError("a number has the digits 0 to 9")
    return text
