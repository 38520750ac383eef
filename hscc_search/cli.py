"""The commands: a thin layer that reads options, calls the package, and prints."""

import json
import signal
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table

from hscc_search.config import DEFAULT_STORAGE, StudyConfig
from hscc_search.errors import DataError, HsccError
from hscc_search.memory import keep_freed_memory, uncollected
from hscc_search.progress import Progress, Report
from hscc_search.report.terminal import (
    counting_lines,
    err_console,
    front_csv,
    front_json,
    front_table,
    out_console,
    progress_bars,
    studies_table,
)

if TYPE_CHECKING:
    from hscc_search.search.stored_study import Study

# torch and Optuna take seconds to import, so a command imports what it runs when it runs.


def main() -> None:
    """Run a command; bad input ends it with one line and exit code 2, Ctrl-C with 130."""
    warnings.simplefilter("ignore")
    keep_freed_memory()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends a service means what Ctrl-C means
    try:
        sys.exit(_commands(standalone_mode=False, prog_name="hscc-search") or 0)
    except HsccError as error:
        _fail(str(error), 2)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(f"{' '.join(error.format_message().split()).rstrip('.')}: see {_usage_of(error)} --help", 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("stopped: what was finished is stored, and the same command goes on", 130)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115
        sys.exit(0)


def _fail(message: str, code: int) -> None:
    err_console.print(
        f"error: {message}" if code == 2 else message,
        style="red",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    sys.exit(code)


def _usage_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "hscc-search"


def _quiet_optuna() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _say(line: str) -> None:
    out_console.print(line, markup=False, highlight=False, soft_wrap=True)


_storage_option = click.option(
    "--storage",
    metavar="URL",
    envvar="HSCC_STORAGE",
    default=DEFAULT_STORAGE,
    show_default=True,
    help="Database of the studies, as a SQLAlchemy URL.",
)


_workers_option = click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of this machine that share the trials.",
)


_timeout_option = click.option(
    "--timeout",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Start no more trials after S seconds.",
)


_data_option = click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Image folder, in place of the study file's data.path.",
)


_checkpoint_option = click.option(
    "--checkpoint",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Trained weights (safetensors or a plain state dict), in place of training.",
)


_device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path is not None else None


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hscc-search")
def _commands() -> None:
    """Search for the best ways to compress a convolutional network: FLOPs against accuracy."""


@_commands.command()
@click.argument("study")
@_data_option
@_device_option
def train(study: str, data: Path | None, device: str) -> None:
    """Train the dense network of STUDY, a file or a name, and keep it in the cache.

    `run` does this by itself.
    """
    config = StudyConfig.from_file(study, data__path=_absolute(data))
    if config.model.checkpoint is not None:
        _say(f"study {config.name} names the checkpoint {config.model.checkpoint}: there is nothing to train")
        return
    from hscc_search.dense.opened import checkpoint_path
    from hscc_search.evaluation.predictions import predict
    from hscc_search.search.study import train_dense

    with progress_bars() as report:
        dataset, parts, network = train_dense(config, device, report)
    scores = predict(network, parts.validation, config.data, next(network.parameters()).device)
    accuracy = float((scores.argmax(axis=1) == parts.validation.labels).mean())
    _say(f"dense {config.model.name}: accuracy {accuracy:.4f} on {len(parts.validation)} validation images")
    _say(f"checkpoint: {checkpoint_path(config, dataset)}")
    _say(f"next: hscc-search run {study}{f' --data {data}' if data else ''}")


@_commands.command()
@click.argument("study")
@click.option(
    "--storage",
    metavar="URL",
    envvar="HSCC_STORAGE",
    help="Database of the studies, in place of the study file's.",
)
@click.option(
    "--trials",
    metavar="N",
    type=click.IntRange(min=1),
    help="Finished trials that the study shall have in all.",
)
@_timeout_option
@_workers_option
@_data_option
@_checkpoint_option
@_device_option
def run(
    study: str,
    storage: str | None,
    trials: int | None,
    timeout: float | None,
    workers: int,
    data: Path | None,
    checkpoint: Path | None,
    device: str,
) -> None:
    """Start STUDY, a file or a name, or go on with it until it has all its trials."""
    config = StudyConfig.from_file(
        study,
        storage=storage,
        trials=trials,
        timeout=timeout,
        data__path=_absolute(data),
        model__checkpoint=_absolute(checkpoint),
    )
    from hscc_search.search.study import run_study
    from hscc_search.storage import without_password

    _quiet_optuna()
    steps: list[Progress] = []
    with progress_bars() as report:
        watch = _both(steps.append, report)
        result = run_study(config, device, watch, workers)
    _show(result)
    _say(
        f"study {config.name}: {len(result.points)} trials finished, {config.trials} wanted"
        f"{'' if steps else ', so there is nothing to do'}; stored in {without_password(config.storage)}"
    )
    _say(f"next: hscc-search front {config.name}{_where(config.storage)} --html front.html")


