import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn import metrics

from hscc_search.errors import StudyError
from hscc_search.evaluation.draws import draw_counts
from hscc_search.evaluation.on_draws import BINS, score_metric
from hscc_search.evaluation.quality import measure_quality
from hscc_search.evaluation.scores import kept_scores

CLASSES = ("a", "b", "c")


@st.composite
def answers(draw, count=None):
    """Scores with many ties, labels in which each class occurs, and draws."""
    count = count or draw(st.integers(2, 3))
    labels = np.array([*range(count), *draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=25))])
    values = st.sampled_from([0.0, -0.5, -1.0, 1.5, 3.0])
    rows = draw(st.lists(st.lists(values, min_size=count, max_size=count), min_size=len(labels), max_size=len(labels)))
    counts = np.vstack([np.ones(len(labels)), draw_counts(len(labels), 3, draw(st.integers(0, 9)))])
    return kept_scores(np.array(rows, np.float32)), labels, CLASSES[:count], counts


def on_draws(metric, scores, labels, classes, counts):
    return score_metric(metric, scores, labels, classes, counts.T.astype(np.float32, order="C"))


@pytest.mark.parametrize(
    ("name", "reference"),
    [("auroc", metrics.roc_auc_score), ("average_precision", metrics.average_precision_score)],
)
@given(case=answers())
@settings(max_examples=60, deadline=None)
def test_areas_are_those_of_scikit_learn_with_weights(name, reference, case):
    scores, labels, classes, counts = case
    each = np.stack([on_draws(f"{name}:{label}", *case) for label in classes])
    for position, got in enumerate(each):
        own = scores[:, position].astype(np.float64)
        own = own - scores[:, 1 - position] if len(classes) == 2 else own
        for draw, weights in enumerate(counts):
            present = labels[weights > 0] == position
            if present.any() and not present.all():
                expected = reference(labels == position, own, sample_weight=weights)
                assert got[draw] == pytest.approx(expected, abs=1e-12)
            else:  # every threshold is precise where there is no other class
                assert np.isnan(got[draw]) if name == "auroc" or not present.any() else got[draw] == 1
    defined = np.isfinite(each)
    means = np.where(defined, each, 0).sum(axis=0) / np.where(defined.any(axis=0), defined.sum(axis=0), np.nan)
    assert on_draws(name, *case) == pytest.approx(means, abs=1e-12, nan_ok=True)


@given(answers(count=3))
@settings(max_examples=50, deadline=None)
def test_the_macro_average_is_scikit_learns_one_against_the_rest(case):
    scores, labels, _, _ = case
    probabilities = softmax(scores.astype(np.float64), axis=1)
    one_hot = np.eye(3)[labels]
    ranks = np.stack([rankdata(column, "dense") for column in scores.T], axis=1)
    assert on_draws("auroc", *case)[0] == pytest.approx(metrics.roc_auc_score(one_hot, ranks, average="macro"))
    assert on_draws("average_precision", *case)[0] == pytest.approx(
        metrics.average_precision_score(one_hot, ranks, average="macro")
    )
    assert on_draws("log_loss", *case)[0] == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(3)))


@given(answers(), st.sampled_from([0.0, 0.5, 0.8, 0.9, 1.0]))
@settings(max_examples=80, deadline=None)
def test_sensitivity_is_the_highest_of_the_curve_at_that_specificity(case, specificity):
    scores, labels, classes, counts = case
    got = on_draws(f"sensitivity@{specificity}:b", *case)
    own = scores[:, 1].astype(np.float64) - (scores[:, 0] if len(classes) == 2 else 0)
    for draw, weights in enumerate(counts):
        if len(np.unique(labels[weights > 0] == 1)) == 2:
            false, true, _ = metrics.roc_curve(labels == 1, own, sample_weight=weights, drop_intermediate=False)
            assert got[draw] == pytest.approx(true[1 - false >= specificity - 1e-12].max())
        else:
            assert np.isnan(got[draw])


@given(answers())
@settings(max_examples=50, deadline=None)
def test_losses_on_draws_are_those_of_the_images_that_are_drawn(case):
    scores, labels, classes, counts = case
    for draw, count in enumerate(counts.astype(int)):
        images = np.repeat(np.arange(len(labels)), count)
        probabilities = softmax(scores[images].astype(np.float64), axis=1)
        loss = metrics.log_loss(labels[images], probabilities, labels=range(len(classes)))
        assert on_draws("log_loss", *case)[draw] == pytest.approx(loss)
        highest, right = probabilities.max(axis=1), scores[images].argmax(axis=1) == labels[images]
        bins = np.minimum((highest * BINS).astype(int), BINS - 1)
        gaps = [
            (bins == number).mean() * abs(highest[bins == number].mean() - right[bins == number].mean())
            for number in np.unique(bins)
        ]
        assert on_draws("calibration_error", *case)[draw] == pytest.approx(sum(gaps))


def test_a_class_that_does_not_exist_is_refused():
    with pytest.raises(StudyError, match="no auroc:dog: the classes are a, b, c"):
        score_metric("auroc:dog", np.zeros((2, 3)), np.zeros(2, int), CLASSES, np.ones((2, 1), np.float32))


def delong(positive, negative):
    """The standard error of an AUROC by DeLong, DeLong and Clarke-Pearson (1988)."""
    above = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return np.sqrt(above.mean(axis=1).var(ddof=1) / len(positive) + above.mean(axis=0).var(ddof=1) / len(negative))


@pytest.mark.parametrize("shift", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("positives", [60, 200])
def test_the_error_of_auroc_is_delongs(shift, positives):
    generator = np.random.default_rng(3)
    labels = (np.arange(400) < positives).astype(np.int64)
    own = generator.normal(size=400) + shift * labels
    scores = kept_scores(np.stack([np.zeros(400), own], axis=1).astype(np.float32))
    quality = measure_quality(scores.argmax(axis=1), labels, ("a", "b"), scores=scores, asked=["auroc"])
    assert quality.metrics["auroc"] == pytest.approx(metrics.roc_auc_score(labels, own), abs=1e-3)
    assert quality.errors["auroc"] == pytest.approx(delong(own[labels == 1], own[labels == 0]), rel=0.1)
