"""Metrics of scores and of a study's own go the whole way: front, probabilities, table, page, rules and card agree."""

import csv
import dataclasses
import io
import json
import re
import sys

import numpy as np
import pytest
from conftest import SMALL
from sklearn.metrics import roc_auc_score

from hscc_search.config import StudyConfig
from hscc_search.errors import StudyError
from hscc_search.evaluation.own import measure_own, own_metrics
from hscc_search.evaluation.quality import measure_quality
from hscc_search.export.export import export
from hscc_search.pareto.confidence import Truth, confidence
from hscc_search.pareto.front import front
from hscc_search.pareto.selection import select
from hscc_search.report.explorer import study_data, trials_data
from hscc_search.report.figures import front_info
from hscc_search.report.formats import front_csv, front_json
from hscc_search.report.page import frozen_page
from hscc_search.report.table import columns, rows
from hscc_search.study.record import StudyRecord, TrialRecord, point_from_stored
from hscc_search.study.stored_study import read_study
from hscc_search.study.study import run_study

OWN = '''
import numpy as np

def among_two(scores, targets):
    """The share of images whose class is among the two most probable ones."""
    return (np.argsort(scores, axis=1)[:, -2:] == targets[:, None]).any(axis=1).mean()

def doubt(scores, targets):
    return -scores.max(axis=1).mean()

def broken(scores, targets):
    raise KeyError("no such thing")

def nothing(scores, targets):
    return float("nan")
'''
START = [{"regions": 1, "clusters": 1, "energy": energy} for energy in (0.7, 0.85, 0.95, 0.998)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the functions, which is where the tests of this module are."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "metrics_of_mine.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder


def configured(folder, **changes):
    asked = {
        "metrics": {
            "among_two": "metrics_of_mine:among_two",
            "doubt": {"function": "metrics_of_mine:doubt", "better": "lower", "worst": 3, "best": 0},
        },
        "objectives": ["flops", "auroc", "among_two"],
        "constraints": [{"metric": "log_loss", "at_most": 0.9}],
        "columns": ["sensitivity@0.9:3", "calibration_error"],
        "trials": 6,
        "start": START,
        **changes,
    }
    return StudyConfig.from_file("digits", storage=f"sqlite:///{folder}/studies.db", **{**SMALL, **asked})


@pytest.fixture(scope="module")
def study(folder):
    """A study that looks for AUROC and a metric of its own."""
    return run_study(configured(folder))


def test_values_are_those_of_the_stored_scores(study):
    asked = study.config.asked_metrics
    assert asked[1:] == ("auroc", "among_two", "log_loss", "sensitivity@0.9:3", "calibration_error", "doubt")
    for point in study.points:
        assert point.scores.dtype == np.float16
        predicted = np.frombuffer(point.predictions, "<u2")
        assert (point.scores.argmax(axis=1) == predicted).all()
        ranks = point.scores.astype(np.float64)
        one_hot = np.eye(10)[study.record.labels]
        assert point["auroc"] == pytest.approx(roc_auc_score(one_hot, ranks, average="macro"), abs=1e-12)
        again = measure_quality(
            predicted,
            study.record.labels,
            study.record.classes,
            study.config.seed,
            scores=point.scores,
            asked=asked,
            own=measure_own(own_metrics(study.config), point.scores, study.record.labels, study.config.seed),
        )
        for name in asked[1:]:
            assert (again.metrics[name], again.errors[name]) == (point[name], point.errors[name])
            assert 0 < point.errors[name] < 0.2


def test_a_front_needs_no_function_of_a_metric_of_ones_own(study, folder, monkeypatch):
    """Its values on draws are stored with the trials: those of the function on the stored scores."""
    monkeypatch.delitem(sys.modules, "metrics_of_mine")
    (folder / "metrics_of_mine.py").rename(folder / "elsewhere.py")
    try:
        again = read_study(study.config.storage, study.config.name)
        assert again.confidence == study.confidence
    finally:
        (folder / "elsewhere.py").rename(folder / "metrics_of_mine.py")
    for point in study.points:
        own = measure_own(own_metrics(study.config), point.scores, study.record.labels, study.config.seed)
        assert point.draws.keys() == own.keys() == {"among_two", "doubt"}
        for name, measured in own.items():
            assert np.array_equal(point.draws[name], measured.draws)


def test_front_and_probabilities_look_at_the_same_metrics(study):
    members = {point.trial for point in study.front}
    feasible = [point for point in study.points if point["log_loss"] <= 0.9]
    assert 0 < len(feasible) < len(study.points)
    assert {point.trial for point in study.points if point.feasible} == {point.trial for point in feasible}
    for point in feasible:
        beaten = any(
            other["flops"] <= point["flops"]
            and other["auroc"] >= point["auroc"]
            and other["among_two"] >= point["among_two"]
            and other is not point
            for other in feasible
        )
        assert (point.trial in members) != beaten
    cheapest = min(feasible, key=lambda point: point["flops"])
    assert study.confidence.probability[cheapest.trial] == 1
    assert all(study.confidence.probability[point.trial] == 0 for point in study.points if not point.feasible)
    assert members <= study.confidence.close | members
    assert study.reference == ((study.dense["flops"], 0.5, 0.0), (0.0, 1.0, 1.0))
    assert 0 < study.hypervolume < 1


def test_table_page_and_files_show_them(study, tmp_path):
    heads = columns(study)
    for head in ("AUROC", "among_two", "log loss", "sensitivity to 3 at specificity 0.9", "calibration error", "doubt"):
        assert head in heads
    point = study.front[-1]
    shown = next(row for row in rows(study) if row.cells[0] == str(point.trial)).cells
    value = f"{point['auroc']:.4f} ± {point.errors['auroc']:.4f}"
    assert shown[heads.index("AUROC")] == value
    page = frozen_page(study, "sqlite:///studies.db")
    assert "maximise AUROC" in page
    names = {metric["name"]: metric["title"] for metric in study_data(study, "sqlite:///x.db")["metrics"]}
    assert names["auroc"] == "AUROC"
    assert names["among_two"] == "among_two"
    assert trials_data(study)["new"]["metrics"]["auroc"][point.trial] == pytest.approx(point["auroc"], rel=1e-5)
    tree = json.loads(front_json(study))
    assert tree["objectives"] == {"flops": "minimise", "auroc": "maximise", "among_two": "maximise"}
    assert tree["front"][-1]["metrics"]["auroc"] == point["auroc"]
    table = list(csv.DictReader(io.StringIO(front_csv(study))))
    assert float(table[-1]["auroc"]) == point["auroc"]
    assert float(table[-1]["doubt_se"]) == point.errors["doubt"]
    assert front_info(study).y == "auroc"


def test_rules_of_selection_name_them(study):
    feasible = sorted((point for point in study.points if point.feasible), key=lambda point: point["flops"])
    given = (study.points, study.objectives, study.truth, 0)
    best = max(feasible, key=lambda point: point["auroc"])
    assert select(f"min-auroc:{best['auroc']}", *given) == best
    assert select(f"max-flops:{feasible[1]['flops']}", *given)["auroc"] == max(p["auroc"] for p in feasible[:2])
    assert select("min-among_two:0", *given) == feasible[0]
    least = min(feasible, key=lambda point: point["log_loss"])
    assert select(f"max-log_loss:{least['log_loss']}", *given) == least
    with pytest.raises(StudyError, match=r"no feasible trial keeps auroc>=1: trial \d misses auroc>=1 by 0\.0"):
        select("min-auroc:1", *given)
    with pytest.raises(StudyError, match=r"of among_two more is better: use min-among_two:0\.5"):
        select("max-among_two:0.5", *given)
    with pytest.raises(StudyError, match="has no balanced_accuracy: measured are"):
        select("min-balanced_accuracy:0.5", *given)
    bounds = "among_two>=0.6 and sensitivity@0.9:3>=0.1 and flops<=1G"
    fitting = [point for point in feasible if point["among_two"] >= 0.6 and point["sensitivity@0.9:3"] >= 0.1]
    assert select(bounds, *given) == fitting[0]
    with pytest.raises(StudyError, match="has no amongtwo: did you mean among_two"):
        select("amongtwo>=0.6", *given)


def test_the_card_shows_what_the_study_measured(study, tmp_path):
    point = study.front[-1]
    metrics = export(study, point, study.config, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert metrics.compressed.validation.metrics["auroc"] == pytest.approx(point["auroc"], abs=1e-4)
    assert metrics.dense.validation.metrics["doubt"] == study.dense["doubt"]
    for head, name in (("AUROC", "auroc"), ("among_two", "among_two"), ("log loss", "log_loss")):
        row = re.search(rf"^\| {re.escape(head)}, validation part \| (.*) \| (.*) \|$", card, re.MULTILINE)
        assert row[1] == f"{study.dense[name]:.4f} ± {study.dense.errors[name]:.4f}"
    assert f"| AUROC, test part | {metrics.dense.test.metrics['auroc']:.4f} ± " in card


def test_the_same_search_without_them_tries_the_same_and_stores_scores_too(folder, study):
    """What a study measures beside its objectives changes no trial."""
    asked = {"objectives": ["flops", "accuracy"], "constraints": [], "trials": 5}
    plain = run_study(configured(folder, name="plain", metrics={}, columns=[], **asked))
    beside = run_study(configured(folder, name="beside", **asked))
    assert [point.sample for point in plain.points] == [point.sample for point in beside.points]
    for first, second in zip(plain.points, beside.points, strict=True):
        assert first.predictions == second.predictions
        assert first.errors.items() <= second.errors.items()
        assert first.scores is None  # not read, since no objective needs them
    accuracy = plain.confidence.probability
    assert accuracy == beside.confidence.probability


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("broken", "metric mine fails on 272 images: KeyError: 'no such thing'"),
        ("nothing", "metric mine must return a finite number, not nan"),
    ],
)
def test_a_function_that_fails_is_told_before_the_search(folder, function, said):
    config = configured(
        folder, name="own", metrics={"mine": f"metrics_of_mine:{function}"}, objectives=["flops", "mine"]
    )
    steps = []
    with pytest.raises(StudyError) as refused:
        run_study(config, report=lambda progress: steps.append(progress.task))
    assert re.sub("on [0-9]+ images", "on 272 images", str(refused.value)) == said
    assert not any(step.startswith(("calibrating", "searching")) for step in steps)


