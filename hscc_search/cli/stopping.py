"""Ctrl-C and SIGTERM: they stop a command where it is or, where a library swallows them, at its next step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hscc_search.progress import Progress, Report
from hscc_search.report.terminal import progress_bars

_asked_to_stop = False


def stop_on_signals() -> None:
    """Let SIGTERM, by which a service is ended, and Ctrl-C stop the command; a Ctrl-C that is ignored stays so."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


@contextmanager
def stoppable_bars() -> Iterator[Report]:
    """Show progress, and stop at the next step where a signal came and its exception was lost.

    Python raises KeyboardInterrupt wherever it is. In a callback from C, or in a destructor, it is printed or dropped.
    """
    with progress_bars() as report:

        def report_or_stop(progress: Progress) -> None:
            if _asked_to_stop:
                raise KeyboardInterrupt
            report(progress)

        yield report_or_stop


def _stop(number: int, frame: FrameType | None) -> None:
    global _asked_to_stop
    _asked_to_stop = True
    raise KeyboardInterrupt
