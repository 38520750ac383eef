"""Print results, as several commands do."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hscc_search.config import LEAKS
from hscc_search.errors import printable
from hscc_search.progress import Progress, Report
from hscc_search.report.terminal import counting_lines, front_table, out_console

if TYPE_CHECKING:
    from hscc_search.study.stored_study import Study


def say(line: str) -> None:
    """Print one line as it is, however long; control characters in the names of files are shown as escapes."""
    out_console.print(printable(line), soft_wrap=True)


def say_some(lines: Sequence[str], most: int = 8) -> None:
    """Print the first lines of a list, each indented, and how many more there are."""
    for line in lines[:most]:
        say(f"  {line}")
    if len(lines) > most:
        say(f"  and {len(lines) - most:,} more")


def confirm(question: str) -> None:
    """Ask before something is removed.

    Raises:
        click.Abort: the answer is no.
        click.UsageError: nobody is there to answer.
    """
    try:
        click.confirm(question, abort=True)
    except click.Abort as error:
        if sys.stdin.isatty() or not isinstance(error.__context__, EOFError):
            raise
        click.echo(err=True)
        raise click.UsageError("nobody answers whether to remove it: give --yes") from error


def show_front(study: "Study") -> None:
    """Print the front as a table, and the lines that belong below it."""
    from hscc_search.report.table import front_line

    out_console.print(front_table(study))
    say(front_line(study))
    for line in counting_lines(study):
        say(line)
    for line in study.record.notices:
        if line.startswith(LEAKS):
            say(line)


def quiet_optuna() -> None:
    """Keep Optuna from printing: its own error lines would follow those of a command."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)


class Watch:
    """A report that passes progress on and remembers whether there was any, and the last of it.

    Attributes:
        idle: whether nothing has been reported yet.
        note: the last one, which says why a study ended before it had all its trials.
    """

    def __init__(self, report: Report) -> None:
        self.idle = True
        self.note = ""
        self._report = report

    def __call__(self, progress: Progress) -> None:
        """Pass one step on."""
        self.idle, self.note = False, progress.note
        self._report(progress)