@_commands.command()
@click.argument("study_name")
@_storage_option
@_workers_option
@_timeout_option
@_data_option
@_checkpoint_option
@_device_option
def worker(
    study_name: str,
    storage: str,
    workers: int,
    timeout: float | None,
    data: Path | None,
    checkpoint: Path | None,
    device: str,
) -> None:
    """Work on STUDY_NAME, which `run` has started, until it has all its trials.

    Any number of machines may do so at once; each needs the images and, where the study was given one, the checkpoint.
    """
    from hscc_search.search.study import work_on

    _quiet_optuna()
    steps: list[Progress] = []
    with progress_bars() as report:
        watch = _both(steps.append, report)
        study = work_on(storage, study_name, _absolute(data), _absolute(checkpoint), device, watch, workers, timeout)
    _say(
        f"study {study_name}: {len(study.points)} trials finished, {study.config.trials} wanted"
        f"{'' if steps else ', so there is nothing to do'}"
    )


@_commands.command()
@_storage_option
@click.option("--host", metavar="H", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", metavar="P", type=click.IntRange(1, 65535), default=13000, show_default=True, help="Port.")
def proxy(storage: str, host: str, port: int) -> None:
    """Stand between very many workers and a database: they use grpc://HOST:PORT as their storage."""
    from hscc_search.storage import serve_proxy

    _quiet_optuna()
    serve_proxy(storage, host, port, lambda address: click.echo(f"proxy: {address} (Ctrl-C ends it)"))


def _both(first: Report, second: Report) -> Report:
    def report(progress: Progress) -> None:
        first(progress)
        second(progress)

    return report


def _show(study: "Study") -> None:
    from hscc_search.report.table import front_line

    out_console.print(front_table(study))
    _say(front_line(study))
    for line in counting_lines(study):
        _say(line)


@_commands.command()
@click.argument("study_name")
@_storage_option
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the front as a page that needs nothing else.",
)
@uncollected()
def front(study_name: str, storage: str, form: str, html: Path | None) -> None:
    """Show the front of STUDY_NAME, with the dense network beside it."""
    from hscc_search.search.stored_study import read_study

    _quiet_optuna()
    study = read_study(storage, study_name)
    if form == "json":
        click.echo(front_json(study))
    elif form == "csv":
        click.echo(front_csv(study), nl=False)
    else:
        _show(study)
    if html is not None:
        if not html.parent.is_dir():
            raise click.BadParameter(f"there is no folder {html.parent}", param_hint="--html")
        from hscc_search.report.page import write_page

        write_page(study, html)
        click.echo(f"page: {html}", err=form != "table")
        click.echo(
            f"next: hscc-search export {study_name}{_where(storage)} --select knee --out {study_name}-knee",
            err=form != "table",
        )


@_commands.command()
@click.argument("study")
@click.option("--budgets", metavar="X,...", default="3,6", show_default=True, help="How many times fewer FLOPs.")
@click.option("--methods", metavar="NAME,...", help="Methods to measure, in place of all.")
@click.option("--seeds", metavar="N,...", default="0,1,2", show_default=True, help="Split seeds; a split each.")
@click.option(
    "--finetune",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Measure each network after N epochs of fine-tuning as well.",
)
@_data_option
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for rows, table and figure; the same command goes on with it.",
)
@_device_option
def compare(
    study: str,
    budgets: str,
    methods: str | None,
    seeds: str,
    finetune: int,
    data: Path | None,
    out: Path,
    device: str,
) -> None:
    """Measure HSCC and its peers at the same FLOPs on the network and images of STUDY, a file or a name."""
    config = StudyConfig.from_file(study, data__path=_absolute(data))
    ratios, splits = _numbers("--budgets", budgets, float), _numbers("--seeds", seeds, int)
    from hscc_search.comparison.measure import compare as compare_methods
    from hscc_search.comparison.methods import METHODS
    from hscc_search.comparison.summary import summarise
    from hscc_search.report.comparison import write_comparison
    from hscc_search.report.terminal import comparison_table

    names = methods.split(",") if methods else list(METHODS)
    with progress_bars() as report:
        rows = compare_methods(config, ratios, names, splits, finetune, out, device, report)
    summaries = summarise(rows)
    write_comparison(config.name, summaries, out)
    out_console.print(comparison_table(summaries))
    for summary in summaries:
        for failure in summary.failures:
            _say(f"{summary.method} at {summary.budget:g}x, {failure}")
    _say(f"± is one standard error over the test images of {len(splits)} splits; differences are of the same images.")
    _say(f"written: {out / 'summary.json'} and {out / 'comparison.html'}")


