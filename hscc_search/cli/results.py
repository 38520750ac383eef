"""The commands that show, export and compare: ``front``, ``export`` and ``compare``."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hscc_search.cli.options import (
    Whole,
    absolute,
    checkpoint_option,
    command_line,
    data_option,
    decimals,
    device_option,
    integers,
    names,
    naming_storage,
    read_config,
    storage_option,
)
from hscc_search.cli.printing import quiet_optuna, say, show_front
from hscc_search.cli.stopping import stoppable_bars
from hscc_search.errors import UnwritableError, printable
from hscc_search.files import checked_output
from hscc_search.memory import uncollected
from hscc_search.report.formats import front_csv, front_json
from hscc_search.report.terminal import measured_table, out_console

if TYPE_CHECKING:
    from hscc_search.config import StudyConfig
    from hscc_search.export.formats import Extras
    from hscc_search.pareto.selection import Choice
    from hscc_search.report.measured import OnDevice
    from hscc_search.study.stored_study import Study


@click.command()
@click.argument("study_name")
@storage_option
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="Table for people, JSON or CSV for programs.",
)
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the front as a self-contained page.",
)
@click.option(
    "--comparison",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Show the peers that `compare --out DIR` measured on the page, too.",
)
@click.option(
    "--images", is_flag=True, help="Show on the page small those validation images that one of two networks gets wrong."
)
@click.option(
    "--measured",
    metavar="FILE",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Show what run.py benchmark of an exported trial measured on a device, too; may be given several times.",
)
@data_option
@uncollected()
def front(
    study_name: str,
    storage: str,
    output_format: str,
    html: Path | None,
    comparison: Path | None,
    images: bool,
    measured: tuple[Path, ...],
    data: Path | None,
) -> None:
    """Show the front of STUDY_NAME, with the dense network beside it."""
    if html is not None:
        try:
            checked_output(html)
        except UnwritableError as error:
            raise click.BadParameter(str(error), param_hint="--html") from error
    for option, given in (("--comparison", comparison), ("--images", images)):
        if given and html is None:
            raise click.UsageError(f"{option} shows more on the page: name a file for it with --html")
    if data is not None and not images:
        raise click.UsageError("--data says where the images are that --images shows: give that, too")
    from hscc_search.study.stored_study import read_study

    quiet_optuna()
    study = read_study(storage, study_name)
    peers = _peers(study, comparison) if comparison is not None else []
    on_devices = _on_devices(measured, study)
    if output_format == "json":
        click.echo(front_json(study, on_devices))
    elif output_format == "csv":
        click.echo(front_csv(study), nl=False)
    else:
        show_front(study)
        if on_devices:
            out_console.print(measured_table(study, on_devices))
    if html is not None:
        from hscc_search.report.page import Page, frozen_page

        draw = _thumbnails(study, data) if images else None
        Page(frozen_page(study, storage, peers, draw, on_devices)).write(html)
        beside_data = output_format != "table"  # other programs read JSON or CSV, so nothing else is printed there
        click.echo(f"page: {printable(html)}", err=beside_data)
        if study.front:
            options = (*naming_storage(storage), "--select", "knee", "--out", f"{study_name}-knee")
            click.echo(f"next: {command_line('hscc-search', 'export', study_name, *options)}", err=beside_data)


def _on_devices(paths: tuple[Path, ...], study: "Study") -> "tuple[OnDevice, ...]":
    if not paths:
        return ()
    from hscc_search.report.measured import read_measured

    return read_measured(paths, study)


def _peers(study: "Study", comparison: Path) -> list[dict[str, Any]]:
    from hscc_search.report.comparison import peers_of

    return peers_of(study, comparison)


def _thumbnails(study: "Study", data: Path | None) -> Callable[[Iterable[int]], dict[int, str]]:
    from hscc_search.study.thumbnails import thumbnails

    with stoppable_bars() as report:
        return thumbnails(study.record, study.config.with_paths(absolute(data), None), report)


@click.command()
@click.argument("study_name")
@storage_option
@click.option(
    "--select",
    "rule_text",
    metavar="RULE",
    default="knee",
    show_default=True,
    help="knee; trial:N; bounds such as 'accuracy>=0.9 and flops<=1.2G', of any metrics (validation part), sampled "
    "values and the budget, whose best trial is the one of fewest FLOPs, or the most accurate where only costs are "
    "bounded; min-METRIC:X; max-METRIC:X; budget:X for X times fewer FLOPs; or all, the front as ranked folders.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write; it must not exist. With all, the same command continues in it after a stop.",
)
@click.option(
    "--finetune",
    metavar="N",
    type=Whole(min=0),
    help="Fine-tune the compressed network for N epochs, in place of the study's number.",
)
@click.option("--refine", is_flag=True, help="Refine the network of a trial that is not refined; reads no labels.")
@click.option(
    "--format",
    "formats",
    metavar="NAME,...",
    multiple=True,
    help="Write further files: pt2 of torch.export, float16 in 16-bit floats, uint8 that takes raw images of any size, "
    "openvino, executorch; the last two need packages of their own.",
)
@click.option("--accept-loss", is_flag=True, help="Also an int8 trial or a format that loses much on the test part.")
@click.option(
    "--sign", metavar="KEY", type=click.Path(path_type=Path), help="Private Ed25519 key to sign the manifest with."
)
@data_option
@checkpoint_option
@device_option
def export(
    study_name: str,
    storage: str,
    rule_text: str,
    out: Path,
    finetune: int | None,
    refine: bool,
    formats: tuple[str, ...],
    accept_loss: bool,
    sign: Path | None,
    data: Path | None,
    checkpoint: Path | None,
    device: str,
) -> None:
    """Write one trial of STUDY_NAME, or all of its front, as a folder with ONNX and torch models and a model card."""
    from hscc_search.pareto.rules import WholeFront, parse_rule

    rule = parse_rule(rule_text)
    from hscc_search.export.formats import Extras
    from hscc_search.export.signature import read_signing_key
    from hscc_search.study.stored_study import read_study

    quiet_optuna()
    extras = Extras(names(formats), accept_loss, None if sign is None else read_signing_key(sign))
    study = read_study(storage, study_name)
    config = study.config.with_paths(absolute(data), absolute(checkpoint))
    if finetune is not None:
        config = config.finetuned(finetune)
    if isinstance(rule, WholeFront):
        _export_front(study, config, out, device, refine, extras)
    else:
        _export_one(study, config, study.choose(rule), out, device, refine, extras)


def _export_one(
    study: "Study", config: "StudyConfig", choice: "Choice", out: Path, device: str, refine: bool, extras: "Extras"
) -> None:
    """Export one trial, and say what it became."""
    from hscc_search.export.export import export as export_trial
    from hscc_search.pareto.objectives import quality_of, title

    point = choice.point
    with stoppable_bars() as report:
        metrics = export_trial(study, point, config, out, device, report, refine=refine, choice=choice, extras=extras)
    say(str(choice))
    metric = quality_of(config)
    value, dense_value = (network.test.metrics[metric] for network in (metrics.compressed, metrics.dense))
    say(
        f"trial {point.trial}: {metrics.flops_ratio:.2f}x fewer FLOPs, test {title(metric)} {value:.4f} "
        f"(dense {dense_value:.4f}) on {metrics.test_images} images"
    )
    now = metrics.compressed.validation.metrics.get(metric)
    if metrics.finetuning_epochs and now is not None and metric in point.metrics:
        _say_what_tuning_did(study, metric, point[metric], now)
    say(f"exported: {out}")
    say(f"next: read {out / 'README.md'}, or in Python: hscc_search.load({str(out)!r})")


def _say_what_tuning_did(study: "Study", metric: str, then: float, now: float) -> None:
    """Say what fine-tuning changed on the validation part, in a study whose trials are not fine-tuned."""
    from hscc_search.config.metrics import less_is_better
    from hscc_search.pareto.objectives import title

    if study.config.finetuning.epochs:
        return
    words = f"fine-tuning took the validation {title(metric)} from {then:.4f} to {now:.4f}"
    worse = now > then if less_is_better(metric) else now < then
    say(f"warning: {words}: lower finetuning.learning_rate, or export without it" if worse else words)


def _export_front(
    study: "Study", config: "StudyConfig", out: Path, device: str, refine: bool, extras: "Extras"
) -> None:
    """Export each trial of the front, and say what they became, in their places."""
    from hscc_search.export.front import export_front
    from hscc_search.pareto.objectives import quality_of, title

    with stoppable_bars() as report:
        entries = export_front(study, config, out, device, report, refine=refine, extras=extras)
    metric, measured = quality_of(config), {point.trial: point for point in study.points}
    for entry in entries:
        compressed, dense = entry["compressed"], entry["dense"]
        value, dense_value = (network["test"][metric]["value"] for network in (compressed, dense))
        say(
            f"{entry['folder']}: {dense['cost']['flops'] / compressed['cost']['flops']:.2f}x fewer FLOPs, test "
            f"{title(metric)} {value:.4f} (dense {dense_value:.4f}); {entry['in_words']}"
        )
        if (
            config.finetuning.epochs
            and metric in compressed["validation"]
            and metric in measured[entry["trial"]].metrics
        ):
            _say_what_tuning_did(
                study, metric, measured[entry["trial"]][metric], compressed["validation"][metric]["value"]
            )
    say(f"exported: {out}, {len(entries)} trials")
    say(f"next: open {out / 'index.html'}, or in Python: hscc_search.load({str(out / entries[0]['folder'])!r})")


@click.command()
@click.argument("study")
@click.option(
    "--budgets", metavar="X,...", default="3,6", show_default=True, help="Ratios of dense to compressed FLOPs."
)
@click.option("--methods", metavar="NAME,...", help="Methods to compare, in place of all.")
@click.option("--seeds", metavar="N,...", default="0,1,2", show_default=True, help="Seeds of the splits to compare on.")
@click.option(
    "--finetune",
    metavar="N",
    type=Whole(min=0),
    default=0,
    show_default=True,
    help="Measure each network after N epochs of fine-tuning as well.",
)
@click.option("--refine", is_flag=True, help="Measure each network after refining, which reads no labels, as well.")
@data_option
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for results, table and figure; after a stop the same command continues in it.",
)
@device_option
def compare(
    study: str,
    budgets: str,
    methods: str | None,
    seeds: str,
    finetune: int,
    refine: bool,
    data: Path | None,
    out: Path,
    device: str,
) -> None:
    """Measure HSCC and its peers at the same FLOPs on the network and images of STUDY, a file or a name."""
    config = read_config(study, data__path=absolute(data))
    ratios, split_seeds = decimals("--budgets", budgets), integers("--seeds", seeds)
    from hscc_search.comparison.measure import compare as compare_methods
    from hscc_search.comparison.methods import METHODS
    from hscc_search.comparison.summary import summarise
    from hscc_search.report.comparison import write_comparison
    from hscc_search.report.terminal import comparison_table

    names = methods.split(",") if methods else list(METHODS)
    with stoppable_bars() as report:
        networks = compare_methods(config, ratios, names, split_seeds, finetune, out, device, report, refine)
    summaries = summarise(networks)
    write_comparison(config.name, summaries, out)
    out_console.print(comparison_table(summaries))
    for summary in summaries:
        for failure in summary.failures:
            say(f"{summary.name} at {summary.budget:g}x, {failure}")
    say(
        f"± is one standard error over the test images of {len(split_seeds)} splits; "
        "differences are on the same images."
    )
    say(f"written: {out / 'summary.json'} and {out / 'comparison.html'}")
