"""How long work tells where it stands, without printing."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One step of one task.

    Attributes:
        task: what is being done, the same words for every step of one task.
        done: steps finished.
        total: steps in all.
        note: a few words on the last step, such as an accuracy.
    """

    task: str
    done: int
    total: int
    note: str = ""


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report to nobody."""
