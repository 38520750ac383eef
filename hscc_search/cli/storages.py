"""The commands on a whole storage: ``studies`` and ``dashboard``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hscc_search.cli.options import (
    Whole,
    absolute,
    data_option,
    group_storage_option,
    storage_option,
    table_or_json_option,
)
from hscc_search.cli.printing import confirm, quiet_optuna, say
from hscc_search.report.terminal import out_console, studies_table

if TYPE_CHECKING:
    from hscc_search.report.live import OpenImages
    from hscc_search.study.stored_study import Study


@click.group(invoke_without_command=True)
@storage_option
@table_or_json_option
@click.pass_context
def studies(context: click.Context, storage: str, output_format: str) -> None:
    """List the studies of a storage, or remove and copy them."""
    context.obj = storage
    if context.invoked_subcommand is not None:
        return
    from hscc_search.study.catalogue import list_studies

    quiet_optuna()
    statuses = list_studies(storage)
    if output_format == "json":
        click.echo(json.dumps([asdict(status) for status in statuses], indent=2))
    else:
        out_console.print(studies_table(statuses))


@studies.command()
@click.argument("study_name")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@group_storage_option
def rm(study_name: str, yes: bool, storage: str) -> None:
    """Remove STUDY_NAME and all its trials."""
    from hscc_search.study.catalogue import list_studies, remove_study

    quiet_optuna()
    statuses = {status.name: status for status in list_studies(storage)}
    if study_name in statuses and not yes:
        finished = statuses[study_name].finished
        confirm(f"remove study {study_name} with {finished} finished trials?")
    remove_study(storage, study_name)
    say(f"removed: study {study_name}")


@studies.command()
@click.argument("study_name")
@click.argument("new_name")
@click.option("--to", metavar="URL", help="Database of the copy, in place of the same one.")
@group_storage_option
def copy(study_name: str, new_name: str, to: str | None, storage: str) -> None:
    """Copy STUDY_NAME with its finished and failed trials as NEW_NAME."""
    from hscc_search.study.catalogue import copy_study

    quiet_optuna()
    count = copy_study(storage, study_name, new_name, to)
    say(f"copied: {count} trials of study {study_name} to {new_name}")


@click.command()
@storage_option
@click.option(
    "--host",
    metavar="H",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. Beyond this machine a token is needed, which is printed.",
)
@click.option(
    "--port",
    metavar="P",
    type=Whole(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen at; 0 takes a free one.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File that holds the token, in place of a new one each time.",
)
@click.option(
    "--allow-edit",
    is_flag=True,
    help="Let optuna-dashboard change and remove studies. Where others use this machine, add --token-file.",
)
@click.option("--images", is_flag=True, help="Show small those validation images that one of two networks gets wrong.")
@data_option
def dashboard(
    storage: str, host: str, port: int, token_file: Path | None, allow_edit: bool, images: bool, data: Path | None
) -> None:
    """Serve pages to explore each study, and optuna-dashboard, on one address."""
    from hscc_search.report.guard import Guard, is_local, new_token, read_token
    from hscc_search.report.live import serve

    if data is not None and not images:
        raise click.UsageError("--data says where the images are that --images shows: give that, too")
    quiet_optuna()
    token = read_token(token_file) if token_file else None if is_local(host) else new_token()
    if token_file and token_file.stat().st_mode & 0o077:
        say(f"warning: other users of this machine may read the token in {token_file}: `chmod 600` keeps it from them")
    guard = Guard(token, edit=allow_edit)

    def started(address: str) -> None:
        shown = f"/?token={token}" if token and not token_file else ""
        click.echo(f"dashboard: {address}{shown} (Ctrl-C ends it)")

    serve(storage, host, port, guard, started, _opening_images(absolute(data)) if images else None)


def _opening_images(data: Path | None) -> "OpenImages":
    """Make what opens the images of a study, where ``data`` or the study says that they are."""
    from hscc_search.study.thumbnails import Draw, thumbnails

    def open_images(study: "Study") -> Draw:
        return thumbnails(study.record, study.config.with_paths(data, None))

    return open_images
