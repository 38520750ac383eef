"""Progress of long work and notices, reported to a callback and not printed, and libraries kept from printing."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A finished step of a task.

    Attributes:
        task: what is being done; the same words for every step of a task.
        done: steps finished.
        total: steps in all.
        note: a few words on the last step, such as an accuracy.
    """

    task: str
    done: int
    total: int
    note: str = ""


class Notice(Progress):
    """A line to be shown as it is, such as what is about to happen: a task of one step, which is done."""

    def __init__(self, line: str) -> None:
        super().__init__(line, 1, 1)


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report to nobody."""


@contextmanager
def errors_only(logger_name: str) -> Iterator[None]:
    """Let only errors through a library's logger, such as ``torch.onnx``, while the block runs."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
