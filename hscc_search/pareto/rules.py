"""The rules by which a trial is chosen, and the text that states them."""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

from hscc_search.config.metrics import is_share, known_metric, less_is_better
from hscc_search.config.numbers import plain
from hscc_search.errors import ConfigError, quoted
from hscc_search.pareto.objectives import UNITS

# The name of the ratio of the dense network's FLOPs to a trial's, in a rule.
BUDGET = "budget"
Operator = Literal["<=", ">=", "<", ">"]
_KEEPS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
# A bound within an expression, but for the name before it: operator, number, and what follows. The names of classes may
# hold whatever else.
_BOUND = re.compile(r"(<=|>=|<|>)\s*([^\s<>=]+)(\s+and\s+|\s*$)")
# A metric of the study's own, or what it samples: energy, energy@stage1, energy@features.0.
_NAME = re.compile(r"[A-Za-z]\w*(@[^\s<>=]+)?")
_POWERS = {"k": 3, "M": 6, "G": 9}
_COUNTS = ("flops", "macs", "parameters")
# Digits of the number of a trial: a database counts in 64 bits.
_MOST_DIGITS = 18
# Characters of a rule.
_LONGEST = 2000


@dataclass(frozen=True)
class Knee:
    """The knee of most bootstrap draws, see :func:`hscc_search.pareto.confidence.confidence`."""


@dataclass(frozen=True)
class ByTrial:
    """The trial of a number, whether it is feasible or not."""

    trial: int


@dataclass(frozen=True)
class WholeFront:
    """Each trial of the front, see :func:`hscc_search.pareto.selection.ranked`."""


@dataclass(frozen=True)
class Bound:
    """A bound on one value of a trial; as a rule of its own it is on the side from which its metric gets worse.

    Attributes:
        metric: name of a metric, of a value that the study samples, or ``budget``: the dense network's FLOPs over the
            trial's.
        operator: what the value is to be, compared with ``value``.
        value: in the unit of the metric.
    """

    metric: str
    operator: Operator
    value: float

    def __str__(self) -> str:
        """The bound as an expression has it."""
        number = f"{self.value:.12g}"
        if self.metric in _COUNTS and math.isfinite(self.value):
            number = _short(self.value, 12)
        return f"{self.metric}{self.operator}{number}"

    @property
    def at_least(self) -> bool:
        """Tell a bound from below from one from above."""
        return self.operator in (">=", ">")

    def keeps(self, value: float) -> bool:
        """Compare a value with the bound; NaN keeps none."""
        return _KEEPS[self.operator](value, self.value)

    def missed_by(self, value: float) -> float:
        """How far a value is beyond the bound, in its unit: 0 where it keeps it, or equals what it is not to be."""
        if math.isnan(value):
            return math.inf
        return max(0.0, self.value - value if self.at_least else value - self.value)


@dataclass(frozen=True)
class Bounds:
    """Bounds that are kept together: an expression such as ``accuracy>=0.88 and latency<=5``."""

    bounds: tuple[Bound, ...]

    def __str__(self) -> str:
        """The expression."""
        return " and ".join(map(str, self.bounds))


Rule = Knee | ByTrial | WholeFront | Bound | Bounds


def parse_rule(text: str) -> Rule:
    """Read a rule.

    Args:
        text: ``knee``, ``trial:N``, ``all``, ``min-METRIC:X``, ``max-METRIC:X``, ``budget:X``, or an expression of
            bounds joined by ``and``. Numbers may end in k, M or G, as in ``flops<=1.2G``.

    Raises:
        ConfigError: the text is none of these, or a bound cannot be kept. Names that may be those of a study's own
            metrics and samples are left to whoever reads the study.
    """
    if text == "knee":
        return Knee()
    if text == "all":
        return WholeFront()
    kind, _, number = text.rpartition(":")
    if kind == "trial" and number.isascii() and number.isdecimal() and len(number) <= _MOST_DIGITS:
        return ByTrial(int(number))
    reason = ""
    if len(text) <= _LONGEST:
        rule = _single(kind, number) or _expression(text)
        bounds = rule.bounds if isinstance(rule, Bounds) else () if rule is None else (rule,)
        reason = next(filter(None, map(_fault, bounds)), "")
        if isinstance(rule, Bound):
            reason = reason or wrong_side(rule, None)
        if rule is not None and not reason:
            return rule
    raise ConfigError(
        f"cannot select {quoted(text)}{f' ({reason})' if reason else ''}: use knee, trial:N, all, min-accuracy:X with "
        "X from 0 to 1, max-flops:X with X above 0, budget:X for X times fewer FLOPs, or bounds as in "
        "'accuracy>=0.9 and flops<=1.2G'; with any metric that the study measures or value that it samples"
    )


