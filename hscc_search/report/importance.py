"""The importance of each sampled parameter for each objective of a study, by fANOVA (Hutter et al., ICML 2014)."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from hscc_search.pareto.points import Point
from hscc_search.study.stored_study import Study

# Fewest trials that say anything, and most that are looked at: they take a second or two.
_FEWEST, _MOST = 8, 400
_TREES = 32


def importances(study: Study) -> dict[str, dict[str, float]]:
    """Measure how much of an objective's variance over the space each parameter explains, alone and with others.

    Args:
        study: whose searched trials are looked at, at most 400 of them at equal distances, without refined ones.

    Returns:
        By objective, shares by parameter that add up to 1, largest first, to three digits. Parameters that some trials
        lack, or that were never changed, have none; there is nothing of an objective that never changed, and of fewer
        than 8 trials.
    """
    points = study.searched.points
    points = points[:: -(-len(points) // _MOST) or 1]
    space = _space(points)
    if len(points) < _FEWEST or not space:
        return {}
    found = {}
    for objective in study.objectives:
        values = [point[objective.metric] for point in points]
        if min(values) < max(values):
            found[objective.metric] = _of_values(points, values, space)
    return found


def _of_values(
    points: Sequence[Point], values: Sequence[float], space: dict[str, BaseDistribution]
) -> dict[str, float]:
    # Optuna asks for a study of its own: these are the trials again, with the ranges that were sampled.
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study()
        for point, value in zip(points, values, strict=True):
            params = {name: point.sample[name] for name in space}
            study.add_trial(create_trial(params=params, distributions=space, value=value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are alike
            shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(n_trees=_TREES, seed=0))
        return {name: round(float(share), 3) for name, share in shares.items()}
    finally:
        optuna.logging.set_verbosity(verbosity)


def _space(points: Sequence[Point]) -> dict[str, BaseDistribution]:
    """The parameters that all trials have and not all alike, with what was sampled of them."""
    space: dict[str, BaseDistribution] = {}
    for name in points[0].sample if points else ():
        if not all(name in point.sample for point in points):
            continue
        values = {point.sample[name] for point in points}
        if len(values) < 2:
            continue
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            space[name] = FloatDistribution(float(min(values)), float(max(values)))
        else:
            space[name] = CategoricalDistribution(sorted(values, key=str))
    return space
