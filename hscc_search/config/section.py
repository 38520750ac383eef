"""The rules that every section of a study file follows, and paths in them."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the study file: immutable, no unknown keys, no conversion of types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _check_path(path: Path) -> Path:
    """Check that a file can have such a path at all; whether there is one is seen where it is read.

    Raises:
        ValueError: it holds characters that no path has, or is longer than a path or a name in it can be.
    """
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ValueError("the path holds half of a character, which no file name has") from error
    if b"\0" in encoded:
        raise ValueError("the path holds the character \\0, which no file name has")
    if len(encoded) > _LONGEST_PATH or any(len(name) > _LONGEST_NAME for name in encoded.split(b"/")):
        raise ValueError(
            f"the path is too long: a path has at most {_LONGEST_PATH} bytes, and {_LONGEST_NAME} between two slashes"
        )
    return path


# Bytes of a path and of a name in it on Linux and macOS.
_LONGEST_PATH, _LONGEST_NAME = 4095, 255

FilePath = Annotated[Path, Field(strict=False), AfterValidator(_check_path)]
