"""Metrics of a study's own: functions of scores and targets. Needs no torch."""

import importlib
import math
import numbers
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError, StudyError, one_line
from hscc_search.evaluation.draws import draw_counts

# Takes scores and targets of some images, and returns a number.
OwnMetric = Callable[[np.ndarray, np.ndarray], object]

# Draws of metrics of a study's own, which are computed one by one.
OWN_DRAWS = 200
# The largest value, whose square is a number, too.
_LARGEST = 1e100
# The largest share of draws that may be left out.
_MOST_UNDEFINED = 0.1


@dataclass(frozen=True, eq=False)
class OnDraws:
    """A metric of a study's own on one part of the data.

    Attributes:
        value: on all images.
        error: its standard error, by the draws on which the metric does not fail.
        draws: its values on draws, float64, shape (:data:`OWN_DRAWS`,); where it fails, that on all images.
    """

    value: float
    error: float
    draws: np.ndarray


def own_metrics(config: StudyConfig) -> dict[str, OwnMetric]:
    """Import the functions of a study's own metrics, by name.

    Raises:
        ConfigError: one cannot be imported.
    """
    folder = str(Path.cwd())
    if config.metrics and folder not in sys.path:
        sys.path.insert(0, folder)  # a console script does not search the working folder
    functions: dict[str, OwnMetric] = {}
    for name, metric in config.metrics.items():
        module, _, function = metric.function.partition(":")
        try:
            functions[name] = getattr(importlib.import_module(module), function)
        except (Exception, SystemExit) as error:  # whatever the user's code raises, to leave the program too
            raise ConfigError(
                f"metrics.{name}: cannot import {metric.function}: {one_line(error, with_type=True)} "
                f"(looked for among Python's modules and in {folder})"
            ) from error
        if not callable(functions[name]):
            raise ConfigError(f"metrics.{name}: {metric.function} is no function")
    return functions


def measure_own(
    functions: Mapping[str, OwnMetric],
    scores: np.ndarray,
    targets: np.ndarray,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[str, OnDraws]:
    """Measure the metrics of a study's own by name, on all images and on bootstrap draws of them.

    Args:
        functions: by name.
        scores: as :func:`hscc_search.evaluation.scores.kept_scores` keeps them, shape (images, ...).
        targets: shape (images, ...).
        seed: of the draws.
        groups: integers, shape (images,), the same for images that belong together; None where none do.

    Raises:
        StudyError: one fails on all images, or on more than a tenth of the draws.
    """
    if not functions:
        return {}
    counts, measured = draw_counts(len(targets), OWN_DRAWS, seed, groups), {}
    for name, function in functions.items():
        value = own_value(name, function, scores, targets)
        drawn = own_on_draws(name, function, scores, targets, counts)
        measured[name] = OnDraws(value, float(np.nanstd(drawn)), np.where(np.isfinite(drawn), drawn, value))
    return measured


def own_value(name: str, function: OwnMetric, scores: np.ndarray, targets: np.ndarray) -> float:
    """Call a metric of a study's own on scores as they are kept, and their targets.

    Raises:
        StudyError: it raises, or returns no finite number.
    """
    value: Any
    try:
        value = function(scores.astype(np.float32), targets.astype(np.int64))
        if hasattr(value, "item"):
            value = value.item()
    except (Exception, SystemExit) as error:  # whatever the user's code raises, to leave the program too
        raise StudyError(
            f"metric {name} fails on {len(targets):,} images: {one_line(error, with_type=True)}"
        ) from error
    if isinstance(value, int | float) and _LARGEST < abs(value) != math.inf:
        raise StudyError(f"metric {name} must return a number of 1e100 at most: divide it by what makes it so large")
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not abs(value) <= _LARGEST:  # type: ignore[operator]
        raise StudyError(f"metric {name} must return a finite number, not {value!r:.80}")
    return float(value)


def own_on_draws(
    name: str, function: OwnMetric, scores: np.ndarray, targets: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Call a metric of a study's own on draws of images.

    Args:
        name: of the metric.
        function: of the metric.
        scores: as they are kept, shape (images, ...).
        targets: shape (images, ...).
        counts: how often each draw takes each image, whole numbers, shape (draws, images).

    Returns:
        float64, shape (draws,); NaN for draws on which it fails, as where a class is missing.

    Raises:
        StudyError: it fails on more than a tenth of the draws.
    """
    values, failure = np.full(len(counts), np.nan), None
    for draw, count in enumerate(counts):
        chosen = np.repeat(np.arange(len(targets)), count.astype(np.int64))
        try:
            values[draw] = own_value(name, function, scores[chosen], targets[chosen])
        except StudyError as error:
            failure = error
    if failure is not None and np.isnan(values).mean() > _MOST_UNDEFINED:
        raise StudyError(f"{failure} (on {np.isnan(values).sum()} of {len(counts)} bootstrap draws)")
    return values


def check_own_metrics(
    functions: Mapping[str, OwnMetric], scores: np.ndarray, targets: np.ndarray, counts: np.ndarray
) -> None:
    """Call each metric of a study's own on all images and on one draw of them.

    Raises:
        StudyError: one fails.
    """
    drawn = np.repeat(np.arange(len(targets)), counts[0].astype(np.int64))
    for name, function in functions.items():
        own_value(name, function, scores, targets)
        try:
            own_value(name, function, scores[drawn], targets[drawn])
        except StudyError as error:
            raise StudyError(f"{error}: these are a bootstrap draw, in which images occur several times") from error
