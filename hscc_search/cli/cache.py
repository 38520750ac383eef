"""The commands on the cache: ``cache`` and ``cache clear``."""

import json
import time

import click
from rich import box
from rich.table import Table

from hscc_search.cache import KINDS, Entry, cache_root, entries, remove_entries
from hscc_search.cli.options import table_or_json_option
from hscc_search.cli.printing import confirm, say
from hscc_search.report.terminal import out_console


@click.group(invoke_without_command=True)
@table_or_json_option
@click.pass_context
def cache(context: click.Context, output_format: str) -> None:
    """Show what the cache holds, by kind, or remove it. All of it can be made again."""
    if context.invoked_subcommand is not None:
        return
    found = {kind: [entry for entry in entries() if entry.kind == kind] for kind in KINDS}
    if output_format == "json":
        tree = {"folder": str(cache_root()), "kinds": {kind: _tree(held) for kind, held in found.items()}}
        click.echo(json.dumps(tree, indent=2))
        return
    table = Table("kind", "entries", "MB", "oldest use", "latest use", box=box.SIMPLE_HEAD)
    for kind, held in found.items():
        ages = [_age(choose(entry.used for entry in held)) for choose in (min, max)] if held else ["-", "-"]
        table.add_row(kind, str(len(held)), _megabytes(held), *ages)
    out_console.print(table)
    say(f"cache: {cache_root()}")


@cache.command()
@click.option("--kind", metavar="KIND", type=click.Choice(KINDS), help=f"Remove this kind alone: {', '.join(KINDS)}.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
def clear(kind: str | None, yes: bool) -> None:
    """Remove what the cache holds, but nothing that a process uses."""
    found = [entry for entry in entries() if kind in (None, entry.kind)]
    if found and not yes:
        confirm(f"remove {len(found)} entries, {_megabytes(found)} MB, of {cache_root()}?")
    kept = remove_entries(found)
    removed = [entry for entry in found if entry not in kept]
    say(f"removed: {len(removed)} entries, {_megabytes(removed)} MB")
    if kept:
        say(f"kept: {len(kept)} entries, {_megabytes(kept)} MB, which processes use or this user may not remove")


def _tree(held: list[Entry]) -> dict[str, object]:
    return {
        "entries": len(held),
        "bytes": sum(entry.bytes for entry in held),
        "oldest_use_seconds": time.time() - min(entry.used for entry in held) if held else None,
        "latest_use_seconds": time.time() - max(entry.used for entry in held) if held else None,
    }


def _megabytes(held: list[Entry]) -> str:
    return f"{sum(entry.bytes for entry in held) / 1e6:.1f}"


def _age(used: float) -> str:
    """Say how long ago something was."""
    seconds = max(0.0, time.time() - used)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"
