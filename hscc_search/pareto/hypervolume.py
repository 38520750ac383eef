"""How much of what could be had a front reaches, and whether a study still gains."""

from collections.abc import Sequence

import moocore
import numpy as np

from hscc_search.pareto.objectives import Objective
from hscc_search.pareto.points import Point, oriented


def reference_point(
    dense: Point, objectives: Sequence[Objective], labels: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The corners between which the hypervolume is measured.

    Costs go from the dense network's to 0, accuracy from what guessing the most frequent class reaches to 1, macro
    F1 and recalls from 0 to 1.

    Args:
        dense: the dense network.
        objectives: of the study.
        labels: integers, shape (images,), true classes of the validation images.

    Returns:
        The worst values that count, and the ideal ones, per objective in the units of its metric.

    Raises:
        StudyError: the dense network lacks a metric.
    """
    guessing = float(np.bincount(labels).max() / len(labels))
    reference, ideal = [], []
    for objective in objectives:
        worst = guessing if objective.metric == "accuracy" else 0.0
        reference.append(worst if objective.on_images else float(dense[objective.metric]))
        ideal.append(1.0 if objective.on_images else 0.0)
    return tuple(reference), tuple(ideal)


def hypervolume(
    points: Sequence[Point],
    objectives: Sequence[Objective],
    reference: tuple[float, ...],
    ideal: tuple[float, ...],
) -> float:
    """Share of the box between reference and ideal that feasible points beat (Zitzler and Thiele 1999), exact.

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
    """The hypervolume after each trial, by trial number; the dense network is left out.

    Args and raises as in :func:`hypervolume`.
    """
    numbered = {point.trial: point for point in points if point.trial is not None}
    trials = [numbered[trial] for trial in sorted(numbered)]
    scaled = _scaled(trials, objectives, reference, ideal)
    members = np.empty((0, len(objectives)))
    history: list[float] = []
    for point, values in zip(trials, scaled, strict=True):
        share = history[-1] if history else 0.0
        if point.feasible and (values < 1).all() and not (members <= values).all(axis=1).any():
            members = np.vstack([members[~(values <= members).all(axis=1)], values])
            share = max(share, _share(members))  # rounding must not let it fall
        history.append(share)
    return history


def stagnant(history: Sequence[float], patience: int, tolerance: float = 1e-3) -> bool:
    """Whether the last trials gained next to nothing.

    Args:
        history: from :func:`hypervolume_history`.
        patience: number of last trials that are looked at, 1 or more.
        tolerance: gain, as a share of the hypervolume before these trials, that is worth going on for.

    Returns:
        False while the history is not longer than the patience, and while nothing was found at all: then there is
        no front yet that could stand still.
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
    """Values as shares of the way from ideal (0) to reference (1), shape (points, objectives)."""
    signs = np.array([objective.sign for objective in objectives])
    nadir, best = signs * np.array(reference), signs * np.array(ideal)
    room = nadir - best
    if (room <= 0).any():
        return np.ones((len(points), len(objectives)))
    scaled: np.ndarray = np.maximum((oriented(points, objectives) - best) / room, 0)
    return scaled


def _share(scaled: np.ndarray) -> float:
    inside = scaled[(scaled < 1).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=1)) if len(inside) else 0.0
