"""Choose a trial by a rule."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hscc_search.config.metrics import COSTS, known_metric, less_is_better
from hscc_search.errors import ConfigError, StudyError, quoted
from hscc_search.pareto.confidence import Truth, confidence
from hscc_search.pareto.front import front
from hscc_search.pareto.objectives import Objective, title
from hscc_search.pareto.points import Point

# Digits of the number of a trial: a database counts in 64 bits.
_MOST_DIGITS = 18


@dataclass(frozen=True)
class Knee:
    """The knee of most bootstrap draws, see :func:`hscc_search.pareto.confidence.confidence`."""


@dataclass(frozen=True)
class ByTrial:
    """The trial of a number, whether it is feasible or not."""

    trial: int


@dataclass(frozen=True)
class Bound:
    """The best feasible trial whose metric keeps a bound.

    Where the bound is on a metric of answers, that of fewest FLOPs. Where it is on a cost, the most accurate one; the
    best by a metric of scores in a study that has one among its objectives, and not accuracy.

    Attributes:
        metric: its name.
        at_least: whether the value is a lower bound and not an upper one.
        value: the bound, in the unit of the metric.
    """

    metric: str
    at_least: bool
    value: float


Rule = Knee | ByTrial | Bound


def parse_rule(text: str) -> Rule:
    """Read a rule: ``knee``, ``trial:N``, ``min-METRIC:X`` or ``max-METRIC:X``.

    Raises:
        ConfigError: the text is none of these, or the bound does not go with the metric.
    """
    kind, _, number = text.rpartition(":")
    if text == "knee":
        return Knee()
    if kind == "trial" and number.isdecimal() and len(number) <= _MOST_DIGITS:
        return ByTrial(int(number))
    direction, _, metric = kind.partition("-")
    rule = Bound(metric, direction == "min", _number(number))
    if direction in ("min", "max") and _sensible(rule):
        return rule
    raise ConfigError(
        f"cannot select {quoted(text)}: use knee, trial:N, min-accuracy:X with X from 0 to 1, or max-flops:X with X "
        "above 0; in place of accuracy and flops any metric that the study measures"
    )


def _sensible(rule: Bound) -> bool:
    """Whether a bound can be kept, and bounds a metric from its bad side; of own metrics only the study knows."""
    if math.isnan(rule.value):
        return False
    if not known_metric(rule.metric):
        return bool(re.fullmatch(r"[A-Za-z]\w*", rule.metric))
    if less_is_better(rule.metric):
        return not rule.at_least and rule.value > 0
    return rule.at_least and 0 <= rule.value <= 1


def select(
    rule: Rule | str,
    points: Sequence[Point],
    objectives: Sequence[Objective],
    truth: Truth,
    seed: int = 0,
    most_parameters: float | None = None,
) -> Point:
    """Choose a trial by a rule.

    Args:
        rule: a text that :func:`parse_rule` reads, or what it read.
        points: all finished trials.
        objectives: of the study.
        truth: of the validation images.
        seed: of the bootstrap.
        most_parameters: parameters of the dense network: the knee has no more, where any trial has no more.

    Raises:
        ConfigError: the text is not a rule.
        StudyError: no trial fits the rule, or its metric was not measured.
    """
    match rule if isinstance(rule, Rule) else parse_rule(str(rule)):
        case ByTrial(trial):
            return _numbered(trial, points, objectives)
        case Knee():
            _require_feasible(points)
            surely = confidence(points, objectives, truth, seed, most_parameters=most_parameters)
            return _numbered(surely.knee, points, objectives)
        case Bound() as bound:
            return _bounded(bound, points, objectives)


def why_none_is_feasible(points: Sequence[Point]) -> str:
    """Name the trial that comes nearest to keeping its constraints, for a study in which no trial keeps them."""
    nearest = min(points, key=lambda point: (max(point.violations.values()), point.trial))
    size, name = max((size, name) for name, size in nearest.violations.items())
    return f"no trial is feasible: {nearest.name} comes nearest, it violates {name} by {size:g}"


def _number(text: str) -> float:
    """Read a number; NaN where the text is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _numbered(trial: int | None, points: Sequence[Point], objectives: Sequence[Objective]) -> Point:
    for point in points:
        if point.trial == trial:
            return point
    members = ", ".join(str(point.trial) for point in front(points, objectives)) or "none"
    raise StudyError(f"no finished trial {trial}: the front holds {members}")


def _bounded(bound: Bound, points: Sequence[Point], objectives: Sequence[Objective]) -> Point:
    """The best feasible point that keeps a bound, by the rule of :class:`Bound`."""
    feasible = _require_feasible(points)
    for objective in objectives:
        if (objective.metric, not objective.maximise) == (bound.metric, bound.at_least):
            right, word = ("min", "more") if objective.maximise else ("max", "less")
            raise StudyError(f"of {bound.metric} {word} is better: use {right}-{bound.metric}:{bound.value:g}")
    sign = 1 if bound.at_least else -1
    fitting = [point for point in feasible if sign * point[bound.metric] >= sign * bound.value]
    goal = _goal(objectives)
    if not fitting:
        best = sign * max(sign * point[bound.metric] for point in feasible)
        raise StudyError(_why_none_fits(bound, best))
    if bound.metric in COSTS:
        return min(fitting, key=lambda point: (goal.sign * point[goal.metric], point[bound.metric], point.trial))
    return min(fitting, key=lambda point: (point["flops"], -sign * point[bound.metric], point.trial))


def _goal(objectives: Sequence[Objective]) -> Objective:
    """The metric that is to be best under a bound on a cost, see :class:`Bound`."""
    accuracy = Objective("accuracy", maximise=True)
    of_scores = [objective for objective in objectives if objective.on_scores]
    return accuracy if accuracy in objectives or not of_scores else of_scores[0]


def _why_none_fits(bound: Bound, best: float) -> str:
    if bound.metric == "flops":
        return f"no trial has {bound.value:g} FLOPs or fewer: the fewest are {best:.0f}"
    name = title(bound.metric)
    article = "an" if name[0] in "aA" else "a"
    if bound.at_least:
        return f"no trial has {article} {name} of {bound.value:g} or more: the highest is {best:.4f}"
    return f"no trial has {article} {name} of {bound.value:g} or less: the lowest is {best:.4f}"


def _require_feasible(points: Sequence[Point]) -> list[Point]:
    """List the feasible points.

    Raises:
        StudyError: there is none.
    """
    if not points:
        raise StudyError("the front is empty: run the study first")
    feasible = [point for point in points if point.feasible]
    if not feasible:
        raise StudyError(why_none_is_feasible(points))
    return feasible
