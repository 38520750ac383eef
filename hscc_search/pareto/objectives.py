"""The objectives and constraints of a study, and the names and units of metrics in text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hscc_search.config import StudyConfig

# Metrics that depend on the validation images; all of them are maximised.
_QUALITIES = ("accuracy", "macro_f1", "recall")


@dataclass(frozen=True)
class Objective:
    """A metric that a study minimises or maximises.

    Attributes:
        metric: ``flops``, ``macs``, ``parameters``, ``megabytes``, ``latency``, ``accuracy``, ``macro_f1`` or
            ``recall:CLASS``.
        maximise: whether more is better.
    """

    metric: str
    maximise: bool

    @property
    def on_images(self) -> bool:
        """Whether the metric depends on the validation images; costs do not."""
        return self.metric.split(":")[0] in _QUALITIES

    @property
    def direction(self) -> Literal["minimise", "maximise"]:
        """The direction in a word."""
        return "maximise" if self.maximise else "minimise"

    @property
    def sign(self) -> int:
        """The factor that makes lower values better: -1 where the metric is maximised, else 1."""
        return -1 if self.maximise else 1


def objectives_of(config: StudyConfig) -> tuple[Objective, ...]:
    """List the objectives of a study, in the order of its file."""
    return tuple(Objective(name, maximise=name.split(":")[0] in _QUALITIES) for name in config.objectives)


def violations(config: StudyConfig, metrics: Mapping[str, float]) -> dict[str, float]:
    """Measure how far a network misses each constraint, in the unit of its metric; 0 where it keeps it."""
    # max keeps its first argument where that is NaN, so NaN violates every constraint.
    return {name: max(excess, 0.0) for name, excess in excesses(config, metrics).items()}


def excesses(config: StudyConfig, metrics: Mapping[str, float]) -> dict[str, float]:
    """Measure how far a network is beyond the bound of each constraint; negative where it keeps it with room to spare.

    Optuna stores these and not the violations, since its samplers learn from the room that is left.
    """
    beyond = {}
    for constraint in config.constraints:
        value = metrics[constraint.metric]
        if constraint.at_least is not None:
            beyond[f"{constraint.metric} >= {constraint.at_least:g}"] = constraint.at_least - value
        else:
            assert constraint.at_most is not None
            beyond[f"{constraint.metric} <= {constraint.at_most:g}"] = value - constraint.at_most
    return beyond


def needs_latency(config: StudyConfig) -> bool:
    """Whether trials of a study measure latency."""
    return "latency" in (*config.objectives, *(constraint.metric for constraint in config.constraints))


def title(metric: str) -> str:
    """The name of a metric in tables and figures."""
    titles = {
        "flops": "FLOPs",
        "macs": "MACs",
        "megabytes": "size in MB",
        "latency": "latency in ms",
        "macro_f1": "macro F1",
    }
    name, _, of = metric.partition(":")
    return f"recall of {of}" if of else titles.get(name, name)


def written(metric: str, value: float) -> str:
    """The value of a metric in tables; FLOPs and MACs in units of 10^9."""
    if metric in ("flops", "macs"):
        return f"{value / 1e9:.4f} G"
    if metric == "parameters":
        return f"{value:,.0f}"
    return f"{value:.3f}" if metric in ("latency", "megabytes") else f"{value:.4f}"