def wrong_side(bound: Bound, maximise: bool | None) -> str:
    """Say that a rule bounds its metric from the side from which it gets better; empty where it does not.

    Args:
        bound: a rule of its own.
        maximise: whether more is better of the metric; None where only the names of the package's metrics tell.
    """
    if maximise is None and (bound.metric == BUDGET or known_metric(bound.metric)):
        maximise = not less_is_better(bound.metric) or bound.metric == BUDGET
    if maximise is None or maximise == bound.at_least:
        return ""
    right, word = ("min", "more") if maximise else ("max", "less")
    return f"of {bound.metric} {word} is better: use {right}-{bound.metric}:{bound.value:g}"


def amount(metric: str, value: float) -> str:
    """A difference of a metric, in its unit, to three digits."""
    suffix = "x" if metric == BUDGET else UNITS[metric].suffix if metric in UNITS else ""
    return (_short(value, 3) if metric in _COUNTS else f"{value:.3g}") + suffix


def _single(kind: str, number: str) -> Bound | None:
    """The rule of one bound: ``min-METRIC``, ``max-METRIC`` or ``budget`` before the colon; None where it is none."""
    if kind == BUDGET:
        return Bound(BUDGET, ">=", _number(number))
    direction, _, metric = kind.partition("-")
    if direction not in ("min", "max"):
        return None
    return Bound(metric, ">=" if direction == "min" else "<=", _number(number))


def _expression(text: str) -> Bounds | None:
    """Read bounds joined by ``and``; None where they are none."""
    position, joined, bounds = 0, True, []
    while joined:
        found = _BOUND.search(text, position)
        if found is None:
            return None
        name = text[position : found.start()].strip()
        bounds.append(Bound(name, cast(Operator, found[1]), _number(found[2])))
        position, joined = found.end(), bool(found[3].strip())
    return Bounds(tuple(bounds))


def _fault(bound: Bound) -> str:
    """Say why no trial can keep a bound, or what it bounds cannot be a metric; empty where neither is certain."""
    name, value = bound.metric, bound.value
    if name != BUDGET and not known_metric(name) and not _NAME.fullmatch(name):
        return f"{quoted(name)} is no name of a metric; bounds are joined by 'and', each written as accuracy>=0.9"
    if math.isnan(value):
        return (
            f"{name} is compared with what is no number; k, M and G stand for 10^3, 10^6 and 10^9, and bounds that are "
            "joined by 'and' are each written as accuracy>=0.9"
        )
    if is_share(name) and not 0 <= value <= 1:
        return f"{name} is a share, from 0 to 1"
    if (name == BUDGET or (known_metric(name) and not is_share(name))) and value <= 0:
        return f"{name} is above 0 for every network"
    if value == (math.inf if bound.at_least else -math.inf):
        return f"{name} is finite"
    return ""


def _number(text: str) -> float:
    """Read a number, which may end in k, M or G; NaN where the text is none."""
    power = _POWERS.get(text[-1:])
    try:
        text = plain(text)
        return float(text if power is None else f"{text[:-1]}e{power}")
    except ValueError:
        return math.nan


def _short(count: float, digits: int) -> str:
    """A number as a rule may have it: 1.2G."""
    count = float(f"{count:.{digits}g}")  # 999,999 in three digits is 1M
    suffix = next((suffix for suffix, power in reversed(_POWERS.items()) if abs(count) >= 10**power), "")
    return f"{count / 10 ** _POWERS.get(suffix, 0):.{digits}g}{suffix}"