def test_trials_without_scores_are_named_where_scores_are_needed(study):
    """As version 0.1.0 stored them."""
    old = [dataclasses.replace(point, scores=None) for point in study.points]
    truth = Truth(study.record.labels, study.record.classes)
    accuracy = dataclasses.replace(study.objectives[1], metric="accuracy")
    assert confidence(old, (study.objectives[0], accuracy), truth).knee is not None
    with pytest.raises(StudyError, match="trial 0 was stored without the scores of its classes"):
        confidence([dataclasses.replace(point, violations={}) for point in old], study.objectives, study.truth)
    assert len(front(old, study.objectives)) == len(study.front)


def test_scores_and_groups_come_back_from_the_store(study):
    chance = np.random.default_rng(0)
    scores = chance.normal(size=(300, 100)).astype(np.float16)
    measured = dataclasses.replace(study.points[0], scores=scores)
    stored = json.loads(json.dumps(TrialRecord(measured, {"energy": 0.9}, {}, ()).stored()))
    pieces = {key: value for key, value in stored.items() if key.startswith("scores:")}
    assert len(pieces) > 1
    assert all(len(json.dumps(piece)) < 65_535 for piece in pieces.values())
    np.testing.assert_array_equal(point_from_stored(0, stored["measured"], pieces).scores, scores)
    groups = chance.integers(0, 50, len(study.record.labels)) * 1000
    record = StudyRecord.from_stored(json.loads(json.dumps(dataclasses.replace(study.record, groups=groups).stored())))
    assert (np.equal.outer(record.groups, record.groups) == np.equal.outer(groups, groups)).all()
    assert StudyRecord.from_stored(json.loads(json.dumps(study.record.stored()))).groups is None


def test_groups_are_drawn_for_the_probabilities(study):
    """Two networks that differ on one patient of many images change places far more often."""
    labels, trials = np.zeros(100, np.int64), []
    for trial, right in enumerate((np.arange(100) >= 20, np.arange(100) >= 0)):
        metrics = {"flops": 1.0 + trial, "accuracy": float(right.mean()), "parameters": 1}
        base = study.points[0]
        predictions = (~right).astype("<u2").tobytes()
        trials.append(dataclasses.replace(base, metrics=metrics, predictions=predictions, trial=trial, violations={}))
    objectives = (study.objectives[0], dataclasses.replace(study.objectives[1], metric="accuracy"))
    patients = np.repeat(np.arange(5), 20)
    alone, together = (
        confidence(trials, objectives, Truth(labels, ("a", "b"), groups)).probability[1] for groups in (None, patients)
    )
    assert alone == 1
    assert together == pytest.approx(1 - (4 / 5) ** 5, abs=0.05)


def test_a_study_is_read_again_as_it_was_run(study):
    again = read_study(study.config.storage, study.config.name)
    assert again.confidence == study.confidence
    assert [point.metrics for point in again.points] == [point.metrics for point in study.points]
