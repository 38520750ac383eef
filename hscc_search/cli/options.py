"""Options that several commands share, and functions that read their values."""

import math
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from hscc_search.config import DEFAULT_STORAGE, StudyConfig
from hscc_search.config.numbers import plain
from hscc_search.dense.names import check_network_name
from hscc_search.errors import quoted


class _Plain(click.ParamType):  # type: ignore[type-arg]  # it has some in newer versions alone
    """A number of which the digits are 0 to 9."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the value of an option."""
        try:
            plain(str(value))
        except ValueError as error:
            self.fail(f"{quoted(value)} is no number: {error}", param, ctx)
        return super().convert(value, param, ctx)


class Whole(_Plain, click.IntRange):
    """A whole number within a range."""


class Decimal(_Plain, click.FloatRange):
    """A number within a range."""


storage_option = click.option(
    "--storage",
    metavar="URL",
    envvar="HSCC_STORAGE",
    default=DEFAULT_STORAGE,
    show_default=True,
    help="Database of the studies, as a SQLAlchemy URL.",
)

group_storage_option = click.option(
    "--storage",
    metavar="URL",
    type=str,
    default=lambda: click.get_current_context().find_object(str),
    help="Database of the studies, where it is not named before the command.",
)

workers_option = click.option(
    "--workers",
    metavar="N",
    type=Whole(min=1, max=1024),
    default=1,
    show_default=True,
    help="Number of processes of this machine that share the trials.",
)

timeout_option = click.option(
    "--timeout",
    metavar="S",
    type=Decimal(min=0, min_open=True),
    help="Start no more trials after S seconds.",
)

data_option = click.option(
    "--data",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Folder or table of the images, in place of the study file's data.path.",
)

checkpoint_option = click.option(
    "--checkpoint",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Trained weights (safetensors or a plain state dict), in place of training.",
)

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)

table_or_json_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Table for people, JSON for programs.",
)


def absolute(path: Path | None) -> Path | None:
    """Make a path absolute, since a path in an option is relative to the current folder and not to the study file."""
    return path.absolute() if path is not None else None


def read_config(study: str, **overrides: Any) -> StudyConfig:
    """Read a study file, and check the name of its network before torch and all the rest is imported.

    Raises:
        ConfigError: as :meth:`StudyConfig.from_file`.
        ModelError: there is no such network.
    """
    config = StudyConfig.from_file(study, **overrides)
    check_network_name(config.model.name)
    return config


def command_line(*words: object) -> str:
    """A command as it can be pasted into a shell."""
    return shlex.join(map(str, words))


def integers(option: str, text: str) -> list[int]:
    """Read an option of seeds such as ``0,1,2``; one that is there twice counts once.

    Raises:
        click.BadParameter: one is no whole number from 0 to 2**32 - 1.
    """
    try:
        numbers = [int(number) for number in plain(text).split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"{quoted(text)} must be whole numbers with commas between", param_hint=option
        ) from error
    if not all(0 <= number < 2**32 for number in numbers):
        raise click.BadParameter(f"{quoted(text)} must be 0 or more and below 2**32", param_hint=option)
    return list(dict.fromkeys(numbers))


def decimals(option: str, text: str) -> list[float]:
    """Read an option such as ``3,4.5``; a number that is there twice counts once.

    Raises:
        click.BadParameter: one is no number, or is not finite.
    """
    try:
        numbers = [float(number) for number in plain(text).split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{quoted(text)} must be numbers with commas between", param_hint=option) from error
    if not all(map(math.isfinite, numbers)):
        raise click.BadParameter(f"{quoted(text)} must be finite numbers", param_hint=option)
    return list(dict.fromkeys(numbers))


def names(texts: Iterable[str]) -> tuple[str, ...]:
    """Read an option of names with commas between, which may be repeated; one that is there twice counts once."""
    return tuple(dict.fromkeys(name.strip() for text in texts for name in text.split(",")))


def naming_storage(storage: str) -> tuple[str, ...]:
    """The option with which the next command finds the same storage; nothing for the default storage."""
    from hscc_search.storage import without_password

    return () if storage == DEFAULT_STORAGE else ("--storage", without_password(storage))
