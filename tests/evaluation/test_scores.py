import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_auc_score

from hscc_search.evaluation.scores import kept_scores

logits = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(2, 5)),
    elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, np.nextafter(np.float32(1), np.float32(2))]),
)


@given(logits)
@settings(max_examples=150, deadline=None)
def test_the_highest_of_what_is_kept_is_the_class_that_is_answered(scores):
    kept = kept_scores(scores)
    assert kept.dtype == np.float16
    assert np.isfinite(kept).all()
    assert (kept.argmax(axis=1) == scores.argmax(axis=1)).all()


@given(logits)
@settings(max_examples=100, deadline=None)
def test_the_order_of_images_within_a_class_is_kept_up_to_ties(scores):
    logarithms = log_softmax(scores.astype(np.float64), axis=1)
    # Where two classes became equal one is a digit lower, which can change places with another image.
    slack = 2.0**-9
    for own, kept in zip(logarithms.T, kept_scores(scores).T.astype(np.float64), strict=True):
        order = np.argsort(own, kind="stable")
        falls = np.maximum.accumulate(kept[order]) - kept[order]
        assert (falls <= slack * np.maximum(np.abs(kept[order]), 1e-4)).all()


def test_a_common_part_of_all_scores_costs_no_digits():
    scores = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_allclose(kept_scores(scores + 300.0), kept_scores(scores), rtol=2e-3, atol=1e-4)


def test_sure_networks_keep_their_auroc():
    """Rounded probabilities would make ties of most images, and rounded scores of many."""
    generator = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    sure = 11 + labels + generator.normal(size=4000)
    scores = np.stack([np.zeros(4000), sure], axis=1).astype(np.float32)
    true = roc_auc_score(labels, sure)
    kept = kept_scores(scores).astype(np.float64)
    assert abs(roc_auc_score(labels, kept[:, 1] - kept[:, 0]) - true) < 1e-5
    assert abs(roc_auc_score(labels, softmax(scores, axis=1)[:, 1].astype(np.float16)) - true) > 1e-2


def test_maps_and_single_scores_are_kept_as_they_are():
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    assert (kept_scores(maps) == maps.astype(np.float16)).all()
    assert kept_scores(np.array([[1e9], [-1e9]], np.float32)).tolist() == [[65504.0], [-65504.0]]
