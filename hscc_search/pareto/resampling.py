"""Metrics on validation images that are drawn again."""

import numpy as np

from hscc_search.errors import StudyError


def resample(
    metric: str, predictions: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], counts: np.ndarray
) -> np.ndarray:
    """A metric as :func:`hscc_search.evaluation.quality.measure_quality` defines it, on images drawn again.

    Args:
        metric: ``accuracy``, ``macro_f1`` or ``recall:CLASS``.
        predictions: uint16, shape (points, images).
        labels: integers, shape (images,).
        classes: class names.
        counts: float32, shape (draws, images), how often each image was drawn.

    Returns:
        Shape (points, draws): float32 for shares of images, float64 for macro F1. Points that have the same images
        right have the same value, to the last bit.

    Raises:
        StudyError: the recall is of no class.
    """
    # The products are whole numbers that float32 holds, whatever the order of summation.
    right = (predictions == labels).astype(np.float32)
    if metric == "accuracy":
        shares: np.ndarray = right @ counts.T
        shares /= counts.sum(axis=1)
        return shares

    def of_class(position: int) -> tuple[np.ndarray, np.ndarray]:
        images = labels == position
        return right[:, images] @ counts[:, images].T, counts[:, images].sum(axis=1)

    if metric == "macro_f1":
        total = np.zeros((len(predictions), len(counts)))
        for position in range(len(classes)):
            hits, true = of_class(position)
            guessed = (predictions == position).astype(np.float32) @ counts.T
            total += np.divide(2 * hits, np.maximum(true + guessed, 1), dtype=np.float64)
        return total / len(classes)
    name = metric.removeprefix("recall:")
    if name not in classes:
        raise StudyError(f"no {metric}: the classes are {', '.join(classes)}")
    shares, true = of_class(classes.index(name))
    shares /= np.maximum(true, 1)
    return shares


def widening(whole: np.ndarray, drawn: np.ndarray, trials: int) -> float:
    """By how much the noise of draws is to be widened.

    Empirical Bayes with equal variances (Efron and Morris 1973): if a share B of the variance among the observed
    values is that of the true ones, these are expected at B times the observed distance from the mean, with noise of
    sqrt(B) times the standard error. Only the order in a draw matters, so the values can stay and the noise grow by
    1 / sqrt(B). Noise that all trials have in common does not count.

    Args:
        whole: values on all images, shape (some trials,).
        drawn: values in draws, shape (some trials, draws).
        trials: number of all trials.

    Returns:
        1 or more; 1 for fewer than four trials, whose spread says nothing.
    """
    if trials < 4:
        return 1.0
    noise = drawn.astype(np.float64) - whole[:, None]
    noise = ((noise - noise.mean(axis=0)) ** 2).mean() * len(whole) / (len(whole) - 1)
    observed = whole.var(ddof=1, dtype=np.float64)
    signal = 1 - (trials - 3) / (trials - 1) * noise / observed if observed > 0 else 0.0
    return float(max(signal, _LEAST_SIGNAL) ** -0.5)


def _draw(images: int, draws: int, seed: int) -> np.ndarray:
    """How often each image is drawn, uint16, shape (draws, images); without draws every image once."""
    if not draws:
        return np.ones((1, images), dtype=np.uint16)
    generator = np.random.default_rng(seed)
    return np.stack(
        [np.bincount(generator.integers(images, size=images), minlength=images) for _ in range(draws)]
    ).astype(np.uint16)


# Where trials differ by less than their noise, it could grow without bound.
_LEAST_SIGNAL = 0.1
