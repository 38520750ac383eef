import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.comparison.record import Asked, ComparedNetwork
from hscc_search.comparison.summary import Estimate, summarise
from hscc_search.evaluation.quality import Quality


def network(method, seed, right, budget=3.0, epochs=0, **more):
    accuracy = sum(right) / len(right)
    error = math.sqrt(accuracy * (1 - accuracy) / len(right))
    quality = Quality({"accuracy": accuracy, "macro_f1": accuracy / 2}, {"accuracy": error, "macro_f1": error / 3})
    asked = Asked(method, budget, seed, epochs)
    return ComparedNetwork(asked, quality=quality, right=tuple(right), **({"macs": 1} | more))


def test_a_summary_by_hand():
    networks = [
        network("dense", 0, [1, 1, 1, 1], 1.0, macs=900, parameters=50),
        network("hscc", 0, [1, 1, 1, 0], macs=300, parameters=20),
        network(
            "pruning",
            0,
            [0, 1, 0, 0],
            macs=290,
            parameters=30,
            latency={"torch 1": 2.0},
            dense_latency={"torch 1": 6.0},
        ),
        network("dense", 1, [1, 1], 1.0, macs=900, parameters=50),
        network("hscc", 1, [1, 1], macs=280, parameters=25),
        network(
            "pruning", 1, [0, 1], macs=300, parameters=10, latency={"torch 1": 1.0}, dense_latency={"torch 1": 5.0}
        ),
    ]
    dense, hscc, pruning = summarise(networks)
    assert [summary.method for summary in (dense, hscc, pruning)] == ["dense", "hscc", "pruning"]
    assert (dense.flops_ratio, hscc.flops_ratio, pruning.flops_ratio) == (1, 3, 3)
    assert (pruning.parameters, pruning.splits) == (30, 2)
    assert pruning.accuracy.value == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert pruning.accuracy.se == pytest.approx(math.sqrt(3 / 64 + 1 / 8) / 2)
    assert pruning.macro_f1.value == pytest.approx(pruning.accuracy.value / 2)
    assert pruning.macro_f1.se == pytest.approx(pruning.accuracy.se / 3)
    # Differences to dense: -1, 0, -1, -1 (variance 3/16) and -1, 0 (variance 1/4).
    assert pruning.to_dense.value == pytest.approx((-3 / 4 - 1 / 2) / 2)
    assert pruning.to_dense.se == pytest.approx(math.sqrt(3 / 16 / 4 + 1 / 4 / 2) / 2)
    # And of hscc: 1, 0, 1, 0 (variance 1/4) and 1, 0 (variance 1/4).
    assert pruning.to_hscc.value == pytest.approx(1 / 2)
    assert pruning.to_hscc.se == pytest.approx(math.sqrt(1 / 4 / 4 + 1 / 4 / 2) / 2)
    assert hscc.to_hscc == dense.to_dense == Estimate(0, 0)
    assert pruning.speedup == {"torch 1": 4.0}
    assert hscc.speedup == {}


rights = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)


@given(splits=st.lists(rights, min_size=1, max_size=4), epochs=st.sampled_from([0, 3]))
@settings(max_examples=80, deadline=None)
def test_differences_are_of_the_same_images(splits, epochs):
    networks = []
    for seed, images in enumerate(splits):
        dense, hscc, other = zip(*images, strict=True)
        networks += [
            network("dense", seed, dense, 1.0),
            network("hscc", seed, hscc, epochs=epochs),
            network("alds", seed, other, epochs=epochs),
            # Networks that are not compared with it.
            network("hscc", seed, other, 6.0, epochs=epochs),
            network("hscc", seed, dense, epochs=epochs + 1),
        ]
    (alds,) = [summary for summary in summarise(networks) if summary.method == "alds"]
    for estimate, first, second in ((alds.to_dense, 2, 0), (alds.to_hscc, 1, 2)):
        differences = [[image[first] - image[second] for image in images] for images in splits]
        assert estimate.value == pytest.approx(statistics.mean(map(statistics.mean, differences)), abs=1e-12)
        variances = [statistics.pvariance(each) / len(each) for each in differences]
        assert estimate.se == pytest.approx(math.sqrt(sum(variances)) / len(splits), abs=1e-12)


