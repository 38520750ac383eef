"""The commands on images: ``data check``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table

from hscc_search.cli.options import table_or_json_option
from hscc_search.cli.printing import say
from hscc_search.errors import DataError
from hscc_search.report.terminal import out_console, progress_bars

if TYPE_CHECKING:
    from hscc_search.data.check import FolderReport


@click.group()
def data() -> None:
    """Check image folders."""


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@table_or_json_option
def check(folder: Path, output_format: str) -> None:
    """Count images, copies, label conflicts and unreadable files below DIR.

    Exact and near copies do no harm: a split keeps them in one part. Unreadable files stop a study (exit code 2).
    """
    from hscc_search.data import check_folder

    with progress_bars() as report:
        images = check_folder(folder, report)
    if output_format == "json":
        click.echo(json.dumps(_tree(images), indent=2))
    else:
        _show(images)
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
    }


def _show(images: "FolderReport") -> None:
    table = Table("class", "images", box=box.SIMPLE_HEAD)
    for name, count in images.classes.items():
        table.add_row(name, str(count))
    table.add_section()
    table.add_row("all", str(sum(images.classes.values())))
    out_console.print(table)
    say(f"exact copies: {images.exact_copies} images have the same bytes as another one")
    say(f"near copies: {images.near_pairs} more pairs show the same thing")
    say(f"label conflicts: {len(images.conflicts)} pairs of copies carry different labels")
    for first, second in images.conflicts:
        say(f"  {first}  {second}")
    say(f"unreadable: {len(images.unreadable)} files")
    for path, reason in images.unreadable:
        say(f"  {path}: {reason}")
