"""The entry point: one group of all commands, and the exit codes."""

import sys
import warnings

import click

from hscc_search.cli.cache import cache
from hscc_search.cli.data import data
from hscc_search.cli.exported import predict, verify
from hscc_search.cli.inspection import inspect
from hscc_search.cli.results import compare, export, front
from hscc_search.cli.stopping import stop_on_signals
from hscc_search.cli.storages import dashboard, studies
from hscc_search.cli.work import proxy, run, train, worker
from hscc_search.errors import HsccError, HsccWarning, one_line, printable
from hscc_search.memory import keep_freed_memory
from hscc_search.report.terminal import err_console
from hscc_search.temporary import FULL


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hscc-search")
def commands() -> None:
    """Search for the best ways to compress a convolutional network: accuracy against FLOPs."""


_COMMANDS = (
    inspect,
    train,
    run,
    worker,
    proxy,
    front,
    compare,
    export,
    verify,
    predict,
    studies,
    dashboard,
    data,
    cache,
)
for command in _COMMANDS:
    commands.add_command(command)


def main() -> None:
    """Run a command; bad input ends it with one line and exit code 2, Ctrl-C with 130."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", HsccWarning)
    warnings.showwarning = lambda message, *_: _warn(str(message))
    keep_freed_memory()
    stop_on_signals()
    try:
        sys.exit(commands(standalone_mode=False, prog_name="hscc-search") or 0)
    except HsccError as error:
        _refuse(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        message = one_line(error.format_message()).rstrip(".")
        _refuse(f"{message}: see {_command_of(error)} --help")
    except (KeyboardInterrupt, click.Abort):
        _end("stopped: finished work is stored, and the same command continues", 130)
    except BrokenPipeError:  # the reader, such as head, has ended
        sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115
        sys.exit(0)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _refuse(
            f"no room{f' for {error.filename}' if error.filename else ''} ({error.strerror}): make room, and the "
            "same command continues"
        )


def _warn(message: str) -> None:
    err_console.print(printable(f"warning: {message}"), style="yellow", soft_wrap=True)


def _refuse(message: str) -> None:
    _end(f"error: {message}", 2)


def _end(line: str, code: int) -> None:
    err_console.print(printable(line), style="red", soft_wrap=True)
    sys.exit(code)


def _command_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "hscc-search"