def _numbers(option: str, text: str, kind: type[float] | type[int]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise click.BadParameter(f"{text!r} must be {what} with commas between", param_hint=option) from error


@_commands.command()
@click.argument("study_name")
@_storage_option
@click.option(
    "--select",
    "rule",
    metavar="RULE",
    default="knee",
    show_default=True,
    help="knee, trial:N, min-accuracy:X (validation, 0 to 1) or max-flops:X (per image).",
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write; it must not exist.",
)
@click.option(
    "--finetune",
    metavar="N",
    type=click.IntRange(min=0),
    help="Train the compressed network N epochs further, whatever the study says.",
)
@_data_option
@_checkpoint_option
@_device_option
def export(
    study_name: str,
    storage: str,
    rule: str,
    out: Path,
    finetune: int | None,
    data: Path | None,
    checkpoint: Path | None,
    device: str,
) -> None:
    """Write one trial of STUDY_NAME as a folder that runs in deployment."""
    from hscc_search.export.bundle import export as export_trial
    from hscc_search.pareto.selection import select
    from hscc_search.search.stored_study import read_study

    _quiet_optuna()
    study = read_study(storage, study_name)
    point = select(rule, study.points, study.objectives, study.labels, study.classes, study.config.seed)
    config = study.config.placed(_absolute(data), _absolute(checkpoint))
    if finetune is not None:
        config = config.finetuned(finetune)
    with progress_bars() as report:
        metrics = export_trial(study, point, config, out, device, report)
    dense, test = metrics["dense"], metrics["test"]
    _say(
        f"trial {point.trial}: {dense['flops'] / test['flops']:.2f}x fewer FLOPs, test accuracy {test['accuracy']:.4f} "
        f"(dense {dense['accuracy']:.4f}) on {test['images']} images"
    )
    _say(f"exported: {out}")
    _say(f"next: read {out / 'README.md'}, or in Python: hscc_search.load({str(out)!r})")


@_commands.group(invoke_without_command=True)
@_storage_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def studies(context: click.Context, storage: str, form: str) -> None:
    """List the studies of a storage, or remove and copy them."""
    context.obj = storage
    if context.invoked_subcommand is not None:
        return
    from hscc_search.search.catalogue import list_studies

    _quiet_optuna()
    listing = list_studies(storage)
    if form == "json":
        click.echo(json.dumps([asdict(row) for row in listing], indent=2))
    else:
        out_console.print(studies_table(listing))


@studies.command()
@click.argument("study_name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rm(storage: str, study_name: str, yes: bool) -> None:
    """Remove STUDY_NAME and all its trials."""
    from hscc_search.search.catalogue import list_studies, remove_study

    _quiet_optuna()
    rows = {row.name: row for row in list_studies(storage)}
    if study_name in rows and not yes:
        click.confirm(f"remove study {study_name} with {rows[study_name].finished} finished trials?", abort=True)
    remove_study(storage, study_name)
    _say(f"removed: study {study_name}")


@studies.command()
@click.argument("study_name")
@click.argument("new_name")
@click.option("--to", metavar="URL", help="Another database, in place of the same one.")
@click.pass_obj
def copy(storage: str, study_name: str, new_name: str, to: str | None) -> None:
    """Copy STUDY_NAME with its finished trials as NEW_NAME."""
    from hscc_search.search.catalogue import copy_study

    _quiet_optuna()
    count = copy_study(storage, study_name, new_name, to)
    _say(f"copied: {count} trials of study {study_name} to {new_name}")


@_commands.command()
@_storage_option
@click.option(
    "--host",
    metavar="H",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; there is no password.",
)
@click.option(
    "--port",
    metavar="P",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="0 takes a free one.",
)
def dashboard(storage: str, host: str, port: int) -> None:
    """Serve optuna-dashboard and the Plotly front on one address, read-only."""
    from hscc_search.report.live import serve

    _quiet_optuna()
    serve(storage, host, port, lambda address: click.echo(f"dashboard: {address} (Ctrl-C ends it)"))


@_commands.group()
def data() -> None:
    """Look at image folders."""


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def check(folder: Path, form: str) -> None:
    """Count images, copies, label conflicts and unreadable files below DIR.

    Exact and near copies never hurt: a split keeps them on one side. Unreadable files stop a study (exit code 2).
    """
    from hscc_search.data import check_folder

    with progress_bars() as report:
        found = check_folder(folder, report)
    if form == "json":
        tree = {
            "images": sum(found.classes.values()),
            "classes": found.classes,
            "exact_copies": found.exact_copies,
            "near_copy_pairs": found.near_pairs,
            "label_conflicts": [[str(first), str(second)] for first, second in found.conflicts],
            "unreadable": [{"file": str(path), "reason": reason} for path, reason in found.unreadable],
        }
        click.echo(json.dumps(tree, indent=2))
    else:
        table = Table("class", "images", box=box.SIMPLE_HEAD)
        for name, count in found.classes.items():
            table.add_row(name, str(count))
        table.add_section()
        table.add_row("all", str(sum(found.classes.values())))
        out_console.print(table)
        _say(f"exact copies: {found.exact_copies} images have the bytes of another one")
        _say(f"near copies: {found.near_pairs} more pairs show the same thing")
        _say(f"label conflicts: {len(found.conflicts)} pairs of copies carry different labels")
        for first, second in found.conflicts:
            _say(f"  {first}  {second}")
        _say(f"unreadable: {len(found.unreadable)} files")
        for path, reason in found.unreadable:
            _say(f"  {path}: {reason}")
    if found.unreadable:
        raise DataError(f"{len(found.unreadable)} unreadable files below {folder}: replace or remove them")


def _where(storage: str) -> str:
    from hscc_search.storage import without_password

    return "" if storage == DEFAULT_STORAGE else f" --storage {without_password(storage)}"


if __name__ == "__main__":
    main()
