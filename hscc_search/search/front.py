"""Who is Pareto-optimal, and which of them to take."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hscc_search.errors import ConfigError, StudyError


@dataclass(frozen=True)
class Point:
    """A finished trial, or the dense network, as it stands in the plane of FLOPs and accuracy.

    Attributes:
        trial: its number; None for the dense network.
        settings: sampled values by name; empty for the dense network.
        flops: per image, two per multiply-add.
        macs: per image.
        parameters: number of weights.
        megabytes: size of the weights.
        accuracy: on the validation part, 0 to 1.
        accuracy_se: its bootstrap standard error.
        macro_f1: on the validation part.
        macro_f1_se: its bootstrap standard error.
    """

    trial: int | None
    settings: dict[str, Any]
    flops: int
    macs: int
    parameters: int
    megabytes: float
    accuracy: float
    accuracy_se: float
    macro_f1: float
    macro_f1_se: float

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values; the dense network has no trial and no settings."""
        tree = asdict(self)
        if self.trial is None:
            del tree["trial"], tree["settings"]
        return tree


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none has at most as many FLOPs and at least the accuracy, and is not equal.

    Returns:
        By ascending FLOPs, and so by ascending accuracy; of equal points the first trial.
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.flops, -point.accuracy, point.trial or 0)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def knee(members: Sequence[Point]) -> Point:
    """The point of a front that lies furthest beyond the straight line between its ends.

    FLOPs and accuracy are scaled to 0..1 over the front first (Das 1999). A front of one or two points has no
    bend: its most accurate point is taken.

    Raises:
        StudyError: the front is empty.
    """
    if not members:
        raise StudyError("the front is empty: run the study first")
    first, last = members[0], members[-1]
    if len(members) < 3:
        return last

    def beyond(point: Point) -> float:
        gain = (point.accuracy - first.accuracy) / (last.accuracy - first.accuracy)
        price = (point.flops - first.flops) / (last.flops - first.flops)
        return gain - price

    return max(members, key=beyond)


def select(rule: str, points: Sequence[Point]) -> Point:
    """Choose a trial.

    Args:
        rule: ``knee``, ``trial:N``, ``min-accuracy:X`` (fewest FLOPs with accuracy X or more) or ``max-flops:X``
            (most accurate with at most X FLOPs).
        points: all finished trials.

    Raises:
        ConfigError: there is no such rule.
        StudyError: no trial fits it.
    """
    members = front(points)
    kind, _, text = rule.partition(":")
    if rule == "knee":
        return knee(members)
    if kind == "trial" and text.isdecimal():
        found = [point for point in points if point.trial == int(text)]
        if not found:
            raise StudyError(f"no finished trial {text}: the front holds {_numbers(members)}")
        return found[0]
    if kind in ("min-accuracy", "max-flops"):
        try:
            bound = float(text)
        except ValueError:
            bound = math.nan
        if kind == "min-accuracy" and 0 <= bound <= 1:
            fitting = [point for point in members if point.accuracy >= bound]
            if not fitting:
                best = max((point.accuracy for point in members), default=math.nan)
                raise StudyError(f"no trial has an accuracy of {bound:g} or more: the highest is {best:.4f}")
            return fitting[0]
        if kind == "max-flops" and bound > 0:
            fitting = [point for point in members if point.flops <= bound]
            if not fitting:
                fewest = min((point.flops for point in members), default=0)
                raise StudyError(f"no trial has {bound:g} FLOPs or fewer: the fewest are {fewest}")
            return fitting[-1]
    raise ConfigError(
        f"cannot select {rule!r}: use knee, trial:N, min-accuracy:X with X from 0 to 1, or max-flops:X with X above 0"
    )


def _numbers(members: Sequence[Point]) -> str:
    return ", ".join(str(point.trial) for point in members) or "none"
