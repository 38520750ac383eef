"""Names of metrics in a study file, and the sections on constraints and latency."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hscc_search.config.section import Section
from hscc_search.errors import quoted

COSTS = ("flops", "macs", "parameters", "megabytes", "latency")
METRICS = (*COSTS, "accuracy", "macro_f1")


def _check_metric(name: str) -> str:
    if name in METRICS or re.fullmatch(r"recall:.+", name):
        return name
    raise ValueError(f"there is no metric {quoted(name)}: use {', '.join(METRICS)} or recall:CLASS")


Metric = Annotated[str, AfterValidator(_check_metric)]


class ConstraintConfig(Section):
    """A bound on one metric that a trial must keep to be on the front."""

    metric: Metric = Field(description=f"one of {', '.join(METRICS)} and recall:CLASS")
    at_least: float | None = Field(None, description="lower bound, in the unit of the metric; instead of at_most")
    at_most: float | None = Field(None, description="upper bound, in the unit of the metric; instead of at_least")

    @model_validator(mode="after")
    def _one_bound(self) -> "ConstraintConfig":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.metric} needs either at_least or at_most")
        return self

    @model_validator(mode="after")
    def _bound_that_can_be_kept(self) -> "ConstraintConfig":
        if self.metric in COSTS:
            if self.at_most is not None and self.at_most <= 0:
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
