"""The command that looks at a network before anything is computed: ``inspect``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table

from hscc_search.cli.options import absolute, checkpoint_option, data_option, read_config, table_or_json_option
from hscc_search.cli.printing import say
from hscc_search.cli.stopping import stoppable_bars
from hscc_search.report.terminal import out_console

if TYPE_CHECKING:
    from hscc_search.compression.inspection import Inspection


@click.command()
@click.argument("study")
@data_option
@checkpoint_option
@table_or_json_option
def inspect(study: str, data: Path | None, checkpoint: Path | None, output_format: str) -> None:
    """Show the network of STUDY, a file or a name, layer by layer: cost, and what can be compressed.

    Nothing is trained. Every layer that can be compressed is replaced at full rank, and the answers are compared.
    """
    config = read_config(study, data__path=absolute(data), model__checkpoint=absolute(checkpoint))
    from hscc_search.study.beforehand import inspect_study

    with stoppable_bars() as report:
        inspection, notices = inspect_study(config, report)
    if output_format == "json":
        tree = {**inspection.stored(), "share": inspection.share, "notices": notices}
        click.echo(json.dumps(tree, indent=2))
        return
    out_console.print(_table(config.model.name, inspection))
    say(
        f"{inspection.macs / 1e9:.4f} GMACs ({2 * inspection.macs / 1e9:.4f} GFLOPs) and {inspection.parameters:,} "
        f"parameters; {inspection.share:.1%} of the MACs are in layers that can be compressed"
        + (f", {inspection.macs_outside / 1e9:.4f} GMACs are outside of layers" if inspection.macs_outside else "")
    )
    say(
        f"self-check: with these layers replaced at full rank, answers differ by {inspection.error:.0e} of what they "
        "vary by"
    )
    for line in notices:
        say(f"warning: {line}")


def _table(name: str, inspection: "Inspection") -> Table:
    table = Table(title=f"{name}: one multiply-add is one MAC and two FLOPs", box=box.SIMPLE_HEAD)
    for column in ("layer", "kind", "output", "MMACs", "share", "parameters", "compressed"):
        left = column in ("layer", "kind", "compressed")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for layer in inspection.layers:
        table.add_row(
            layer.name,
            layer.kind,
            " x ".join(map(str, layer.output)) or "-",
            f"{layer.macs / 1e6:.3f}",
            f"{layer.macs / max(inspection.macs, 1):.1%}",
            f"{layer.parameters:,}",
            "yes" if layer.left_dense is None else f"left dense: {layer.left_dense}",
            style=None if layer.left_dense is None else "dim",
        )
    return table
