"""The objectives and constraints of a study, and the names and units of metrics in text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hscc_search.config import StudyConfig
from hscc_search.config.metrics import COSTS, class_of, known_metric, less_is_better, needs_scores, specificity_of


@dataclass(frozen=True)
class Objective:
    """A metric that a study minimises or maximises.

    Attributes:
        metric: a cost (``flops``, ``macs``, ``parameters``, ``megabytes``, ``latency``), a metric of answers such as
            ``accuracy``, ``auroc`` or ``recall:CLASS``, or one of the study's own.
        maximise: whether more is better.
        bounds: of a metric of the study's own the worst value that counts, and the best one; None for others.
    """

    metric: str
    maximise: bool
    bounds: tuple[float, float] | None = None

    @property
    def on_images(self) -> bool:
        """Tell whether the metric depends on the validation images; costs do not."""
        return self.metric not in COSTS

    @property
    def on_scores(self) -> bool:
        """Tell whether the metric needs the scores of all classes, and not only the predicted ones."""
        return needs_scores(self.metric)

    @property
    def own(self) -> bool:
        """Tell whether the metric is the study's own, whose values on draws are stored with each trial."""
        return not known_metric(self.metric)

    @property
    def direction(self) -> Literal["minimise", "maximise"]:
        """The direction in a word."""
        return "maximise" if self.maximise else "minimise"

    @property
    def sign(self) -> int:
        """The factor that makes lower values better: -1 where the metric is maximised, else 1."""
        return -1 if self.maximise else 1


@dataclass(frozen=True)
class Unit:
    """The unit of a cost.

    Attributes:
        suffix: what stands behind a value.
        axis: what stands at an axis, whose unit may be a larger one.
        scale: how many of the metric's own the axis's unit is.
    """

    suffix: str
    axis: str
    scale: float


UNITS = {
    "flops": Unit(" FLOPs", "GFLOPs per image (1 multiply-add = 2 FLOPs)", 1e9),
    "macs": Unit(" MACs", "GMACs per image (1 multiply-add = 1 MAC)", 1e9),
    "parameters": Unit(" parameters", "million parameters", 1e6),
    "megabytes": Unit(" MB", "size in MB (10^6 bytes)", 1.0),
    "latency": Unit(" ms", "latency in ms per batch", 1.0),
}


def objectives_of(config: StudyConfig) -> tuple[Objective, ...]:
    """List the objectives of a study, in the order of its file."""
    return tuple(objective_of(config, name) for name in config.objectives)


def objective_of(config: StudyConfig, metric: str) -> Objective:
    """The direction and the bounds of a metric that a study asks for."""
    own = config.metrics.get(metric)
    if own is None:
        return Objective(metric, maximise=not less_is_better(metric))
    return Objective(metric, own.better == "higher", own.bounds)


def quality_of(config: StudyConfig) -> str:
    """The metric of answers that one line on a network says: accuracy, unless the objectives hold others alone."""
    of_answers = [objective.metric for objective in objectives_of(config) if objective.on_images]
    return "accuracy" if "accuracy" in of_answers or not of_answers else of_answers[0]


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


def title(metric: str) -> str:
    """The name of a metric in tables and figures."""
    titles = {
        "flops": "FLOPs",
        "macs": "MACs",
        "megabytes": "size in MB",
        "latency": "latency in ms",
        "macro_f1": "macro F1",
        "balanced_accuracy": "balanced accuracy",
        "auroc": "AUROC",
        "average_precision": "average precision",
        "log_loss": "log loss",
        "calibration_error": "calibration error",
    }
    kind, of, specificity = metric.partition(":")[0], class_of(metric), specificity_of(metric)
    if specificity is not None:
        return f"sensitivity to {of} at specificity {specificity:g}"
    return f"{titles.get(kind, kind)} of {of}" if of else titles.get(metric, metric)


def written(metric: str, value: float) -> str:
    """The value of a metric in tables; FLOPs and MACs in units of 10^9."""
    if metric in ("flops", "macs"):
        return f"{value / UNITS[metric].scale:.4f} G"
    if metric == "parameters":
        return f"{value:,.0f}"
    return f"{value:.3f}" if metric in ("latency", "megabytes") else f"{value:.4f}"
