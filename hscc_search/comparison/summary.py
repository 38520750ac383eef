"""The networks of a comparison put together over all splits. Numbers only, no torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_search.comparison.record import DENSE, Asked, ComparedNetwork
from hscc_search.evaluation.quality import Quality

# A method's network on each split; None where there is none.
Networks = Sequence[ComparedNetwork | None]


@dataclass(frozen=True)
class Estimate:
    """A mean over splits and its standard error over the images of their test parts."""

    value: float
    se: float


@dataclass(frozen=True)
class Summary:
    """One method at one budget and stage over all splits.

    Estimates are None where a network is missing on a split. Differences are paired: both networks predict the same
    images.

    Attributes:
        method: a key of :data:`hscc_search.comparison.methods.METHODS`, or :data:`DENSE`.
        budget: asked ratio of dense FLOPs to compressed FLOPs; 1 for the dense network.
        epochs: of fine-tuning.
        refined: whether the networks are refined.
        splits: number of splits on which there is a network.
        flops_ratio: dense FLOPs / compressed FLOPs as counted, the least over the splits.
        parameters: number of weights and biases, the most over the splits.
        accuracy: on the test parts, 0 to 1.
        macro_f1: on the test parts, 0 to 1.
        to_dense: accuracy minus that of the dense network without fine-tuning.
        to_hscc: accuracy of HSCC at the same budget and stage minus this one's.
        speedup: dense latency / compressed latency by ``runtime batch``, median over the splits.
        failures: for each split without a network its seed and the reason.
    """

    method: str
    budget: float
    epochs: int
    refined: bool
    splits: int
    flops_ratio: float | None
    parameters: int | None
    accuracy: Estimate | None
    macro_f1: Estimate | None
    to_dense: Estimate | None
    to_hscc: Estimate | None
    speedup: Mapping[str, float]
    failures: tuple[str, ...]

    @property
    def name(self) -> str:
        """The method and its stage, as tables and figures name them."""
        stage = ", refined" if self.refined else f", {self.epochs} epochs" if self.epochs else ""
        return self.method + stage

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values for ``summary.json``; the standard error of ``name`` is ``name_se``."""
        return {
            "method": self.method,
            "budget": self.budget,
            "epochs": self.epochs,
            "refined": self.refined,
            "splits": self.splits,
            "flops_ratio": self.flops_ratio,
            "parameters": self.parameters,
            **_stored("accuracy", self.accuracy),
            **_stored("macro_f1", self.macro_f1),
            **_stored("to_dense", self.to_dense),
            **_stored("to_hscc", self.to_hscc),
            "speedup": dict(self.speedup),
            "failures": list(self.failures),
        }


def summarise(networks: Sequence[ComparedNetwork]) -> list[Summary]:
    """Put the networks of all splits together, in the order in which methods, budgets and stages first occur."""
    measured = {network.asked: network for network in networks if network.failure is None}
    seeds = list(dict.fromkeys(network.asked.seed for network in networks))

    def on_splits(method: str, budget: float, epochs: int, refined: bool = False) -> Networks:
        return [measured.get(Asked(method, budget, seed, epochs, refined)) for seed in seeds]

    dense = on_splits(DENSE, 1.0, 0)
    summaries = []
    for key in dict.fromkeys(_key(network) for network in networks):
        method, budget, epochs, refined = key
        compressed = on_splits(*key)
        present = [network for network in compressed if network is not None]
        qualities = [network.quality for network in present if network.quality is not None]
        complete = len(present) == len(compressed)
        ratios = [first.macs / second.macs for first, second in zip(dense, compressed, strict=True) if first and second]
        summaries.append(
            Summary(
                method=method,
                budget=budget,
                epochs=epochs,
                refined=refined,
                splits=len(present),
                flops_ratio=min(ratios, default=None),
                parameters=max((network.parameters for network in present), default=None),
                accuracy=_mean(qualities, "accuracy") if complete else None,
                macro_f1=_mean(qualities, "macro_f1") if complete else None,
                to_dense=_difference(compressed, dense),
                to_hscc=_difference(on_splits("hscc", budget, epochs, refined), compressed),
                # Measured before fine-tuning, which leaves the latency as it is.
                speedup=_speedup(on_splits(method, budget, 0)),
                failures=_failures(network for network in networks if _key(network) == key),
            )
        )
    return summaries


def _key(network: ComparedNetwork) -> tuple[str, float, int, bool]:
    """The method, budget and stage of a network, which its counterparts on other splits share."""
    asked = network.asked
    return asked.method, asked.budget, asked.epochs, asked.refined


def _mean(qualities: Sequence[Quality], metric: str) -> Estimate | None:
    if not qualities:
        return None
    mean = sum(quality.metrics[metric] for quality in qualities) / len(qualities)
    variance = sum(quality.errors[metric] ** 2 for quality in qualities)
    return Estimate(mean, math.sqrt(variance) / len(qualities))


def _difference(first: Networks, second: Networks) -> Estimate | None:
    """The mean over splits of accuracy first - second, paired by image; None where a network is missing."""
    means, variances = [], []
    for minuend, subtrahend in zip(first, second, strict=True):
        if minuend is None or subtrahend is None:
            return None
        differences = np.array(minuend.right) - np.array(subtrahend.right)
        means.append(differences.mean())
        variances.append(_variance_of_mean(differences, minuend.groups))
    return Estimate(float(np.mean(means)), math.sqrt(sum(variances)) / len(variances))


def _variance_of_mean(values: np.ndarray, groups: Sequence[int]) -> float:
    """The variance of a mean over images, or over images that come in groups (the cluster-robust one)."""
    if not groups:
        return float(values.var() / len(values))
    sums = np.bincount(groups, weights=values - values.mean())
    return float((sums**2).sum() / len(values) ** 2)


def _speedup(networks: Networks) -> dict[str, float]:
    timed = [network for network in networks if network is not None and network.latency]
    speedup = {}
    for run in timed[0].latency if timed else ():
        ratios = [network.dense_latency[run] / network.latency[run] for network in timed if run in network.latency]
        speedup[run] = float(np.median(ratios))
    return speedup


def _failures(networks: Iterable[ComparedNetwork]) -> tuple[str, ...]:
    return tuple(
        f"split {network.asked.seed}: {network.failure}" for network in networks if network.failure is not None
    )


def _stored(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {name: None, f"{name}_se": None}
    return {name: estimate.value, f"{name}_se": estimate.se}
