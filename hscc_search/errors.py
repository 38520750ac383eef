"""All errors that a user's input can cause.

::

    HsccError
    ├── ConfigError        a study file or an option is wrong
    ├── DataError          images cannot be used
    ├── ModelError         a network cannot be built, or a checkpoint does not fit it
    ├── CompressionError   a network or a setting cannot be compressed
    ├── StorageError       a database cannot be reached, or a study is not in it
    ├── StudyError         a study cannot go on, or holds nothing that was asked for
    └── ExportError        a folder cannot be written or read back

The message is one line: what is wrong, where, and what would work. The command line prints it and leaves
with exit code 2.
"""

import unicodedata


class HsccError(Exception):
    """Base class of every error that hscc-search raises on purpose."""

    def __str__(self) -> str:
        # Names of files may hold line breaks, escapes of the terminal and bytes that are no UTF-8.
        return printable(super().__str__())


class ConfigError(HsccError):
    """A study file or an option is wrong."""


class DataError(HsccError):
    """Images cannot be used."""


class ModelError(HsccError):
    """A network cannot be built, or a checkpoint does not fit it."""


class CompressionError(HsccError):
    """A network or a setting cannot be compressed."""


class StorageError(HsccError):
    """A database cannot be reached, or a study is not in it."""


class StudyError(HsccError):
    """A study cannot go on, or holds nothing that was asked for."""


class ExportError(HsccError):
    """A folder cannot be written or read back."""


def one_line(error: object, with_type: bool = False) -> str:
    """The text of an error in one line of at most 500 characters, to be quoted in a message.

    Args:
        error: an exception or a text, of any number of lines.
        with_type: whether the name of the error's class comes first, for errors whose text may be empty or say little.
    """
    words = f"{type(error).__name__}: {error}" if with_type else str(error)
    return " ".join(words.split())[:500]


def printable(text: object) -> str:
    """A text in one line as any terminal shows it: control characters and bytes that are no UTF-8 become escapes."""
    return "".join(_escaped(character) if _is_control(character) else character for character in str(text))


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a path that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
