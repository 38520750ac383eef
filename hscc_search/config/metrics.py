"""Names of metrics in a study file, and the sections on metrics of a user's own, constraints and latency."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hscc_search.config.section import Section
from hscc_search.errors import quoted

COSTS = ("flops", "macs", "parameters", "megabytes", "latency")
# Metrics of the predicted classes, and those of the scores of all classes.
_OF_CLASSES = ("accuracy", "macro_f1", "balanced_accuracy")
_OF_SCORES = ("auroc", "average_precision", "log_loss", "calibration_error")
METRICS = (*COSTS, *_OF_CLASSES, *_OF_SCORES)
# Metrics of one class against the rest.
ONE_CLASS = ("recall", "specificity", "auroc", "average_precision")
# The other metrics in a form that messages and descriptions give.
FORMS = "recall:CLASS, specificity:CLASS, auroc:CLASS, average_precision:CLASS, sensitivity@SPECIFICITY:CLASS"
# Metrics of which less is better, beside the costs.
_LOSSES = ("log_loss", "calibration_error")
_OWN_NAME = r"[A-Za-z][A-Za-z0-9_]*"

# Whether it is one of the metrics of a study is checked for the whole file, which may name some of its own.
Metric = Annotated[str, Field(min_length=1)]


def known_metric(name: str) -> bool:
    """Tell whether a name is that of a metric that comes with the package."""
    if name in METRICS:
        return True
    kind, _, of = name.partition(":")
    return bool(of) and (kind in ONE_CLASS or specificity_of(name) is not None)


def specificity_of(metric: str) -> float | None:
    """The specificity that ``sensitivity@SPECIFICITY:CLASS`` states, 0 to 1; None for other metrics."""
    found = re.fullmatch(r"sensitivity@(0(?:\.[0-9]{1,9})?|1(?:\.0{1,9})?)(?::.*)?", metric, re.DOTALL)
    return float(found[1]) if found else None


def class_of(metric: str) -> str | None:
    """The class that a metric of one class names; None for other metrics."""
    return metric.partition(":")[2] or None


def less_is_better(metric: str) -> bool:
    """Tell whether less is better of a metric that comes with the package."""
    return metric in COSTS or metric in _LOSSES


def is_share(metric: str) -> bool:
    """Tell whether a metric comes with the package and lies between 0 and 1."""
    return known_metric(metric) and metric not in (*COSTS, "log_loss")


def needs_scores(metric: str) -> bool:
    """Tell whether a metric needs the scores of the classes: all do but costs and those of the predicted classes."""
    return metric not in COSTS and metric not in _OF_CLASSES and metric.split(":")[0] not in ("recall", "specificity")


class OwnMetricConfig(Section):
    """A metric of the study's own: a function of scores and targets that returns a number.

    It is called with the scores of some images, float32, shape (images, classes), logarithms of the softmax, and their
    targets, int64, shape (images,); with those of all images of a part, and with those of bootstrap draws. Where
    targets are maps, scores are as the network gives them, shape (images, classes, height, width), and targets (images,
    height, width).
    """

    function: str = Field(
        max_length=500,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="package.module:function; alone it may stand in place of the section",
    )
    better: Literal["higher", "lower"] = Field("higher", description="which values are better")
    worst: float | None = Field(
        None, description="worst value that counts in the hypervolume; without it 0, or 1 where lower is better"
    )
    best: float | None = Field(None, description="best value there is; without it 1, or 0 where lower is better")

    @property
    def bounds(self) -> tuple[float, float]:
        """The worst value that counts, and the best one."""
        worst, best = (0.0, 1.0) if self.better == "higher" else (1.0, 0.0)
        return worst if self.worst is None else self.worst, best if self.best is None else self.best

    @model_validator(mode="after")
    def _worst_is_worse(self) -> "OwnMetricConfig":
        worst, best = self.bounds
        if worst == best or (worst < best) != (self.better == "higher"):
            raise ValueError(f"worst {worst:g} and best {best:g} do not go with better: {self.better}")
        return self


def check_own_name(name: str) -> None:
    """Check the name of a metric of the study's own.

    Raises:
        ValueError: it is no name, or that of another metric.
    """
    if not re.fullmatch(_OWN_NAME, name) or len(name) > 60:
        raise ValueError(f"metrics: {quoted(name)} is no name: use letters, digits and underscores, at most 60")
    if name in METRICS or name in (*ONE_CLASS, "f1", "sensitivity"):
        raise ValueError(f"metrics: {quoted(name)} is a metric already: use another name")


def section_or_function(values: Any) -> Any:
    """Write a metric that is given by its function alone as a section."""
    if not isinstance(values, dict):
        return values
    return {name: {"function": value} if isinstance(value, str) else value for name, value in values.items()}


class ConstraintConfig(Section):
    """A bound on one metric that a trial must keep to be on the front."""

    metric: Metric = Field(description=f"one of {', '.join(METRICS)}, {FORMS} and those in metrics")
    at_least: float | None = Field(None, description="lower bound, in the unit of the metric; instead of at_most")
    at_most: float | None = Field(None, description="upper bound, in the unit of the metric; instead of at_least")

    @model_validator(mode="after")
    def _one_bound(self) -> "ConstraintConfig":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.metric} needs either at_least or at_most")
        return self

    @model_validator(mode="after")
    def _bound_that_can_be_kept(self) -> "ConstraintConfig":
        if not is_share(self.metric):
            if known_metric(self.metric) and self.at_most is not None and self.at_most <= 0:
                raise ValueError(f"at_most {self.at_most:g}: {self.metric} is above 0 for every network")
            return self
        if self.at_least is not None and self.at_least > 1:
            raise ValueError(f"at_least {self.at_least:g}: {self.metric} is a share, 0 to 1")
        if self.at_most is not None and self.at_most < 0:
            raise ValueError(f"at_most {self.at_most:g}: {self.metric} is a share, 0 to 1")
        return self


class LatencyConfig(Section):
    """The latency that is an objective or a constraint: milliseconds per batch, on one thread."""

    runtime: Literal["onnxruntime", "torch"] = Field("onnxruntime", description="library that runs the network")
    batch_size: int = Field(1, ge=1, le=1024, description="images per batch")
