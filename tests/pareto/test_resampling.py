import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.errors import StudyError
from hscc_search.evaluation.draws import draw_counts
from hscc_search.evaluation.quality import measure_quality
from hscc_search.pareto.resampling import resample, widening

CLASSES = ("a", "b", "c")
# Metrics of predicted classes, and how nearly two ways of computing them agree.
PRECISIONS = {"accuracy": 1e-7, "macro_f1": 1e-15, "balanced_accuracy": 1e-14, "recall:b": 1e-7, "specificity:c": 1e-7}


def test_a_recall_of_no_class_is_refused():
    labels = np.zeros(4, dtype=np.int64)
    with pytest.raises(StudyError, match="no recall:dog: the classes are a, b, c"):
        resample("recall:dog", labels[None].astype(np.uint16), labels, CLASSES, np.ones((1, 4), dtype=np.float32))


@given(
    data=st.data(),
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=30).map(np.array),
)
@settings(max_examples=60, deadline=None)
def test_metrics_on_draws_are_those_of_the_evaluation(data, labels):
    guesses = st.lists(st.integers(0, 2), min_size=len(labels), max_size=len(labels))
    predictions = np.array(data.draw(st.lists(guesses, min_size=1, max_size=4)), dtype=np.uint16)
    counts = np.vstack([np.ones(len(labels), dtype=np.int64), draw_counts(len(labels), 3, 0)])
    for draw, count in enumerate(counts):
        images = np.repeat(np.arange(len(labels)), count)
        for row in predictions:
            expected = measure_quality(
                row[images].astype(np.int64), labels[images], CLASSES, asked=("balanced_accuracy", "specificity:c")
            ).metrics
            for metric, precision in PRECISIONS.items():
                resampled = resample(metric, row[None], labels, CLASSES, counts.astype(np.float32))
                assert resampled.shape == (1, 4)
                assert resampled[0, draw] == pytest.approx(expected[metric], rel=precision, abs=0)


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 0.3), (1.0, 1.0), (0.5, 1.0)])
def test_the_widening_undoes_what_noise_adds_to_the_spread(signal, noise):
    generator = np.random.default_rng(0)
    whole = generator.normal(scale=signal, size=20000) + generator.normal(scale=noise, size=20000)
    common = generator.normal(scale=5, size=50)  # moves all trials alike
    drawn = whole[:, None] + generator.normal(scale=noise, size=(20000, 50)) + common
    expected = math.sqrt((signal**2 + noise**2) / signal**2)
    assert widening(whole, drawn, len(whole)) == pytest.approx(expected, rel=0.03)


def test_the_widening_has_bounds():
    noisy = np.random.default_rng(0).normal(size=(4, 30))
    assert widening(np.zeros(4), noisy, 4) == pytest.approx(math.sqrt(10))
    assert widening(np.zeros(3), noisy[:3], 3) == 1
    whole = np.arange(4.0)
    assert widening(whole, np.repeat(whole[:, None], 30, axis=1), 4) == 1
