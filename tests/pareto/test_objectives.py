import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hscc_search.config import StudyConfig
from hscc_search.config.metrics import COSTS
from hscc_search.pareto.objectives import UNITS, excesses, objectives_of, title, violations, written

GAINS = ("accuracy", "macro_f1", "recall:3")


def config(**changes):
    return StudyConfig.from_file("digits", **changes)


@given(st.lists(st.sampled_from([*COSTS, *GAINS]), min_size=2, max_size=4, unique=True))
def test_costs_are_minimised_and_gains_maximised_in_the_order_of_the_file(names):
    objectives = objectives_of(config(objectives=names))
    gains = [name in GAINS for name in names]
    assert [objective.metric for objective in objectives] == names
    assert [objective.maximise for objective in objectives] == gains
    assert [objective.on_images for objective in objectives] == gains
    assert [objective.sign for objective in objectives] == [-1 if gain else 1 for gain in gains]
    assert [objective.direction for objective in objectives] == ["maximise" if gain else "minimise" for gain in gains]


def test_each_cost_has_a_unit():
    assert UNITS.keys() == set(COSTS)


def test_losses_and_own_metrics_have_the_direction_that_is_said_once():
    own = {"gain": "mine:gain", "loss": {"function": "mine:loss", "better": "lower", "worst": 5}}
    objectives = objectives_of(config(metrics=own, objectives=["log_loss", "auroc", "gain", "loss"]))
    assert [objective.maximise for objective in objectives] == [False, True, True, False]
    assert [objective.bounds for objective in objectives] == [None, None, (0, 1), (5, 0)]
    assert all(objective.on_images and objective.on_scores for objective in objectives)


bounds = st.sampled_from(["at_least", "at_most"])


@given(bounds, st.floats(0.01, 0.99), st.floats(-10, 10))
def test_an_excess_is_what_is_missing_or_minus_the_room_left(kind, bound, value):
    constrained = config(constraints=[{"metric": "accuracy", kind: bound}])
    (excess,) = excesses(constrained, {"accuracy": value, "flops": 1.0}).values()
    allowed = value >= bound if kind == "at_least" else value <= bound
    assert (excess <= 0) == allowed
    assert abs(excess) == pytest.approx(abs(value - bound))


@given(bounds, st.floats(0.01, 0.99), st.floats(-10, 10))
def test_a_violation_is_the_excess_of_a_network_beyond_its_bound_and_0_of_others(kind, bound, value):
    constrained = config(constraints=[{"metric": "accuracy", kind: bound}])
    metrics = {"accuracy": value, "flops": 1.0}
    (excess,), (violation,) = (measure(constrained, metrics).values() for measure in (excesses, violations))
    assert violation == (excess if excess > 0 else 0)


def test_what_is_no_number_violates_its_constraint():
    constrained = config(constraints=[{"metric": "latency", "at_most": 1}])
    assert math.isnan(violations(constrained, {"latency": math.nan})["latency <= 1"])


def test_violations_are_named_by_their_constraint_in_the_order_of_the_file():
    constraints = [
        {"metric": "latency", "at_most": 2.5},
        {"metric": "recall:3", "at_least": 0.9},
        {"metric": "megabytes", "at_most": 1},
    ]
    metrics = {"latency": 2.0, "recall:3": 0.8, "megabytes": 1.0, "flops": 9.0}
    for measure, expected in ((excesses, [-0.5, 0.1, 0]), (violations, [0, 0.1, 0])):
        measured = measure(config(constraints=constraints), metrics)
        assert list(measured) == ["latency <= 2.5", "recall:3 >= 0.9", "megabytes <= 1"]
        assert list(measured.values()) == pytest.approx(expected)
        assert measure(config(), {"latency": 2.0}) == {}


def test_a_metric_may_have_a_lower_and_an_upper_bound():
    both = config(constraints=[{"metric": "accuracy", "at_least": 0.5}, {"metric": "accuracy", "at_most": 0.9}])
    measured = excesses(both, {"accuracy": 0.95})
    assert measured == pytest.approx({"accuracy >= 0.5": -0.45, "accuracy <= 0.9": 0.05})


def test_a_class_may_have_a_colon_in_its_name():
    graded = config(objectives=["flops", "recall:grade:2"])
    assert objectives_of(graded)[1].maximise
    assert title("recall:grade:2") == "recall of grade:2"


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, False),
        ({"objectives": ["flops", "macro_f1"]}, False),
        ({"objectives": ["latency", "accuracy"]}, True),
        ({"constraints": [{"metric": "latency", "at_most": 1}]}, True),
        ({"constraints": [{"metric": "megabytes", "at_most": 1}]}, False),
    ],
)
def test_latency_is_measured_where_it_is_asked_for(changes, needed):
    assert config(**changes).needs_latency == needed


@pytest.mark.parametrize("metric", [*COSTS, *GAINS])
def test_every_metric_has_a_title_and_is_written_with_its_digits(metric):
    assert title(metric)
    assert "_" not in title(metric)
    value = 12_345_678.0 if metric in ("flops", "macs", "parameters") else 0.123456
    assert any(digits in written(metric, value) for digits in ("0.0123", "12,345,678", "0.123"))