def test_the_error_of_a_difference_is_that_of_drawing_images_again():
    generator = np.random.default_rng(0)
    splits = []
    for count in (60, 90):
        dense = (generator.random(count) < 0.9).astype(int)
        splits.append((dense, np.where(generator.random(count) < 0.8, dense, 1 - dense)))
    networks = [
        network(method, seed, split[at].tolist(), 1.0 if at == 0 else 3.0)
        for seed, split in enumerate(splits)
        for at, method in enumerate(("dense", "alds"))
    ]
    drawn = []
    for _ in range(2000):
        means = []
        for dense, other in splits:
            chosen = generator.integers(0, len(dense), len(dense))
            means.append((other - dense)[chosen].mean())
        drawn.append(np.mean(means))
    assert summarise(networks)[1].to_dense.se == pytest.approx(np.std(drawn), rel=0.1)


def test_the_error_of_a_difference_is_over_groups_where_images_belong_together():
    generator = np.random.default_rng(0)
    dense = np.repeat(generator.random(40) < 0.9, 5).astype(int)  # right on all images of a patient, or on none
    other = np.repeat(generator.random(40) < 0.7, 5).astype(int)
    patients = tuple(np.repeat(np.arange(40), 5).tolist())
    pair = [network("dense", 0, dense, 1.0), network("hscc", 0, other)]
    alone = summarise(pair)[1].to_dense
    together = summarise([replace(one, groups=patients) for one in pair])[1].to_dense
    assert together.value == alone.value
    assert together.se == pytest.approx(alone.se * 5**0.5)  # five images of a patient say what one says


def test_a_missing_network_leaves_no_mean_but_the_reason_and_the_others():
    networks = [
        network("dense", 0, [1, 1], 1.0),
        network("hscc", 0, [1, 0]),
        network("alds", 0, [0, 0]),
        network("dense", 1, [1, 1], 1.0),
        ComparedNetwork(Asked("hscc", 3.0, 1, 0), failure="out of reach"),
        network("alds", 1, [1, 0]),
    ]
    _, hscc, alds = summarise(networks)
    assert (hscc.accuracy, hscc.to_dense, hscc.macro_f1) == (None, None, None)
    assert hscc.failures == ("split 1: out of reach",)
    assert (hscc.splits, alds.splits) == (1, 2)
    assert alds.accuracy.value == 0.25
    assert alds.to_dense.value == -0.75
    assert alds.to_hscc is None
    assert alds.failures == ()


def test_a_summary_is_stored_with_each_error_beside_its_value():
    networks = [network("dense", 0, [1, 1, 1, 0], 1.0), network("hscc", 0, [1, 0, 1, 0], parameters=7)]
    _, hscc = summarise(networks)
    stored = json.loads(json.dumps(hscc.stored()))
    assert stored.pop("accuracy") == hscc.accuracy.value
    assert stored.pop("accuracy_se") == hscc.accuracy.se
    assert stored.pop("macro_f1") == hscc.macro_f1.value
    assert stored.pop("macro_f1_se") == hscc.macro_f1.se
    assert stored.pop("to_dense") == hscc.to_dense.value
    assert stored.pop("to_dense_se") == hscc.to_dense.se
    assert stored == {
        "method": "hscc",
        "budget": 3.0,
        "epochs": 0,
        "refined": False,
        "splits": 1,
        "flops_ratio": 1.0,
        "parameters": 7,
        "to_hscc": 0.0,
        "to_hscc_se": 0.0,
        "speedup": {},
        "failures": [],
    }
    (alone,) = summarise(networks[1:])
    assert (alone.stored()["to_dense"], alone.stored()["to_dense_se"]) == (None, None)
