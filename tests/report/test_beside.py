import json
import re
from dataclasses import replace

import optuna
import optuna_dashboard
import pytest
from asking import ask, ask_json
from hypothesis import given
from hypothesis import strategies as st

from hscc_search.report.beside import _literal
from hscc_search.report.guard import Guard
from hscc_search.report.live import application
from hscc_search.storage import open_storage
from hscc_search.study.stored_study import read_study

EDIT = Guard(edit=True)
AS_JSON = {"CONTENT_TYPE": "application/json"}


def test_each_trial_has_a_note_that_leads_to_its_page_and_back(constrained):
    served = application(constrained.config.storage)
    shown = ask_json(served, "/api/studies/1", "after=0")
    points = {point.trial: point for point in constrained.points}
    assert [trial["number"] for trial in shown["trials"]] == sorted(points)
    for trial in shown["trials"]:
        point, note = points[trial["number"]], trial["note"]
        assert note["version"] == 0
        assert f"(/front/digits#trial={point.trial})" in note["body"]
        assert f"{constrained.dense['flops'] / point['flops']:.2f}x fewer FLOPs" in note["body"]
        assert ("violates" in note["body"]) == (not point.feasible)
        back = ask_json(served, f"/data/digits/trial/{point.trial}")["dashboard"]
        assert back == f"/dashboard/studies/1/trials?numbers={point.trial}"
        metrics = {each["key"]: each["value"] for each in trial["user_attrs"]}
        assert len(metrics) == len(trial["user_attrs"])
        assert float(metrics["parameters"]) == point["parameters"]
        assert "measured" not in metrics
    assert "(/front/digits)" in shown["note"]["body"]
    assert {each["key"] for each in shown["union_user_attrs"]} >= {"flops", "accuracy", "parameters"}


@pytest.mark.parametrize("after", [0, 5, 99])
def test_the_best_trials_are_the_front_whatever_was_asked_for(constrained, after):
    shown = ask_json(application(constrained.config.storage), "/api/studies/1", f"after={after}")
    assert [trial["number"] for trial in shown["best_trials"]] == sorted(point.trial for point in constrained.front)
    assert [trial["number"] for trial in shown["trials"]] == list(range(after, len(constrained.points)))


def test_the_front_is_a_figure(study):
    shown = ask_json(application(study.config.storage), "/api/studies/1")
    figures = {each["id"]: json.loads(each["graph_object"]) for each in shown["plotly_graph_objects"]}
    drawn = next(trace for trace in figures["front"]["data"] if trace["name"].startswith("front"))
    assert drawn["y"] == [point["accuracy"] for point in study.front]


def test_failed_trials_say_why_and_running_ones_say_nothing(study, stored):
    url = stored(
        replace(study, points=(), failures={0: "RuntimeError: no *memory*"}),
        open_trials=[optuna.trial.TrialState.RUNNING],
    )
    failed, running = ask_json(application(url), "/api/studies/1")["trials"]
    assert failed["note"]["body"] == r"It failed: RuntimeError\: no \*memory\*"
    assert running["note"]["body"] == ""


def test_a_note_that_a_user_wrote_stays(study, stored):
    url = stored(study)
    served = application(url, EDIT)
    before = ask_json(served, "/api/studies/1")["trials"][3]["note"]
    mine = json.dumps({"version": before["version"] + 1, "body": "mine"}).encode()
    assert ask(served, "/api/studies/1/4/note", method="PUT", body=mine, **AS_JSON)[0] == 204
    assert ask_json(served, "/api/studies/1")["trials"][3]["note"] == {"version": 1, "body": "mine"}
    again = ask_json(application(url), "/api/studies/1")["trials"]
    assert (again[3]["note"]["body"], again[2]["note"]["version"]) == ("mine", 0)


def test_studies_that_hscc_search_did_not_make_are_shown_as_they_are(study, stored):
    url = stored(study)
    storage = open_storage(url)
    optuna.create_study(study_name="other", storage=storage).optimize(lambda trial: trial.suggest_float("x", 0, 1), 2)
    plain = ask(optuna_dashboard.wsgi(storage), "/api/studies/2", "after=0")[2]
    assert ask(application(url), "/api/studies/2", "after=0")[2] == plain
    assert ask(application(url), "/api/studies/3")[0] == 404


def test_what_optuna_dashboard_cannot_read_is_the_askers_fault(study, stored):
    url = stored(study)
    reading, editing = application(url), application(url, EDIT)
    for path, body, kind in (
        ("/api/studies", b"", ""),
        ("/api/studies", b"[]", "application/json"),
        ("/api/studies", b"null", "application/json"),
        ("/api/studies", b'{"study_name": "x"}', "text/plain"),
        ("/api/studies", b"{", "application/json"),
        ("/api/studies", b"[" * 100_000, "application/json"),
        ("/api/studies/1/rename", b"5", "application/json"),
        ("/api/trials/1/tell", b"\xff", "application/json"),
    ):
        assert ask(editing, path, method="POST", body=body, CONTENT_TYPE=kind)[0] == 400, body
        assert ask(reading, path, method="POST", body=body, CONTENT_TYPE=kind)[0] == 405, body
    assert read_study(url, "made").points == study.points


def test_three_objectives_break_nothing(study, stored):
    config = study.config.model_copy(update={"objectives": ("flops", "accuracy", "parameters")})
    url = stored(replace(study, record=replace(study.record, config=config)))
    served = application(url)
    for plot in ("contour", "slice", "parallel_coordinate", "rank", "edf", "timeline", "pareto_front"):
        # optuna-dashboard's Plotly backend raises for some where there are several objectives (optuna-dashboard#1327).
        status, _, content = ask(served, f"/api/studies/1/plot/{plot}")
        assert status == 200 or (status, json.loads(content)) == (500, {"reason": "internal server error"})
    shown = ask_json(served, "/api/studies/1")
    front = read_study(url, "made").front
    assert [trial["number"] for trial in shown["best_trials"]] == sorted(point.trial for point in front)
    assert shown["objective_names"] == ["FLOPs", "accuracy", "parameters"]


@given(st.text())
def test_a_text_is_shown_as_it_is(text):
    literal = _literal(text)
    assert "\n" not in literal
    assert re.sub(r"\\(.)", r"\1", literal) == " ".join(text.split())
    assert not re.search(r"(?<!\\)(\\\\)*[<>\[\]()*_`|#:.&]", re.sub(r"\\.", "", literal))
