import os
import signal
import sys

import pytest

from hscc_search.cli import stopping
from hscc_search.progress import Progress


@pytest.fixture
def listening(monkeypatch):
    """Signals as a command hears them, and as before afterwards."""
    monkeypatch.setattr(stopping, "_asked_to_stop", False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_command_where_it_is_or_at_its_next_step(listening, number):
    stopping.stop_on_signals()
    with stopping.stoppable_bars() as report:
        report(Progress("searching", 1, 40))
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)  # what a library may swallow
        with pytest.raises(KeyboardInterrupt):
            report(Progress("searching", 2, 40))


def test_a_signal_lost_in_a_destructor_stops_a_command_at_its_next_step(listening, monkeypatch):
    class Handle:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)

    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: lost.append(unraisable.exc_type))
    stopping.stop_on_signals()
    with stopping.stoppable_bars() as report:
        handle = Handle()
        del handle
        assert lost == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt):
            report(Progress("searching", 2, 40))


def test_a_ctrl_c_that_is_ignored_stays_so(listening):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping.stop_on_signals()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
