"""Metrics on bootstrap draws of the validation images."""

from collections.abc import Sequence

import numpy as np

from hscc_search.errors import StudyError
from hscc_search.evaluation.on_draws import score_metric
from hscc_search.pareto.points import Measured

# Bounds the widening where trials differ by less than their noise.
_LEAST_SIGNAL = 0.1


def resample(
    metric: str, predictions: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], counts: np.ndarray
) -> np.ndarray:
    """Compute a metric on draws, as :func:`hscc_search.evaluation.quality.measure_quality` defines it.

    Args:
        metric: ``accuracy``, ``macro_f1``, ``balanced_accuracy``, ``recall:CLASS`` or ``specificity:CLASS``.
        predictions: uint16, shape (points, images).
        labels: integers, shape (images,).
        classes: class names.
        counts: float32, shape (draws, images), from :func:`hscc_search.evaluation.draws.draw_counts`.

    Returns:
        Shape (points, draws): float32 for shares of images, float64 for means over classes. Points that are right on
        the same images have the same accuracy and recalls, to the last bit.

    Raises:
        StudyError: the metric names an unknown class.
    """
    # The products are sums of whole numbers, exact in float32 in any order.
    right = (predictions == labels).astype(np.float32)
    if metric == "accuracy":
        shares: np.ndarray = right @ counts.T
        shares /= counts.sum(axis=1)
        return shares
    if metric == "macro_f1":
        total = np.zeros((len(predictions), len(counts)))
        for position in range(len(classes)):
            hits, true = _hits(right, labels == position, counts)
            guessed = (predictions == position).astype(np.float32) @ counts.T
            total += np.divide(2 * hits, np.maximum(true + guessed, 1), dtype=np.float64)
        return total / len(classes)
    if metric == "balanced_accuracy":
        total, occurring = np.zeros((len(predictions), len(counts))), np.zeros(len(counts))
        for position in range(len(classes)):
            hits, true = _hits(right, labels == position, counts)
            total += np.divide(hits, np.maximum(true, 1), dtype=np.float64)
            occurring += true > 0
        return total / np.maximum(occurring, 1)
    kind, _, name = metric.partition(":")
    if name not in classes:
        raise StudyError(f"no {metric}: the classes are {', '.join(classes)}")
    position = list(classes).index(name)
    if kind == "recall":
        shares, true = _hits(right, labels == position, counts)
    else:
        others = (predictions != position).astype(np.float32)
        shares, true = _hits(others, labels != position, counts)
    shares /= np.maximum(true, 1)
    return shares


def _hits(right: np.ndarray, images: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count right answers on some images, shape (points, draws), and how often these are drawn, shape (draws,)."""
    return right[:, images] @ counts[:, images].T, counts[:, images].sum(axis=1)


def resample_scores(
    metric: str,
    scores: Sequence[np.ndarray],
    labels: np.ndarray,
    classes: tuple[str, ...],
    counts: np.ndarray,
) -> np.ndarray:
    """Compute a metric of scores on draws; a draw on which it is not defined has its value on all images.

    Args:
        metric: one of :func:`hscc_search.evaluation.on_draws.score_metric`.
        scores: of each point, shape (images, classes).
        labels: integers, shape (images,).
        classes: class names.
        counts: shape (1 + draws, images), whole numbers; the first row takes each image once.

    Returns:
        float64, shape (points, 1 + draws).

    Raises:
        StudyError: the metric names an unknown class, or is not defined on all images.
    """
    weights = counts.T.astype(np.float32, order="C")
    values = np.empty((len(scores), len(counts)))
    for row, of_point in enumerate(scores):
        values[row] = score_metric(metric, of_point, labels, classes, weights)
    if not np.isfinite(values[:, 0]).all():
        raise StudyError(f"{metric} is not defined on the validation images")
    return np.where(np.isfinite(values), values, values[:, :1])


def stored_on_draws(metric: str, points: Sequence[Measured], draws: int) -> np.ndarray:
    """Read a metric on all images and on the draws that it was stored on.

    Args:
        metric: accuracy, or one of the study's own.
        points: whose answers are maps, or which have a metric of the study's own.
        draws: number of the first draws to read.

    Returns:
        float64, shape (points, 1 + draws); the first column is on all images.

    Raises:
        StudyError: a point lacks the metric.
    """
    values = np.empty((len(points), 1 + draws))
    for row, point in enumerate(points):
        values[row, 0] = point[metric]
        if metric not in point.draws:
            raise StudyError(
                f"{point.name} has no {metric} on bootstrap draws: it holds {', '.join(point.draws) or 'none'}"
            )
        values[row, 1:] = point.draws[metric][:draws]
    return values


def widening(whole: np.ndarray, drawn: np.ndarray, trials: int) -> float:
    """The factor by which the noise of draws must grow.

    Empirical Bayes with equal variances (Efron and Morris 1973): if a share B of the variance among the observed
    values is that of the true ones, these are expected at B times the observed distance from the mean, with noise of
    sqrt(B) times the standard error. Only the order in a draw matters, so the values can stay while the noise grows
    by 1 / sqrt(B). Noise that all trials have in common changes no order and is left out.

    Args:
        whole: values on all images, shape (some trials,).
        drawn: values in draws, shape (some trials, draws).
        trials: number of all trials.

    Returns:
        1 or more; 1 for fewer than four trials, too few to estimate a spread from.
    """
    if trials < 4:
        return 1.0
    noise = drawn.astype(np.float64) - whole[:, None]
    noise = ((noise - noise.mean(axis=0)) ** 2).mean() * len(whole) / (len(whole) - 1)
    observed = whole.var(ddof=1, dtype=np.float64)
    signal = 1 - (trials - 3) / (trials - 1) * noise / observed if observed > 0 else 0.0
    return float(max(signal, _LEAST_SIGNAL) ** -0.5)
