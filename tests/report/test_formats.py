import csv
import json
from dataclasses import replace

from hscc_search.report.formats import front_csv, front_json


def test_the_json_of_a_front_holds_what_was_measured_and_drawn(constrained):
    tree = json.loads(front_json(constrained))
    assert list(tree) == [
        *(
            "study",
            "trials",
            "refined trials",
            "objectives",
            "hypervolume",
            "reference",
            "ideal",
            "knee",
            "dense",
            "notices",
            "front",
        ),
        "close",
    ]
    assert tree["objectives"] == {"flops": "minimise", "accuracy": "maximise"}
    assert tree["dense"] == {
        "metrics": constrained.dense.metrics,
        "errors": constrained.dense.errors,
        "violations": {},
    }
    assert tree["front"] == [
        {
            "trial": point.trial,
            "sample": point.sample,
            "metrics": point.metrics,
            "errors": point.errors,
            "violations": point.violations,
            "probability": constrained.confidence.probability[point.trial],
            "refined": {},
            "refines": None,
        }
        for point in constrained.front
    ]
    assert [point["trial"] for point in tree["close"]] == [point.trial for point in constrained.close]
    assert tree["knee"] == constrained.confidence.knee


def test_the_csv_of_a_front_has_a_row_for_each_network(constrained):
    dense, *members = csv.DictReader(front_csv(constrained).splitlines())
    assert (dense["trial"], dense["energy"], dense["probability"]) == ("dense", "", "")
    assert float(dense["flops"]) == constrained.dense["flops"]
    for written, point in zip(members, constrained.front, strict=True):
        assert int(written["trial"]) == point.trial
        assert float(written["energy"]) == point.sample["energy"]
        assert float(written["accuracy"]) == point["accuracy"]
        assert float(written["accuracy_se"]) == point.errors["accuracy"]
        assert float(written["probability"]) == constrained.confidence.probability[point.trial]


def test_without_a_front_only_the_dense_network_is_written(constrained):
    empty = replace(constrained, points=())
    assert json.loads(front_json(empty))["front"] == []
    assert len(front_csv(empty).splitlines()) == 2
