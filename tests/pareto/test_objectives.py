import pytest
from hypothesis import given
from hypothesis import strategies as st

from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError
from hscc_search.pareto.objectives import check_classes, needs_latency, objectives_of, title, violations, written

COSTS = ("flops", "macs", "parameters", "megabytes", "latency")
GAINS = ("accuracy", "macro_f1", "recall:3")


def config(**changes):
    return StudyConfig.from_file("digits", **changes)


@given(st.lists(st.sampled_from([*COSTS, *GAINS]), min_size=2, max_size=4, unique=True))
def test_costs_are_minimised_and_gains_maximised_in_the_order_of_the_file(names):
    found = objectives_of(config(objectives=names))
    assert [one.metric for one in found] == names
    assert [one.maximise for one in found] == [name in GAINS for name in names]
    assert [one.on_images for one in found] == [name in GAINS for name in names]


@given(st.sampled_from(["at_least", "at_most"]), st.floats(-10, 10), st.floats(-10, 10))
def test_a_bound_is_violated_by_what_is_missing(kind, bound, value):
    one = config(constraints=[{"metric": "accuracy", kind: bound}])
    (size,) = violations(one, {"accuracy": value, "flops": 1.0}).values()
    kept = value >= bound if kind == "at_least" else value <= bound
    assert (size <= 0) == kept
    assert abs(size) == pytest.approx(abs(value - bound))


def test_violations_are_named_by_their_constraint_in_the_order_of_the_file():
    bounds = [
        {"metric": "latency", "at_most": 2.5},
        {"metric": "recall:3", "at_least": 0.9},
        {"metric": "megabytes", "at_most": 1},
    ]
    found = violations(config(constraints=bounds), {"latency": 2.0, "recall:3": 0.8, "megabytes": 1.0, "flops": 9.0})
    assert list(found) == ["latency <= 2.5", "recall:3 >= 0.9", "megabytes <= 1"]
    assert list(found.values()) == pytest.approx([-0.5, 0.1, 0])
    assert violations(config(), {"latency": 2.0}) == {}


def test_a_metric_may_have_a_floor_and_a_ceiling():
    bounds = [{"metric": "accuracy", "at_least": 0.5}, {"metric": "accuracy", "at_most": 0.9}]
    assert violations(config(constraints=bounds), {"accuracy": 0.95}) == pytest.approx(
        {"accuracy >= 0.5": -0.45, "accuracy <= 0.9": 0.05}
    )


@pytest.mark.parametrize(
    "changes",
    [{"objectives": ["recall:seven", "flops"]}, {"constraints": [{"metric": "recall:seven", "at_least": 0.5}]}],
)
def test_a_recall_of_no_class_is_refused_with_the_classes(changes):
    with pytest.raises(ConfigError) as refused:
        check_classes(config(**changes), ("cat", "dog"))
    assert str(refused.value) == "study digits: recall:seven: there is no class 'seven': use cat, dog"
    check_classes(config(**changes), ("seven", "eight"))


def test_a_class_may_have_a_colon_in_its_name():
    one = config(objectives=["flops", "recall:grade:2"])
    check_classes(one, ("grade:1", "grade:2"))
    assert objectives_of(one)[1].maximise
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
    assert needs_latency(config(**changes)) == needed


@pytest.mark.parametrize("metric", [*COSTS, *GAINS])
def test_every_metric_has_a_title_and_is_written_with_its_digits(metric):
    assert title(metric)
    assert "_" not in title(metric)
    value = 12_345_678.0 if metric in ("flops", "macs", "parameters") else 0.123456
    assert any(digits in written(metric, value) for digits in ("0.0123", "12,345,678", "0.123"))
