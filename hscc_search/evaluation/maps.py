"""Metrics of answers that are maps of classes. Needs no torch.

Scores of maps are too large to be stored with each trial. So the value of each metric on each bootstrap draw is kept in
their place: the draws are the same for all trials of a study.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hscc_search.config.metrics import COSTS
from hscc_search.errors import StudyError
from hscc_search.evaluation.draws import draw_counts
from hscc_search.evaluation.own import OWN_DRAWS, OnDraws
from hscc_search.evaluation.quality import AGREE, Quality, jeffreys


@dataclass(frozen=True, eq=False)
class MapQuality:
    """Metrics of maps on one part of the data.

    Attributes:
        quality: the metrics, each with its standard error.
        draws: by metric its value on each draw, float64, shape (:data:`OWN_DRAWS`,).
    """

    quality: Quality
    draws: dict[str, np.ndarray]


def measure_maps(
    scores: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    groups: np.ndarray | None = None,
    asked: Sequence[str] = (),
    own: Mapping[str, OnDraws] | None = None,
) -> MapQuality:
    """Measure accuracy, the share of positions whose class is right, and a study's own metrics.

    Errors are those of a bootstrap over images, or over groups where some hold several images: positions of one image
    are not independent. An accuracy of 1 has Jeffreys' error for as many images, see
    :func:`hscc_search.evaluation.quality.measure_quality`.

    Args:
        scores: float32, shape (images, classes, height, width).
        labels: integers, shape (images, height, width).
        seed: of the draws.
        groups: integers, shape (images,), the same for images that belong together; None where none do.
        asked: names of metrics; costs and accuracy among them are left out.
        own: metrics of a study's own, by name, of the same draws.

    Raises:
        StudyError: a metric is neither the study's own nor accuracy.
    """
    counts = draw_counts(len(labels), OWN_DRAWS, seed, groups)
    right = (scores.argmax(axis=1) == labels).mean(axis=(1, 2))
    on_draws = counts @ right / counts.sum(axis=1)
    metrics, errors = {"accuracy": float(right.mean())}, {"accuracy": float(on_draws.std())}
    draws = {"accuracy": on_draws}
    for name in asked:
        if name in COSTS or name == "accuracy":
            continue
        if own is None or name not in own:
            raise StudyError(f"{name} needs one class for each image, and targets are maps")
        metrics[name], errors[name], draws[name] = own[name].value, own[name].error, own[name].draws
    if errors["accuracy"] < AGREE:
        errors["accuracy"] = jeffreys(len(labels) if groups is None else len(np.unique(groups)))
    return MapQuality(Quality(metrics, errors), draws)
