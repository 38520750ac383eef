from dataclasses import replace

import numpy as np
import pytest

from hscc_search.report.importance import importances


def with_points(study, count, accuracy):
    """The study with other trials: energies, regions and a strategy at random, and an accuracy made of them."""
    random = np.random.default_rng(0)
    points = []
    for trial in range(count):
        sample = {
            "energy": float(random.uniform(0.7, 1)),
            "regions": int(random.integers(1, 10)),
            "region_strategy": str(random.choice(["grid", "kmeans"])),
            "clusters": 1,
        }
        metrics = {**study.points[0].metrics, "accuracy": accuracy(sample), "flops": 1e6 * sample["energy"]}
        points.append(replace(study.points[0], trial=trial, sample=sample, metrics=metrics))
    return replace(study, points=tuple(points))


def test_what_an_objective_is_made_of_matters_and_nothing_else(study):
    shares = importances(with_points(study, 80, lambda sample: sample["region_strategy"] == "grid"))
    assert set(shares) == {"flops", "accuracy"}
    for of_objective, first in (("flops", "energy"), ("accuracy", "region_strategy")):
        assert next(iter(shares[of_objective])) == first
        assert shares[of_objective][first] > 0.9
        assert sum(shares[of_objective].values()) == pytest.approx(1, abs=0.01)
    assert "clusters" not in shares["flops"]  # which never changed


def test_nothing_is_said_of_few_trials_or_of_an_objective_that_never_changes(study):
    assert importances(with_points(study, 7, lambda sample: sample["energy"])) == {}
    assert importances(replace(study, points=())) == {}
    assert set(importances(with_points(study, 20, lambda sample: 0.5))) == {"flops"}


def test_a_parameter_that_some_trials_lack_has_no_share(study):
    full = with_points(study, 20, lambda sample: sample["energy"])
    del full.points[3].sample["regions"]
    assert all("regions" not in shares for shares in importances(full).values())
