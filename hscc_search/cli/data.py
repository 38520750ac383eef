"""The commands on images: ``data check``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from pydantic import ValidationError
from rich import box
from rich.table import Table

from hscc_search.cli.options import Whole, table_or_json_option
from hscc_search.cli.printing import say, say_some
from hscc_search.cli.stopping import stoppable_bars
from hscc_search.config import CopyKind, DataConfig, StudyConfig
from hscc_search.config.data import TABLES
from hscc_search.config.explain import explain
from hscc_search.errors import ConfigError, DataError
from hscc_search.report.terminal import out_console

if TYPE_CHECKING:
    from hscc_search.data.check import ImagesReport

# The line on copies that differ in their bytes, by what a copy is.
_COPIES: dict[CopyKind, str] = {
    "near": "near copies: {:,} more pairs show the same thing in the same colours",
    "shape": "near copies: {:,} more pairs show the same thing, in whatever colours",
    "exact": "copies of other bytes: {:,} more pairs have the same pixels",
    "none": "no image counts as a copy of another one, since copies: none says so",
}


@click.group()
def data() -> None:
    """Check images."""


@data.command()
@click.argument("images", metavar="IMAGES", type=click.Path(path_type=Path))
@click.option(
    "--class-level",
    metavar="N",
    type=Whole(min=1),
    help="Level of the folders below a folder that are the classes, as a study's data.class_level.",
)
@click.option("--groups", metavar="REGEX", help="What in a path says which images belong together, as data.groups.")
@click.option(
    "--copies",
    type=click.Choice(get_args(CopyKind)),
    help="What a copy is, as a study's data.copies.  [default: near, or what the study says]",
)
@table_or_json_option
def check(
    images: Path, class_level: int | None, groups: str | None, copies: CopyKind | None, output_format: str
) -> None:
    """Count images, copies, label conflicts, groups and unreadable files, and tell what is skipped.

    IMAGES is a folder, a table (CSV or Parquet), or a study file, whose data section is checked as it stands.

    Exact and near copies do no harm: a split keeps them in one part. Unreadable files stop a study (exit code 2).
    """
    from hscc_search.data import check_images

    config = _config(images, {"class_level": class_level, "groups": groups, "copies": copies})
    with stoppable_bars() as report:
        checked = check_images(config, report)
    if output_format == "json":
        click.echo(json.dumps(_tree(checked), indent=2))
    else:
        _show(checked, config.copies)
    if checked.unreadable:
        raise DataError(f"{len(checked.unreadable)} unreadable files in {images}: replace or remove them")


def _config(images: Path, options: dict[str, Any]) -> DataConfig:
    """The data section that is checked: of a study file, or of a folder or a table with options.

    Raises:
        ConfigError: the study file or an option is wrong, or the study reads no files.
    """
    suffix = images.suffix.lower()
    if suffix in (".yaml", ".yml") and not images.is_dir():
        config = StudyConfig.from_file(images, **{f"data__{key}": value for key, value in options.items()}).data
        if config.path is None:
            raise ConfigError(f"study file {images} reads no image files (data.source {config.source}): name a folder")
        return config
    chosen = {key: value for key, value in options.items() if value is not None}
    source = "table" if suffix in TABLES and not images.is_dir() else "folder"
    try:
        return DataConfig.model_validate({"source": source, "path": images, **chosen})
    except ValidationError as error:
        raise ConfigError(f"data check: {explain(error, DataConfig)}") from error


def _tree(images: "ImagesReport") -> dict[str, Any]:
    return {
        "images": sum(images.classes.values()),
        "classes": images.classes,
        "groups": images.groups,
        "parts": images.parts,
        "exact_copies": images.exact_copies,
        "near_copy_pairs": images.near_pairs,
        "label_conflicts": [[str(first), str(second)] for first, second in images.conflicts],
        "unreadable": [{"file": str(path), "reason": reason} for path, reason in images.unreadable],
        "nearly_empty": list(map(str, images.empty)),
        "skipped": {kind: list(map(str, paths)) for kind, paths in vars(images.skipped).items()},
        "leak": images.leak,
        "notes": list(images.notes),
    }


def _show(images: "ImagesReport", copies: CopyKind) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class", overflow="fold")
    table.add_column("images", justify="right", no_wrap=True)
    for name, count in images.classes.items():
        table.add_row(name, f"{count:,}")
    table.add_section()
    table.add_row("all", f"{sum(images.classes.values()):,}")
    out_console.print(table)
    say(f"exact copies: {images.exact_copies:,} images have the same bytes as another one")
    say(_COPIES[copies].format(images.near_pairs))
    say(f"label conflicts: {len(images.conflicts):,} pairs of copies carry different labels")
    say_some([f"{first}  {second}" for first, second in images.conflicts])
    if images.groups is not None:
        say(f"groups: {sum(images.classes.values()):,} images are of {images.groups:,} groups")
    if images.parts:
        say(f"parts: {', '.join(f'{count:,} images in {part}' for part, count in images.parts.items())}")
    if images.leak is not None:
        say(images.leak)
    for note in images.notes:
        say(note)
    say(f"unreadable: {len(images.unreadable):,} files")
    say_some([f"{path}: {reason}" for path, reason in images.unreadable])
