"""The rows of a comparison, put together over all splits. Numbers only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_search.comparison.row import DENSE, Row


@dataclass(frozen=True)
class Summary:
    """The rows of one method, budget and number of epochs over all splits: means, each with its standard error.

    Differences are of the same images; their errors come from the images too. They are None where a row is missing.

    Attributes:
        ratio: dense FLOPs / FLOPs, the least over the splits.
        accuracy: on the test parts, 0 to 1.
        to_dense: accuracy minus the dense network's without further training.
        to_hscc: accuracy of HSCC at the same budget and epochs minus this one's.
        speedup: dense latency / latency by ``runtime batch``, median over the splits.
        failures: the splits' reasons where there is no network.
    """

    method: str
    budget: float
    epochs: int
    splits: int
    ratio: float | None
    parameters: int | None
    accuracy: float | None
    accuracy_se: float | None
    macro_f1: float | None
    macro_f1_se: float | None
    to_dense: float | None
    to_dense_se: float | None
    to_hscc: float | None
    to_hscc_se: float | None
    speedup: dict[str, float]
    failures: tuple[str, ...]


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Put the rows of all splits together, in the order in which methods and budgets first occur."""
    keys = list(dict.fromkeys((row.method, row.budget, row.epochs) for row in rows))
    found = {(row.method, row.budget, row.epochs, row.seed): row for row in rows}
    seeds = list(dict.fromkeys(row.seed for row in rows))

    def of(method: str, budget: float, epochs: int) -> list[Row | None]:
        every = [found.get((method, budget, epochs, seed)) for seed in seeds]
        return [row if row is not None and row.failure is None else None for row in every]

    dense = of(DENSE, 1.0, 0)
    summaries = []
    for method, budget, epochs in keys:
        here = of(method, budget, epochs)
        there = [row for row in here if row is not None]
        whole = len(there) == len(here)
        to_dense, to_dense_se = _paired(here, dense)
        to_hscc, to_hscc_se = _paired(of("hscc", budget, epochs), here)
        accuracy, accuracy_se = _mean([row.quality for row in there if row.quality], "accuracy", whole)
        macro_f1, macro_f1_se = _mean([row.quality for row in there if row.quality], "macro_f1", whole)
        ratios = [first.macs / row.macs for first, row in zip(dense, here, strict=True) if first and row]
        summaries.append(
            Summary(
                method=method,
                budget=budget,
                epochs=epochs,
                splits=len(there),
                ratio=min(ratios) if ratios else None,
                parameters=max(row.parameters for row in there) if there else None,
                accuracy=accuracy,
                accuracy_se=accuracy_se,
                macro_f1=macro_f1,
                macro_f1_se=macro_f1_se,
                to_dense=to_dense,
                to_dense_se=to_dense_se,
                to_hscc=to_hscc,
                to_hscc_se=to_hscc_se,
                speedup=_speedup(of(method, budget, 0)),
                failures=tuple(
                    f"split {row.seed}: {row.failure}"
                    for row in rows
                    if (row.method, row.budget, row.epochs) == (method, budget, epochs) and row.failure
                ),
            )
        )
    return summaries


def _mean(qualities: list[dict[str, Any]], key: str, whole: bool) -> tuple[float | None, float | None]:
    if not qualities or not whole:
        return None, None
    errors = [quality[f"{key}_se"] for quality in qualities]
    mean = sum(quality[key] for quality in qualities) / len(qualities)
    return mean, math.sqrt(sum(error**2 for error in errors)) / len(errors)


def _paired(first: Sequence[Row | None], second: Sequence[Row | None]) -> tuple[float | None, float | None]:
    """Mean over splits of the paired differences first - second, and its standard error from the images."""
    means, variances = [], []
    for one, other in zip(first, second, strict=True):
        if one is None or other is None:
            return None, None
        difference = np.array(one.right) - np.array(other.right)
        means.append(difference.mean())
        variances.append(difference.var() / len(difference))
    return float(np.mean(means)), math.sqrt(sum(variances)) / len(variances)


def _speedup(rows: Sequence[Row | None]) -> dict[str, float]:
    measured = [row.latency for row in rows if row is not None and row.latency]
    names = [name for name in (measured[0] if measured else {}) if not name.startswith("dense ")]
    return {
        name: float(np.median([row[f"dense {name}"] / row[name] for row in measured if name in row])) for name in names
    }
