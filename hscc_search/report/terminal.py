"""Output for the terminal: progress bars, and the front, studies and comparisons as tables."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from hscc_search.errors import printable
from hscc_search.progress import Notice, Progress, Report

if TYPE_CHECKING:  # importing Optuna takes seconds, and drawing needs only the objects that are passed in
    from hscc_search.comparison.summary import Estimate, Summary
    from hscc_search.report.measured import OnDevice
    from hscc_search.report.table import TableRow
    from hscc_search.study.catalogue import StudyStatus
    from hscc_search.study.stored_study import Study

# A pipe has no width of its own, and 80 columns would cut the front's table. Names of classes, files and layers are
# shown as they are: "scan [left]" is no markup and ":eye:" no emoji.
out_console = Console(width=None if sys.stdout.isatty() else 140, emoji=False, markup=False, highlight=False)
err_console = Console(stderr=True, emoji=False, markup=False, highlight=False)
# Measures what a table would take.
_UNBOUNDED = Console(width=10_000)
# Largest number of rows for trials that cannot be told apart from the front.
_MOST_CLOSE = 8
# Seconds between two lines of progress in a log file.
_LOG_SECONDS = 15


@contextmanager
def progress_bars() -> Iterator[Report]:
    """Show a bar per task on the error stream or in a notebook, elsewhere a line every 15 seconds."""
    if not (err_console.is_terminal or (err_console.is_jupyter and find_spec("ipywidgets"))):
        yield _log_lines()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=err_console) as bars:

        def report(progress: Progress) -> None:
            if isinstance(progress, Notice):
                err_console.print(progress.task, markup=False, highlight=False, soft_wrap=True)
                return
            if progress.task not in tasks:
                tasks[progress.task] = bars.add_task(printable(progress.task), note="")
            note = printable(progress.note)
            bars.update(tasks[progress.task], completed=progress.done, total=progress.total, note=note)

        yield report


def _log_lines() -> Report:
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        if isinstance(progress, Notice):
            click.echo(progress.task, err=True)
        elif time.monotonic() - last > _LOG_SECONDS:
            last = time.monotonic()
            note = f" ({progress.note})" if progress.note else ""
            click.echo(printable(f"{progress.task}: {progress.done}/{progress.total}{note}"), err=True)

    return report


def front_table(study: "Study", width: int | None = None) -> Table:
    """A table of the dense network, the front, and trials that cannot be told apart from it.

    Args:
        study: to show.
        width: largest one, in characters; by default that of the output. Columns that matter less are left out until
            the table fits, and named below it.
    """
    from hscc_search.report.table import columns, dispensable, rows

    names, lines = columns(study), rows(study, most_close=_MOST_CLOSE)
    left_out: list[str] = []
    room = width or out_console.width
    for name in (*dispensable(study), None):
        kept = [position for position, column in enumerate(names) if column not in left_out]
        table = _front_table(study, [names[position] for position in kept], lines, kept)
        if name is None or Measurement.get(_UNBOUNDED, _UNBOUNDED.options, table).maximum <= room:
            break
        left_out.append(name)
    if left_out:
        table.caption = f"left out for want of width: {', '.join(left_out)} (--format csv has all)"
    return table


def _front_table(study: "Study", names: "Sequence[str]", lines: "Sequence[TableRow]", kept: Sequence[int]) -> Table:
    """The table of some columns."""
    from hscc_search.report.table import trials_in_words

    table = Table(
        title=f"{study.config.name}: front of {trials_in_words(study)}; metrics on the validation part",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        caption_justify="left",
    )
    for column in names:
        # A head of two short lines leaves the width to the numbers, which must not be broken.
        table.add_column(column.replace(" ", "\n", 1), justify="right", overflow="fold")
    styles = {"dense": "red", "knee": "bold", "close": "dim"}
    previous_kind = None
    for row in lines:
        # Close trials have a section of their own; one of them may be the knee.
        if row.kind != previous_kind and "close" in (row.kind, previous_kind):
            table.add_section()
        cells = (row.cells[position] for position in kept)
        table.add_row(*cells, style=styles.get(row.kind), end_section=row.kind == "dense")
        previous_kind = row.kind
    return table


def measured_table(study: "Study", measured: "Sequence[OnDevice]") -> Table:
    """A table of what was measured on devices."""
    from hscc_search.report.measured import HEADS, measured_rows

    table = Table(
        title="measured on devices: median and 95th percentile (p95) per batch",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
    )
    for head in HEADS:
        table.add_column(head, justify="left" if head == "processor" else "right", overflow="fold")
    for row in measured_rows(study, measured):
        table.add_row(*row)
    return table


def counting_lines(study: "Study") -> Iterator[str]:
    """Notes on the counting of FLOPs: operators that are not counted, and where two counters disagree."""
    cost = study.record.dense.cost
    if cost.notes:
        more = f" and {len(cost.notes) - 2} more" if len(cost.notes) > 2 else ""
        yield f"MACs are torch's count: {'; '.join(cost.notes[:2])}{more}"
    elif cost.macs != cost.macs_torch:  # as a study of version 0.1.0 stored them
        yield (
            f"warning: fvcore counts {cost.macs} MACs for the dense network, torch {cost.macs_torch}: "
            "one of them misses an operator"
        )
    if cost.uncounted:
        names = ", ".join(f"{name} ({count})" for name, count in cost.uncounted.items())
        yield f"one multiply-add is one MAC and two FLOPs; operators that are not counted: {names}"


def studies_table(statuses: "Sequence[StudyStatus]") -> Table:
    """A table of the studies of a storage."""
    table = Table(box=box.SIMPLE_HEAD)
    heads = ("study", "finished", "wanted", "failed", "running", "waiting", "workers", "hypervolume", "started")
    for head in heads:
        table.add_column(head, justify="left" if head in ("study", "started") else "right")
    for status in statuses:
        values = {**asdict(status), "study": status.name}
        if status.hypervolume is not None:
            values["hypervolume"] = f"{status.hypervolume:.4f}"
        table.add_row(*("-" if values[head] is None else str(values[head]) for head in heads))
    return table


def comparison_table(summaries: "Sequence[Summary]") -> Table:
    """A table with a row for each method, budget and stage; FLOPs and times are dense / compressed."""
    runs = list(dict.fromkeys(run for summary in summaries for run in summary.speedup))
    caption = "FLOPs: dense / compressed, whole network (2 per multiply-add)."
    if runs:
        caption += " torch 1, ORT 32: latency of dense / compressed with 1 and 32 images, one thread."
    table = Table(box=box.SIMPLE_HEAD, padding=0, caption=caption, caption_justify="left")
    for column in ("method", "epochs", "FLOPs", "parameters", "accuracy", "to dense", "hscc ahead", *runs):
        table.add_column(column.replace("onnxruntime", "ORT"), justify="left" if column == "method" else "right")
    budget = None
    for summary in summaries:
        if budget is not None and summary.budget != budget:
            table.add_section()
        budget = summary.budget
        table.add_row(*_comparison_cells(summary), *_speedup_cells(summary, runs))
    return table


def _comparison_cells(summary: "Summary") -> list[str]:
    """The cells up to ``hscc ahead``; a dash where a network would be compared with itself."""
    dense = summary.method == "dense"
    return [
        f"{summary.method}, refined" if summary.refined else summary.method,
        str(summary.epochs),
        f"{summary.flops_ratio:.2f}x" if summary.flops_ratio and not dense else "-",
        f"{summary.parameters / 1e6:.2f} M" if summary.parameters else "-",
        _points(summary.accuracy),
        "-" if dense and not summary.epochs else _points(summary.to_dense, "+"),
        "-" if dense or summary.method == "hscc" else _points(summary.to_hscc, "+"),
    ]


def _speedup_cells(summary: "Summary", runs: "Sequence[str]") -> list[str]:
    return [f"{summary.speedup[run]:.1f}x" if run in summary.speedup else "-" for run in runs]


def _points(share: "Estimate | None", sign: str = "") -> str:
    """Write a share and its standard error in percentage points."""
    return "-" if share is None else f"{100 * share.value:{sign}.1f} ± {100 * share.se:.1f}"
