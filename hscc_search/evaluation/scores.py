"""The scores of a network as they are stored and measured. Needs no torch."""

import numpy as np
from scipy.special import log_softmax

# Metrics and errors are computed from these, so that they are those of what is stored.
SCORE_TYPE = np.dtype("<f2")


def kept_scores(scores: np.ndarray) -> np.ndarray:
    """Round the scores of a network to what is kept of them.

    Scores of classes become logarithms of their softmax. A softmax does not change when all scores of an image grow
    alike, and this common part would waste the digits of float16; and near 1, where compressed networks are often
    sure, 11 bits of the logarithm tell probabilities apart that 11 bits of the probability, or of a score of 20, do
    not: they give ties, and ties change the AUROC. Where two classes of an image become equal, the one that was lower
    gets the next lower value: the highest of what is kept is always the class that the network answers. Scores of
    another shape, such as maps, are kept as they are.

    Args:
        scores: finite, float32, shape (images, classes) or another one.

    Returns:
        float16, the same shape.
    """
    largest = float(np.finfo(SCORE_TYPE).max)
    if scores.ndim != 2 or scores.shape[1] < 2:
        clipped: np.ndarray = np.clip(scores, -largest, largest).astype(SCORE_TYPE)
        return clipped
    answered = scores.argmax(axis=1)[:, None]
    kept = np.maximum(log_softmax(scores.astype(np.float64), axis=1), -largest).astype(SCORE_TYPE)
    highest = np.take_along_axis(kept, answered, axis=1)
    # Rounding keeps the order, so that only classes that became equal can come before the answer.
    before = (kept == highest) & (np.arange(scores.shape[1]) < answered)
    lower: np.ndarray = np.nextafter(highest, SCORE_TYPE.type(-np.inf))
    return np.where(before, lower, kept).astype(SCORE_TYPE)
