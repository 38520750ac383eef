import numpy as np
import pytest

from hscc_search.evaluation.draws import alone, draw_counts
from hscc_search.evaluation.quality import measure_quality


def test_each_draw_has_as_many_images_as_there_are():
    counts = draw_counts(30, 5, 1)
    assert (counts.shape, counts.dtype) == ((5, 30), np.uint16)
    assert (counts.sum(axis=1) == 30).all()
    assert (counts == draw_counts(30, 5, 1)).all()
    assert (counts != draw_counts(30, 5, 2)).any()
    assert (draw_counts(30, 0, 1) == np.ones((1, 30))).all()


def test_groups_are_drawn_as_they_are():
    groups = np.array([7, 7, 3, 7, 9, 9])
    counts = draw_counts(6, 50, 0, groups)
    assert counts.dtype == np.uint16
    for group in (3, 7, 9):
        members = counts[:, groups == group]
        assert (members == members[:, :1]).all()
    drawn = counts[:, [2, 0, 4]]  # one image of each group
    assert (drawn.sum(axis=1) == 3).all()
    assert len(np.unique(counts.sum(axis=1))) > 1  # groups are of different sizes


def test_images_that_stand_alone_are_drawn_as_if_there_were_no_groups():
    groups = np.random.default_rng(0).permutation(30)
    assert alone(groups)
    assert (draw_counts(30, 5, 1, groups) == draw_counts(30, 5, 1)).all()


PATIENTS, SLICES = 60, 8


def correlated(generator, studies):
    """Tell whether a network is right on the slices of patients of which some are hard: accuracy 0.75 in truth."""
    ease = generator.beta(1.5, 0.5, size=(studies, PATIENTS, 1))
    return generator.random((studies, PATIENTS, SLICES)) < ease


def test_the_error_over_patients_covers_the_truth_and_the_one_over_images_does_not():
    """In 68 % of all studies the truth is less than a standard error away from what was measured."""
    rights = correlated(np.random.default_rng(0), 500).reshape(500, -1)
    patients = np.repeat(np.arange(PATIENTS), SLICES)
    labels = np.zeros(PATIENTS * SLICES, np.int64)
    covered = {"patients": 0, "images": 0}
    for right in rights:
        for unit, groups in (("patients", patients), ("images", None)):
            quality = measure_quality(1 - right.astype(np.int64), labels, ("a", "b"), groups=groups)
            covered[unit] += abs(quality.metrics["accuracy"] - 0.75) < quality.errors["accuracy"]
    assert covered["patients"] / 500 == pytest.approx(0.68, abs=0.05)
    assert covered["images"] / 500 < 0.5
