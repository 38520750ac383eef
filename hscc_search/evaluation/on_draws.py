"""Metrics of the scores of one network on many draws of images at once. Needs no torch.

Each function gives what scikit-learn gives with the numbers of draws as sample weights, for all draws at once: the
images are sorted once. A draw on which a metric is not defined, such as an AUROC without any image of a class, has NaN.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import log_softmax

from hscc_search.config.metrics import class_of, specificity_of
from hscc_search.errors import StudyError

# Bins of equal width of the calibration error, as Guo et al. (2017) take them.
BINS = 15
# Bounds the rounding of a stated specificity.
_ROUNDING = 1e-12


def score_metric(
    metric: str, scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], weights: np.ndarray
) -> np.ndarray:
    """Compute a metric of scores on draws.

    Args:
        metric: ``auroc`` and ``average_precision``, the means over the classes, each against the rest, or of one class
            with ``:CLASS``; ``sensitivity@SPECIFICITY:CLASS``, the highest at that specificity or a higher one;
            ``log_loss``; or ``calibration_error``, the expected one over :data:`BINS` bins of the highest probability
            (Guo et al. 2017).
        scores: logarithms of probabilities up to a constant, shape (images, classes).
        labels: integers, shape (images,).
        classes: class names.
        weights: how often each draw takes each image, shape (images, draws), whole numbers of float32.

    Returns:
        float64, shape (draws,).

    Raises:
        StudyError: the metric names an unknown class.
    """
    kind, wanted = metric.partition(":")[0], class_of(metric)
    if wanted is not None and wanted not in classes:
        raise StudyError(f"no {metric}: the classes are {', '.join(classes)}")
    if kind == "log_loss":
        return _log_loss(scores, labels, weights)
    if kind == "calibration_error":
        return _calibration_error(scores, labels, weights)
    measure = {"auroc": _auroc, "average_precision": _average_precision}.get(kind) or _sensitivity(metric)
    positions = range(len(classes)) if wanted is None else [list(classes).index(wanted)]
    if kind == "auroc" and wanted is None and len(classes) == 2:
        # Against each other two classes have one and the same area.
        return _auroc(_ranking(scores, 1), labels == 1, weights)
    values = np.stack([measure(_ranking(scores, position), labels == position, weights) for position in positions])
    defined = np.isfinite(values)
    means: np.ndarray = np.divide(
        values.sum(axis=0, where=defined),
        defined.sum(axis=0),
        out=np.full(weights.shape[1], np.nan),
        where=defined.any(axis=0),
    )
    return means


def _ranking(scores: np.ndarray, position: int) -> np.ndarray:
    """Values that rank images as the probability of a class does.

    The logarithm of the probability: as it is rounded by itself, rounding makes ties and never another order. Of two
    classes the difference of both, which tells more images apart.
    """
    own = scores[:, position].astype(np.float64)
    return own - scores[:, 1 - position] if scores.shape[1] == 2 else own


def _auroc(values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of pairs of a positive and a negative image that stand in the right order; ties count half."""
    negative = np.flatnonzero(~positive)
    negative = negative[np.argsort(values[negative], kind="stable")]
    below = np.zeros((len(negative) + 1, weights.shape[1]), np.float32)
    np.cumsum(weights[negative], axis=0, out=below[1:])
    lower = np.searchsorted(values[negative], values[positive], "left")
    not_higher = np.searchsorted(values[negative], values[positive], "right")
    own = weights[positive]
    pairs = below[lower]
    pairs += below[not_higher]
    pairs *= own
    # Whole numbers: exact in float32 up to 2^24, in any order, and their sum in float64.
    return _shares(pairs.sum(axis=0, dtype=np.float64) / 2, own.sum(axis=0, dtype=np.float64) * below[-1])


def _steps(values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of positive and of negative images at or above each threshold, high ones first: (thresholds, draws)."""
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    own = positive[order, None]
    weights = weights[order].astype(np.float64)
    return np.cumsum(weights * own, axis=0)[last], np.cumsum(weights * ~own, axis=0)[last]


def _average_precision(values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The precisions at all thresholds, weighted by the recall that each adds."""
    right, wrong = _steps(values, positive, weights)
    precision = right / np.maximum(right + wrong, 1)
    added = np.diff(right, axis=0, prepend=0)
    return _shares(np.einsum("ij,ij->j", added, precision), right[-1])


def _sensitivity(metric: str) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """The highest sensitivity at a specificity, or a higher one."""
    specificity = specificity_of(metric)
    assert specificity is not None, metric

    def measure(values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
        right, wrong = _steps(values, positive, weights)
        allowed = wrong <= (1 - specificity) * wrong[-1] + _ROUNDING * wrong[-1]
        highest = np.where(allowed, right, 0).max(axis=0)
        # Without a negative image nothing is known of the specificity.
        return _shares(np.where(wrong[-1] > 0, highest, np.nan), right[-1])

    return measure


def _log_loss(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of the negative logarithm of the probability of the true class."""
    losses = -log_softmax(scores.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return _shares(losses @ weights.astype(np.float64), weights.sum(axis=0))


def _calibration_error(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean distance between the mean highest probability and the accuracy in each bin, weighted by its images."""
    highest = np.exp(log_softmax(scores.astype(np.float64), axis=1).max(axis=1))
    excess = highest - (scores.argmax(axis=1) == labels)
    bins = np.minimum((highest * BINS).astype(np.int64), BINS - 1)
    members = bins == np.arange(BINS)[:, None]
    gaps = np.abs((members * excess) @ weights.astype(np.float64)).sum(axis=0)
    return _shares(gaps, weights.sum(axis=0))


def _shares(parts: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where there is nothing to divide by."""
    shares = np.full(whole.shape, np.nan)
    np.divide(parts, whole, out=shares, where=whole > 0)
    return shares
