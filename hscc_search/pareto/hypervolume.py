"""The normalised hypervolume of a front, and whether a study still raises it."""

from collections.abc import Sequence

import moocore
import numpy as np
from scipy.special import entr

from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Measured, Point, oriented

# Trials that are compared with the front at a time, which bounds the memory.
_AT_ONCE = 200


def reference_point(
    dense: Measured, objectives: Sequence[Objective], labels: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The two corners of the box in which the hypervolume is measured.

    Costs go from the dense network's to 0, accuracy from that of guessing the most frequent class to 1, AUROC from 0.5
    to 1, log loss from that of guessing each class as often as it occurs to 0, the calibration error from 1 to 0, a
    metric of the study's own from its worst value to its best one, and all others from 0 to 1.

    Args:
        dense: the dense network.
        objectives: of the study.
        labels: integers, shape (images,), true classes of the validation images; where these are maps, shape (images,
            classes), see :func:`hscc_search.data.dataset.kept_labels`.

    Returns:
        The reference point (the worst values that count) and the ideal point, each with a value per objective in the
        unit of its metric.

    Raises:
        StudyError: the dense network lacks a metric.
    """
    corners = [_corners(dense, objective, labels) for objective in objectives]
    reference, ideal = zip(*corners, strict=True)
    return reference, ideal


def _corners(dense: Measured, objective: Objective, labels: np.ndarray) -> tuple[float, float]:
    """The worst value of an objective that counts, and the best one."""
    if objective.bounds is not None:
        return objective.bounds
    if not objective.on_images:
        return float(dense[objective.metric]), 0.0
    counts = np.bincount(labels) if labels.ndim == 1 else labels.sum(axis=0)
    shares = counts / counts.sum()
    match objective.metric.partition(":")[0]:
        case "accuracy":
            return float(shares.max()), 1.0
        case "auroc":
            return 0.5, 1.0
        case "log_loss":
            return float(entr(shares).sum()), 0.0
        case "calibration_error":
            return 1.0, 0.0
    return 0.0, 1.0


def hypervolume(
    points: Sequence[Point],
    objectives: Sequence[Objective],
    reference: tuple[float, ...],
    ideal: tuple[float, ...],
) -> float:
    """The exact share of the box between reference and ideal that feasible points dominate.

    The hypervolume indicator of Zitzler and Thiele (1999), normalised by the volume of the box.

    Args:
        points: in any order; those that are not better than the reference in every objective add nothing.
        objectives: two to four.
        reference: per objective the worst value that counts, in the unit of the metric.
        ideal: per objective the best value, in the unit of the metric.

    Returns:
        0 to 1; 0 where reference and ideal leave no room between them.

    Raises:
        StudyError: a point lacks a metric.
    """
    feasible = [point for point in points if point.feasible]
    return _share(_scaled(feasible, objectives, reference, ideal))


def hypervolume_history(
    points: Sequence[Point],
    objectives: Sequence[Objective],
    reference: tuple[float, ...],
    ideal: tuple[float, ...],
) -> list[float]:
    """The hypervolume after each trial, in the order of their numbers.

    Arguments and raises as in :func:`hypervolume`.
    """
    trials = sorted(points, key=lambda point: point.trial)
    scaled = _scaled(trials, objectives, reference, ideal)
    members = np.empty((0, len(objectives)))
    history: list[float] = []
    for start in range(0, len(trials), _AT_ONCE):
        some = scaled[start : start + _AT_ONCE]
        # What a member dominates already adds nothing, also when others have become members.
        adding = np.flatnonzero((some < 1).all(axis=1) & ~np.any((members <= some[:, None]).all(axis=2), axis=1))
        candidates = set(adding.tolist())
        for row, (point, values) in enumerate(zip(trials[start : start + _AT_ONCE], some, strict=True)):
            share = history[-1] if history else 0.0
            if row in candidates and point.feasible and not (members <= values).all(axis=1).any():
                members = np.vstack([members[~(values <= members).all(axis=1)], values])
                share = max(share, _share(members))  # only rounding could lower it
            history.append(share)
    return history


def stagnant(history: Sequence[float], patience: int, tolerance: float = 1e-3) -> bool:
    """Tell whether the last trials have hardly raised the hypervolume.

    Args:
        history: from :func:`hypervolume_history`.
        patience: number of last trials to consider, 1 or more.
        tolerance: gain from which a study is not stagnant, as a share of the hypervolume before these trials.

    Returns:
        False while the history is not longer than the patience, and while the hypervolume is 0, since there is no
        front yet.
    """
    if len(history) <= patience:
        return False
    before = history[-1 - patience]
    return history[-1] - before < tolerance * before


def _scaled(
    points: Sequence[Point],
    objectives: Sequence[Objective],
    reference: tuple[float, ...],
    ideal: tuple[float, ...],
) -> np.ndarray:
    """Scale values so that ideal is 0 and reference is 1: shape (points, objectives), all 1 for an empty box."""
    signs = np.array([objective.sign for objective in objectives])
    nadir, best = signs * np.array(reference), signs * np.array(ideal)
    room = nadir - best
    if (room <= 0).any():
        return np.ones((len(points), len(objectives)))
    scaled: np.ndarray = np.maximum((oriented(points, objectives) - best) / room, 0)
    return scaled


def _share(scaled: np.ndarray) -> float:
    """The share of the unit box that scaled values dominate."""
    inside = scaled[(scaled < 1).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=1)) if len(inside) else 0.0
