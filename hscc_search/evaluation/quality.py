"""Metrics of a network's answers on one part of the data, each with its standard error. Needs no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hscc_search.config.metrics import COSTS, class_of, needs_scores
from hscc_search.errors import StudyError
from hscc_search.evaluation.draws import alone, draw_counts
from hscc_search.evaluation.on_draws import score_metric
from hscc_search.evaluation.own import OnDraws

BOOTSTRAP_DRAWS = 1000
# Metrics that are measured whatever is asked for, the last two by class.
_ALWAYS = ("accuracy", "macro_f1", "recall", "f1")
# Draws whose standard deviation is below this are the same, up to rounding.
AGREE = 1e-12


@dataclass(frozen=True)
class Quality:
    """Metrics of answers on one part of the data, by name.

    Attributes:
        metrics: ``accuracy``, ``macro_f1``, for each class ``recall:CLASS`` and ``f1:CLASS``, and those that a study
            asks for; 0 to 1, but for ``log_loss`` and metrics of a study's own.
        errors: the standard error of each of them.
    """

    metrics: dict[str, float]
    errors: dict[str, float]


def measure_quality(
    predicted: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    seed: int = 0,
    scores: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    asked: Sequence[str] = (),
    own: Mapping[str, OnDraws] | None = None,
) -> Quality:
    """Measure accuracy, macro F1, recall and F1 per class, and what else is asked for, each with its standard error.

    Errors are those of a bootstrap over images, or over groups where some hold several images. A perfect score is the
    same in every draw, which does not make it sure: a share for which all draws agree has the standard deviation of
    Jeffreys' posterior for n right ones of n, about 0.7 / n (Brown, Cai and DasGupta 2001). Here n is the number of
    images that the share is of, or of their groups: of the class for a recall, of the rarer side for an AUROC. Means
    over classes have the error of the mean.

    Args:
        predicted: predicted classes as positions in ``classes``, integers of shape (images,).
        labels: true classes, likewise.
        classes: class names.
        seed: of the bootstrap's :data:`BOOTSTRAP_DRAWS` draws.
        scores: as :func:`hscc_search.evaluation.scores.kept_scores` keeps them, shape (images, classes); None where
            no metric that is asked for needs them.
        groups: integers, shape (images,), the same for images that belong together; None where none do.
        asked: names of further metrics; costs among them are left out.
        own: metrics of a study's own, by name.

    Raises:
        StudyError: a metric needs scores and there are none, or names an unknown class.
    """
    groups = None if groups is None or alone(groups) else groups
    on_all, errors = _by_confusions(predicted, labels, classes, seed, groups)
    for metric in asked:
        if metric in COSTS or metric in on_all:
            continue
        if own and metric in own:
            on_all[metric], errors[metric] = own[metric].value, own[metric].error
        else:
            on_all[metric], errors[metric] = _by_scores(metric, scores, labels, classes, seed, groups)
    wanted = [name for name in on_all if name in asked or name.split(":")[0] in _ALWAYS]
    sizes = _sizes(labels, len(classes), groups)
    for name in wanted:
        if errors[name] < AGREE and name not in (own or {}):
            errors[name] = _error_where_draws_agree(name, classes, sizes)
    return Quality({name: on_all[name] for name in wanted}, {name: errors[name] for name in wanted})


def _by_confusions(
    predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str], seed: int, groups: np.ndarray | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure what the confusion matrix tells, and how it varies over draws."""
    count = len(classes)
    cells = labels.astype(np.int64) * count + predicted
    confusion = np.bincount(cells, minlength=count * count)
    if groups is None:
        # Drawing images with replacement draws confusion cells from a multinomial.
        draws = np.random.default_rng(seed).multinomial(len(labels), confusion / len(labels), BOOTSTRAP_DRAWS)
    else:
        counts = draw_counts(len(labels), BOOTSTRAP_DRAWS, seed, groups)
        order = np.argsort(cells, kind="stable")
        occurring, first = np.unique(cells[order], return_index=True)
        draws = np.zeros((len(counts), count * count), np.int64)
        draws[:, occurring] = np.add.reduceat(counts[:, order], first, axis=1, dtype=np.int64)
    on_all, on_draws = (_measures(cells.reshape(-1, count, count)) for cells in (confusion, draws))
    return (
        _named({measure: values[0] for measure, values in on_all.items()}, classes),
        _named({measure: values.std(axis=0) for measure, values in on_draws.items()}, classes),
    )


