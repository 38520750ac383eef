"""Metrics on bootstrap draws of the validation images."""

import numpy as np

from hscc_search.errors import StudyError

# Bounds the widening where trials differ by less than their noise.
_LEAST_SIGNAL = 0.1


def draw_counts(images: int, draws: int, seed: int) -> np.ndarray:
    """Draw images with replacement.

    Returns:
        How often each image is drawn, uint16, shape (draws, images); for 0 draws one row in which every image is
        drawn once.
    """
    if not draws:
        return np.ones((1, images), dtype=np.uint16)
    generator = np.random.default_rng(seed)
    return np.stack(
        [np.bincount(generator.integers(images, size=images), minlength=images) for _ in range(draws)]
    ).astype(np.uint16)


def resample(
    metric: str, predictions: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], counts: np.ndarray
) -> np.ndarray:
    """Compute a metric on draws, as :func:`hscc_search.evaluation.quality.measure_quality` defines it.

    Args:
        metric: ``accuracy``, ``macro_f1`` or ``recall:CLASS``.
        predictions: uint16, shape (points, images).
        labels: integers, shape (images,).
        classes: class names.
        counts: float32, shape (draws, images), from :func:`draw_counts`.

    Returns:
        Shape (points, draws): float32 for shares of images, float64 for macro F1. Points that are right on the same
        images have the same accuracy and recalls, to the last bit.

    Raises:
        StudyError: the recall names an unknown class.
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
    name = metric.removeprefix("recall:")
    if name not in classes:
        raise StudyError(f"no {metric}: the classes are {', '.join(classes)}")
    shares, true = _hits(right, labels == classes.index(name), counts)
    shares /= np.maximum(true, 1)
    return shares


def _hits(right: np.ndarray, images: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count right answers on some images, shape (points, draws), and how often these are drawn, shape (draws,)."""
    return right[:, images] @ counts[:, images].T, counts[:, images].sum(axis=1)


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
