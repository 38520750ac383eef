"""The commands on images: ``data check``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich import box
from rich.table import Table

from hscc_search.cli.options import table_or_json_option
from hscc_search.cli.printing import say, say_some
from hscc_search.config import CopyKind
from hscc_search.errors import DataError
from hscc_search.report.terminal import out_console, progress_bars

if TYPE_CHECKING:
    from hscc_search.data.check import FolderReport

# The line on copies that differ in their bytes, by what a copy is.
_COPIES: dict[CopyKind, str] = {
    "near": "near copies: {:,} more pairs show the same thing in the same colours",
    "shape": "near copies: {:,} more pairs show the same thing, in whatever colours",
    "exact": "copies of other bytes: {:,} more pairs have the same pixels",
    "none": "no image counts as a copy of another one, since --copies none says so",
}


@click.group()
def data() -> None:
    """Check image folders."""


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--class-level",
    metavar="N",
    type=click.IntRange(min=1),
    help="Level of the folders below DIR that are the classes, as a study's data.class_level.",
)
@click.option(
    "--copies",
    type=click.Choice(get_args(CopyKind)),
    default="near",
    show_default=True,
    help="What a copy is, as a study's data.copies.",
)
@table_or_json_option
def check(folder: Path, class_level: int | None, copies: CopyKind, output_format: str) -> None:
    """Count images, copies, label conflicts and unreadable files below DIR, and tell what is skipped.

    Exact and near copies do no harm: a split keeps them in one part. Unreadable files stop a study (exit code 2).
    """
    from hscc_search.data import check_folder

    with progress_bars() as report:
        images = check_folder(folder, report, class_level, copies)
    if output_format == "json":
        click.echo(json.dumps(_tree(images), indent=2))
    else:
        _show(images, copies)
    if images.unreadable:
        raise DataError(f"{len(images.unreadable)} unreadable files below {folder}: replace or remove them")


def _tree(images: "FolderReport") -> dict[str, Any]:
    return {
        "images": sum(images.classes.values()),
        "classes": images.classes,
        "exact_copies": images.exact_copies,
        "near_copy_pairs": images.near_pairs,
        "label_conflicts": [[str(first), str(second)] for first, second in images.conflicts],
        "unreadable": [{"file": str(path), "reason": reason} for path, reason in images.unreadable],
        "nearly_empty": list(map(str, images.empty)),
        "skipped": {kind: list(map(str, paths)) for kind, paths in vars(images.skipped).items()},
        "notes": list(images.notes),
    }


def _show(images: "FolderReport", copies: CopyKind) -> None:
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
    for note in images.notes:
        say(note)
    say(f"unreadable: {len(images.unreadable):,} files")
    say_some([f"{path}: {reason}" for path, reason in images.unreadable])