def _by_scores(
    metric: str,
    scores: np.ndarray | None,
    labels: np.ndarray,
    classes: Sequence[str],
    seed: int,
    groups: np.ndarray | None,
) -> tuple[float, float]:
    """Measure a metric of scores, and how it varies over the draws on which it is defined."""
    if not needs_scores(metric):
        raise StudyError(f"no {metric}: the classes are {', '.join(classes)}")
    if scores is None:
        raise StudyError(f"{metric} needs the scores of all classes, and only the predicted classes are known")
    counts = draw_counts(len(labels), BOOTSTRAP_DRAWS, seed, groups)
    weights = np.vstack([np.ones((1, len(labels))), counts]).T.astype(np.float32, order="C")
    values = score_metric(metric, scores, labels, classes, weights)
    if not np.isfinite(values[0]):
        raise StudyError(f"{metric} is not defined: a class has no image, or all images are of one class")
    return float(values[0]), float(np.nanstd(values[1:]))


def _measures(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the measures of confusion matrices; those of a class that does not occur are 0.

    Args:
        confusions: number of images, shape (draws, true classes, predicted classes).

    Returns:
        Accuracy, macro F1 and balanced accuracy (of the classes that occur), shape (draws,), and recall, F1 and
        specificity of each class, shape (draws, classes).
    """
    right = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    true, guessed = confusions.sum(axis=2), confusions.sum(axis=1)
    images = confusions.sum(axis=(1, 2))
    f1 = 2 * right / np.maximum(true + guessed, 1)
    recall = right / np.maximum(true, 1)
    others = images[:, None] - true
    return {
        "accuracy": right.sum(axis=1) / images,
        "macro_f1": f1.mean(axis=1),
        "recall": recall,
        "f1": f1,
        "balanced_accuracy": recall.sum(axis=1) / np.maximum((true > 0).sum(axis=1), 1),
        "specificity": (others - (guessed - right)) / np.maximum(others, 1),
    }


def _named(measures: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
    """Name the values of a measure: ``measure:CLASS`` where it has a value for each class."""
    named: dict[str, float] = {}
    for measure, values in measures.items():
        if values.ndim:
            named |= {f"{measure}:{name}": float(value) for name, value in zip(classes, values, strict=True)}
        else:
            named[measure] = float(values)
    return named


def _sizes(labels: np.ndarray, count: int, groups: np.ndarray | None) -> tuple[int, np.ndarray, np.ndarray]:
    """Count the images, those of each class, and those of all others; their groups where there are groups."""
    if groups is None:
        own = np.bincount(labels, minlength=count)
        return len(labels), own, len(labels) - own
    own, others = (
        np.array([len(np.unique(groups[(labels == label) == same])) for label in range(count)])
        for same in (True, False)
    )
    return len(np.unique(groups)), own, others


def _error_where_draws_agree(metric: str, classes: Sequence[str], sizes: tuple[int, np.ndarray, np.ndarray]) -> float:
    """The standard error of a metric that is the same in all draws: see :func:`measure_quality`.

    0 for losses, which are no shares, and for classes without an image.
    """
    images, own, others = sizes
    kind, of = metric.split("@")[0].partition(":")[0], class_of(metric)
    if kind in ("log_loss", "calibration_error"):
        return 0.0
    if kind == "accuracy":
        return jeffreys(images)
    of_class = {
        "specificity": others,
        **dict.fromkeys(("auroc", "average_precision"), np.minimum(own, others)),
    }.get(kind, own)
    chosen = of_class if of is None else of_class[[list(classes).index(of)]]
    chosen = chosen[chosen > 0]
    return math.sqrt(sum(jeffreys(int(size)) ** 2 for size in chosen)) / max(len(chosen), 1)


def jeffreys(images: int) -> float:
    """The standard deviation of a share after all of some images were right: of a Beta(images + 1/2, 1/2)."""
    return math.sqrt((images + 0.5) * 0.5 / ((images + 1) ** 2 * (images + 2)))
