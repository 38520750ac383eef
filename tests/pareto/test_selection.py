import math

import numpy as np
import pytest
from clouds import LABELS, PLANE, clouds, make_point, make_points, objectives_in_any_order
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search.errors import ConfigError, StudyError
from hscc_search.pareto.confidence import Truth
from hscc_search.pareto.front import front
from hscc_search.pareto.points import Point
from hscc_search.pareto.selection import Bound, ByTrial, Knee, parse_rule, select

# Trial 1 is dominated by trial 2.
CLOUD = make_points((100, 0.60), (300, 0.70), (200, 0.75), (400, 0.90), (1000, 0.95))


def test_a_rule_may_be_given_as_text():
    given = (CLOUD, PLANE, Truth(LABELS, ("a", "b")))
    assert select("trial:3", *given) == select(ByTrial(3), *given)
    for wrong in ("garbage", None, 3):
        with pytest.raises(ConfigError, match="use knee, trial:N"):
            select(wrong, *given)


def choose(rule, cloud, objectives=PLANE):
    return select(parse_rule(rule), cloud, objectives, Truth(LABELS, ("a", "b")))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("knee", Knee()),
        ("trial:0", ByTrial(0)),
        ("trial:12", ByTrial(12)),
        ("min-accuracy:0", Bound("accuracy", True, 0.0)),
        ("min-accuracy:0.9", Bound("accuracy", True, 0.9)),
        ("min-accuracy:1", Bound("accuracy", True, 1.0)),
        ("max-flops:2.5e9", Bound("flops", False, 2.5e9)),
        ("min-auroc:0.9", Bound("auroc", True, 0.9)),
        ("max-log_loss:0.9", Bound("log_loss", False, 0.9)),
        ("min-recall:grade:2:0.9", Bound("recall:grade:2", True, 0.9)),
        ("min-sensitivity@0.95:cat:0.9", Bound("sensitivity@0.95:cat", True, 0.9)),
        ("max-dice:-3", Bound("dice", False, -3.0)),
        ("max-flops:inf", Bound("flops", False, math.inf)),
    ],
)
def test_each_rule_is_read(text, rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "best",
        "Knee",
        "knee:1",
        "trial",
        "trial:",
        "trial:one",
        "trial:1234567890123456789",
        "trial:-1",
        "trial:1.5",
        "min-accuracy",
        "min-accuracy:",
        "min-accuracy:high",
        "min-accuracy:1.2",
        "min-accuracy:-0.1",
        "min-accuracy:nan",
        "max-accuracy:0.5",
        "min-flops:5",
        "min-log_loss:0.5",
        "min-recall:cat:2",
        "min-two words:0.5",
        "most-accuracy:0.5",
        "max-flops:",
        "max-flops:0",
        "max-flops:-5",
        "max-flops:many",
        "max-flops:nan",
    ],
)
def test_a_malformed_rule_is_quoted_with_the_rules_that_exist(text):
    with pytest.raises(ConfigError, match="use knee, trial:N") as refused:
        parse_rule(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("kind", ["trial", "min-accuracy", "most"])
def test_a_number_that_no_study_has_is_refused_in_short(kind):
    with pytest.raises(ConfigError, match="cannot select") as refused:
        parse_rule(f"{kind}:{'9' * 5000}")
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("rule", "trial"),
    [
        ("trial:1", 1),
        ("trial:4", 4),
        ("min-accuracy:0.65", 2),
        ("min-accuracy:0.75", 2),
        ("min-accuracy:0", 0),
        ("max-flops:399", 2),
        ("max-flops:400", 3),
        ("max-flops:1e12", 4),
    ],
)
def test_each_rule_selects_its_trial(rule, trial):
    assert choose(rule, CLOUD).trial == trial


def test_the_selected_knee_is_the_knee_of_most_draws():
    labels = np.zeros(400, dtype=np.int64)

    def network(trial, flops, right):
        predictions = (np.arange(400) >= right).astype("<u2").tobytes()
        return Point({"flops": flops, "accuracy": right / 400}, {}, predictions, trial, {})

    # The front bends at trial 1, on all images and in nearly every draw.
    cloud = [network(0, 10, 200), network(1, 20, 350), network(2, 100, 380), network(3, 200, 390)]
    assert select(Knee(), cloud, PLANE, Truth(labels, ("a", "b")), 0).trial == 1


@given(cloud=clouds, bound=st.integers(0, 6).map(lambda n: n / 6), objectives=objectives_in_any_order)
@settings(max_examples=100, deadline=None)
def test_min_accuracy_takes_the_fewest_flops_that_reach_it(cloud, bound, objectives):
    fitting = [point["flops"] for point in cloud if point.feasible and point["accuracy"] >= bound]
    if not fitting:
        with pytest.raises(StudyError):
            choose(f"min-accuracy:{bound}", cloud, objectives)
        return
    chosen = choose(f"min-accuracy:{bound}", cloud, objectives)
    assert chosen.feasible
    assert chosen["accuracy"] >= bound
    assert chosen["flops"] == min(fitting)


@given(cloud=clouds, bound=st.integers(1, 6), objectives=objectives_in_any_order)
@settings(max_examples=100, deadline=None)
def test_max_flops_takes_the_most_accurate_that_it_affords(cloud, bound, objectives):
    fitting = [point["accuracy"] for point in cloud if point.feasible and point["flops"] <= bound]
    if not fitting:
        with pytest.raises(StudyError):
            choose(f"max-flops:{bound}", cloud, objectives)
        return
    chosen = choose(f"max-flops:{bound}", cloud, objectives)
    assert chosen.feasible
    assert chosen["flops"] <= bound
    assert chosen["accuracy"] == max(fitting)


@given(cloud=clouds, bound=st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_in_the_plane_both_bounds_select_from_the_front(cloud, bound):
    if any(point.feasible for point in cloud):
        members = front(cloud, PLANE)
        for rule in (f"min-accuracy:{bound / 6}", f"max-flops:{bound + 1}"):
            try:
                assert choose(rule, cloud) in members
            except StudyError:
                continue


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("trial:9", "no finished trial 9: the front holds 0, 2, 3, 4"),
        ("min-accuracy:0.99", "the highest is 0.9500"),
        ("max-flops:50", "the fewest are 100"),
    ],
)
def test_a_rule_that_no_trial_fits_says_what_there_is(rule, message):
    with pytest.raises(StudyError, match=message):
        choose(rule, CLOUD)


@pytest.mark.parametrize("rule", ["knee", "trial:0", "min-accuracy:0.5", "max-flops:10"])
def test_without_trials_nothing_can_be_selected(rule):
    with pytest.raises(StudyError):
        choose(rule, [])


@pytest.mark.parametrize("rule", ["knee", "min-accuracy:0", "max-flops:1e12"])
def test_without_feasible_trials_the_one_that_comes_nearest_is_named(rule):
    violations = (0.4, 0.25, 3)
    cloud = [make_point(trial, 10, 0.5, violation=violation) for trial, violation in enumerate(violations)]
    with pytest.raises(StudyError, match=r"no trial is feasible: trial 1 comes nearest, it violates latency by 0\.25"):
        choose(rule, cloud)
    assert choose("trial:2", cloud).trial == 2
    with pytest.raises(StudyError, match="the front holds none"):
        choose("trial:9", cloud)
