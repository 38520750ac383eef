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
with exit code 2. What a user should know of, though the work goes on, is a :class:`HsccWarning`: one line, too.
"""


class HsccError(Exception):
    """Base class of every error that hscc-search raises on purpose."""


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
    return " ".join(words.split())[:500]
