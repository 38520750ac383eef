"""Choose a trial by a rule, and say why it is that one and how sure its place is."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hscc_search.config.metrics import COSTS, known_metric
from hscc_search.errors import ConfigError, StudyError, quoted, shortened
from hscc_search.pareto.confidence import Confidence, Truth, confidence
from hscc_search.pareto.front import front
from hscc_search.pareto.objectives import Objective, title
from hscc_search.pareto.points import Measured, Point
from hscc_search.pareto.rules import (
    BUDGET,
    Bound,
    Bounds,
    ByTrial,
    Knee,
    Rule,
    WholeFront,
    amount,
    parse_rule,
    wrong_side,
)

# Trials that are named where none keeps the bounds.
_NEAREST = 3
_DRAWS = "bootstrap draws"


@dataclass(frozen=True)
class Choice:
    """A trial that was chosen.

    Attributes:
        point: the trial.
        reason: why it is this one, in words.
        probability: share of the bootstrap draws of the validation images in which it is on the front.
    """

    point: Point
    reason: str
    probability: float

    def __str__(self) -> str:
        """The choice in one line."""
        return f"{self.point.name}: {self.why}"

    @property
    def why(self) -> str:
        """The reason, and how sure the trial's place is."""
        missed = ", ".join(f"{name} by {size:g}" for name, size in self.point.violations.items() if size)
        if missed:
            return f"{self.reason}; not on the front: it violates {missed}"
        draws = "them" if _DRAWS in self.reason else _DRAWS
        return f"{self.reason}; on the front in {_percent(self.probability)} of {draws}"

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values, without the trial."""
        return {"reason": self.reason, "probability": self.probability, "in_words": self.why}


def select(
    rule: Rule | str,
    points: Sequence[Point],
    objectives: Sequence[Objective],
    truth: Truth,
    seed: int = 0,
    dense: Measured | None = None,
) -> Point:
    """Choose a trial by a rule.

    Bounds are kept by feasible trials alone. Of those that keep all of them the best is taken: the one of fewest FLOPs
    where a metric of answers is among the metrics that are bounded; where only costs, the budget or sampled values are,
    the most accurate one, or the best by a metric of scores in a study that has one among its objectives, and not
    accuracy. Of equal ones it is the best by the bounded values, in the order of the bounds, then the most accurate (or
    the best by that metric), then the first trial.

    Args:
        rule: a text that :func:`hscc_search.pareto.rules.parse_rule` reads, or what it read.
        points: all finished trials.
        objectives: of the study.
        truth: of the validation images.
        seed: of the bootstrap.
        dense: the dense network, which a budget is counted from. The knee has no more parameters, where any trial has
            no more.

    Raises:
        ConfigError: the text is not a rule, or the rule is of several trials.
        StudyError: no trial fits the rule, or a value that it bounds was not measured; the message names the trials
            that come nearest, or the values that there are.
    """
    most = None if dense is None else dense["parameters"]
    surely = partial(confidence, points, objectives, truth, seed, most_parameters=most)
    return _pick(rule, points, objectives, surely, dense)[0]


def choose(
    rule: Rule | str,
    points: Sequence[Point],
    objectives: Sequence[Objective],
    surely: Callable[[], Confidence],
    dense: Measured,
) -> Choice:
    """Choose a trial as :func:`select` does, with the reason; ``surely`` gives the confidence of the study."""
    point, reason = _pick(rule, points, objectives, surely, dense)
    return Choice(point, reason, surely().probability.get(point.trial, 0.0))


def ranked(members: Sequence[Point], surely: Confidence) -> list[Choice]:
    """Rank the members of a front by how often each is the knee of a bootstrap draw, then how often it is on the front.

    Args:
        members: in the order of the front, which equal ones keep.
        surely: the confidence of their study.

    Raises:
        StudyError: the front is empty.
    """
    if not members:
        raise StudyError("the front is empty: run the study first")
    often, probability = surely.knees, surely.probability
    order = sorted(members, key=lambda point: (-often.get(point.trial, 0.0), -probability[point.trial]))
    return [
        Choice(
            point,
            f"place {place} of {len(order)}, the knee of {_draws_as_knee(surely, point)}",
            probability[point.trial],
        )
        for place, point in enumerate(order, start=1)
    ]


def _pick(
    rule: Rule | str,
    points: Sequence[Point],
    objectives: Sequence[Objective],
    surely: Callable[[], Confidence],
    dense: Measured | None,
) -> tuple[Point, str]:
    """The trial of a rule, and the reason."""
    match rule if isinstance(rule, Rule) else parse_rule(str(rule)):
        case ByTrial(trial):
            return _numbered(trial, points, objectives), "asked for by its number"
        case Knee():
            _require_feasible(points)
            chosen = _numbered(surely().knee, points, objectives)
            return chosen, f"the most frequent knee, that of {_draws_as_knee(surely(), chosen)}"
        case Bound() as bound:
            own = next((objective for objective in objectives if objective.metric == bound.metric), None)
            fault = wrong_side(bound, None if own is None else own.maximise)
            if fault:
                raise StudyError(fault)
            return _best(Bounds((bound,)), points, objectives, dense)
        case Bounds() as bounds:
            return _best(bounds, points, objectives, dense)
        case WholeFront():
            raise ConfigError("all is each trial of the front: only an export takes it; here use another rule")


def _best(
    rule: Bounds, points: Sequence[Point], objectives: Sequence[Objective], dense: Measured | None
) -> tuple[Point, str]:
    """The best feasible trial that keeps all bounds, by the rule of :func:`select`, and the reason."""
    feasible = _require_feasible(points)
    values = {point.trial: [_value(point, bound.metric, dense) for bound in rule.bounds] for point in feasible}
    fitting = [point for point in feasible if all(map(Bound.keeps, rule.bounds, values[point.trial]))]
    if not fitting:
        whose = "trial" if len(feasible) == len(points) else "feasible trial"
        raise StudyError(f"no {whose} keeps {rule}: {_nearest(rule, feasible, values)}")
    answers = goal = _goal(objectives)
    if any(bound.metric in feasible[0].metrics and bound.metric not in COSTS for bound in rule.bounds):
        goal = Objective("flops", maximise=False)

    def order(point: Point) -> tuple[float, ...]:
        bounded = zip(rule.bounds, values[point.trial], strict=True)
        towards = (-value if bound.at_least else value for bound, value in bounded)
        return (goal.sign * point[goal.metric], *towards, answers.sign * point[answers.metric], point.trial)

    words = (
        "fewest FLOPs" if goal.metric == "flops" else f"{'highest' if goal.maximise else 'lowest'} {title(goal.metric)}"
    )
    among = f"{words} of {len(fitting)} that keep" if len(fitting) > 1 else "the only one that keeps"
    return min(fitting, key=order), f"{among} {rule}"


def _value(point: Point, name: str, dense: Measured | None) -> float:
    """The value of a trial that a bound is on: of a metric, the budget, or a number that was sampled.

    Raises:
        StudyError: there is none.
    """
    if name == BUDGET and dense is not None and BUDGET not in point.metrics:
        return dense["flops"] / point["flops"]
    if name != BUDGET and name in point.metrics:
        return point.metrics[name]
    value = point.sample.get(name)
    if name != BUDGET and isinstance(value, (int, float)):
        return value
    raise StudyError(_why_no_value(point, name, dense))


def _why_no_value(point: Point, name: str, dense: Measured | None) -> str:
    if name == BUDGET:
        own = "a metric of the study's own has that name" if dense is not None else "the dense network is not given"
        return f"a budget cannot be told, since {own}: use flops<=X"
    if name in point.sample:
        return f"{name} of {point.name} is {quoted(point.sample[name])}, and only numbers are bounded"
    numbers = [name for name, value in point.sample.items() if isinstance(value, (int, float))]
    there = [*point.metrics, *numbers]
    close = [] if known_metric(name) else difflib.get_close_matches(name, there, n=1)
    suggestion = f"did you mean {close[0]}? " if close else ""
    sampled = f", and {', '.join(numbers)} were sampled" if numbers else ""
    return shortened(
        f"{point.name} has no {shortened(name)}: {suggestion}measured are {', '.join(point.metrics)}{sampled}", 1000
    )


def _nearest(rule: Bounds, feasible: Sequence[Point], values: Mapping[int, Sequence[float]]) -> str:
    """Name the trials that come nearest to keeping bounds, and say by how much each misses which.

    They are those whose largest miss is least, each in proportion to how far apart the feasible trials are in it.
    """
    misses = {
        trial: [
            0.0 if bound.keeps(value) else bound.missed_by(value) for bound, value in zip(rule.bounds, row, strict=True)
        ]
        for trial, row in values.items()
    }
    columns = [[value for value in column if math.isfinite(value)] for column in zip(*values.values(), strict=True)]
    spans = [max(column, default=0.0) - min(column, default=0.0) or 1.0 for column in columns]

    def distance(point: Point) -> tuple[float, int]:
        return max(miss / span for miss, span in zip(misses[point.trial], spans, strict=True)), point.trial

    named = []
    for point in sorted(feasible, key=distance)[:_NEAREST]:
        rows = zip(rule.bounds, values[point.trial], misses[point.trial], strict=True)
        missed = [_missed(bound, value, miss) for bound, value, miss in rows if not bound.keeps(value)]
        named.append(f"{point.name} misses {', and '.join(missed)}")
    return "; ".join(named)


def _missed(bound: Bound, value: float, miss: float) -> str:
    if miss == 0:
        return f"{bound}, which it equals"
    if math.isnan(value):
        return f"{bound}, as it has no value"
    return f"{bound} by {amount(bound.metric, miss)}"


def _draws_as_knee(surely: Confidence, point: Point) -> str:
    """In how many draws a trial is the knee, in words."""
    return f"{_percent(surely.knees.get(point.trial, 0.0))} of {_DRAWS}"


def _percent(share: float) -> str:
    """A share in percent, of which none that is not whole is 0 or 100."""
    if 0 < share < 0.01:
        return "less than 1 %"
    return "more than 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def why_none_is_feasible(points: Sequence[Point]) -> str:
    """Name the trial that comes nearest to keeping its constraints, for a study in which no trial keeps them."""
    nearest = min(points, key=lambda point: (max(point.violations.values()), point.trial))
    size, name = max((size, name) for name, size in nearest.violations.items())
    return f"no trial is feasible: {nearest.name} comes nearest, it violates {name} by {size:g}"


def _numbered(trial: int | None, points: Sequence[Point], objectives: Sequence[Objective]) -> Point:
    for point in points:
        if point.trial == trial:
            return point
    members = ", ".join(str(point.trial) for point in front(points, objectives)) or "none"
    raise StudyError(f"no finished trial {trial}: the front holds {members}")


def _goal(objectives: Sequence[Objective]) -> Objective:
    """The metric that is to be best under bounds on costs, see :func:`select`."""
    accuracy = Objective("accuracy", maximise=True)
    of_scores = [objective for objective in objectives if objective.on_scores]
    return accuracy if accuracy in objectives or not of_scores else of_scores[0]


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
