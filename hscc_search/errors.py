"""All errors that a user's input can cause.

::

    HsccError
    ├── ConfigError        a study file or an option is wrong
    │   └── UnwritableError    a file or a folder cannot be written
    ├── DiskFullError      there is no room for what is to be written
    ├── DataError          images cannot be used
    ├── ModelError         a network cannot be built, or a checkpoint does not fit it
    ├── CompressionError   a network or a setting cannot be compressed
    ├── StorageError       a database cannot be reached, or a study is not in it
    ├── StudyError         a study cannot go on, or holds nothing that was asked for
    └── ExportError        a folder cannot be written or read back

The message is one line: what is wrong, where, and what would work. The command line prints it and leaves
with exit code 2. What a message quotes may be of any length and hold any characters: ``HsccError`` keeps the line one
line, and ``quoted`` and ``shortened`` keep its parts in proportion. What a user should know of, though the work goes
on, is a :class:`HsccWarning`: one line, too.
"""

import reprlib
import unicodedata

# Characters of a message: a screen holds 2,000, and the command line puts words around it.
_LONGEST_MESSAGE = 1900
# Characters of the text of another error within a message, and of a value.
_LONGEST_ERROR, _LONGEST_VALUE = 500, 120


class HsccError(Exception):
    """Base class of every error that hscc-search raises on purpose.

    Its text is the message in one line of at most 1,900 characters: line breaks and other characters that a terminal
    would act on are written as escapes, and a longer message loses its middle.
    """

    def __init__(self, message: str) -> None:
        # Names of files may hold line breaks, escapes of the terminal and bytes that are no UTF-8.
        super().__init__(shortened(printable(message), _LONGEST_MESSAGE))


class ConfigError(HsccError):
    """A study file or an option is wrong."""


class UnwritableError(ConfigError):
    """A file or a folder cannot be written."""


class DiskFullError(HsccError):
    """There is no room for what is to be written."""


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


class HsccWarning(UserWarning):
    """Something that a user should know of, though the work goes on."""


def one_line(error: object, with_type: bool = False) -> str:
    """The text of an error in one line of at most 500 characters, to be quoted in a message.

    Args:
        error: an exception or a text, of any number of lines.
        with_type: whether the name of the error's class comes first, for errors whose text may be empty or say little.
    """
    words = f"{type(error).__name__}: {error}" if with_type else str(error)
    return printable(" ".join(words.split()))[:_LONGEST_ERROR]


def quoted(value: object) -> str:
    """A value as Python writes it, with dots for what is too long for a message."""
    try:
        return shortened(_QUOTE.repr(value), _LONGEST_VALUE)
    except ValueError:  # Python writes no whole numbers of more than 4,300 digits
        return "a number of more than 4300 digits"


def shortened(text: str, longest: int = _LONGEST_VALUE) -> str:
    """A text of at most ``longest`` characters: where it has more, the middle gives way to dots."""
    if len(text) <= longest:
        return text
    kept = longest - 5
    return f"{text[: kept - kept // 3]} ... {text[len(text) - kept // 3 :]}"


def printable(text: object) -> str:
    """A text in one line as any terminal shows it.

    Control characters, those that change the direction of writing, and bytes that are no UTF-8 become escapes.
    """
    return "".join(_escaped(character) if _is_control(character) else character for character in str(text))


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a path that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


# Characters of Unicode that change the direction of writing, by which a name can show as another one.
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

_QUOTE = reprlib.Repr()
_QUOTE.maxlevel = 3
_QUOTE.maxstring = _QUOTE.maxother = _QUOTE.maxlong = _LONGEST_VALUE
