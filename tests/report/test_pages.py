import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from wsgiref.util import setup_testing_defaults

import browser
import pytest
from playwright.sync_api import sync_playwright
from rich.console import Console

from hscc_search.config import StudyConfig
from hscc_search.report.figures import draw_front, front_info, layers_info
from hscc_search.report.live import application
from hscc_search.report.page import write_page
from hscc_search.report.terminal import front_table
from hscc_search.search.study import run_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return run_study(StudyConfig.from_file("digits", trials=8, storage=f"sqlite:///{folder}/studies.db"))


@pytest.fixture(scope="module")
def page():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser.find(), args=["--no-sandbox", "--disable-gpu"])
        yield chromium.new_page()
        chromium.close()


@pytest.fixture(scope="module")
def address(study):
    command = [sys.executable, "-m", "hscc_search.cli", "dashboard", "--storage", study.config.storage, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield re.search(r"http://\S+", process.stdout.readline())[0]
    process.terminate()
    process.wait()


def test_the_figure_shows_every_trial_once(study):
    info = front_info(study)
    shown = (*info.members, *info.close, *info.others, *info.infeasible)
    assert sorted(point.trial for point in shown) == list(range(8))
    assert list(info.members) == study.front
    figure = draw_front(info)
    drawn = {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in figure.data}
    assert drawn["front (± 1 standard error)"] == [(point["flops"] / 1e9, point["accuracy"]) for point in study.front]
    assert drawn["dense network"] == [(study.dense["flops"] / 1e9, study.dense["accuracy"])]


def test_the_layers_add_up_to_the_trial(study):
    point = study.front[0]
    info = layers_info(study, point.trial)
    assert sum(info.compressed) == point["macs"]
    assert sum(info.dense) == study.dense["macs"]


def test_the_page_renders_with_the_network_off(study, page, tmp_path):
    path = tmp_path / "front.html"
    write_page(study, path)
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.context.set_offline(True)
    page.goto(path.as_uri())
    page.wait_for_selector(".scatterlayer .trace")
    page.context.set_offline(False)
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert "FLOPs against accuracy" in page.inner_text("body")
    # a marker for each front member
    assert page.locator(".scatterlayer .trace").count() >= 3
    rows = page.locator("table tr").count()
    assert rows == 1 + 1 + len({*study.confidence.close, *(point.trial for point in study.front)})


def test_optuna_dashboard_shows_both_objectives_by_name(study, page, address):
    page.goto(address)
    assert page.locator("table >> text=digits").count() == 1
    page.goto(f"{address}/dashboard")
    page.get_by_text("digits").first.click()
    page.wait_for_selector("text=Pareto Front", timeout=60_000)
    page.wait_for_function("document.body.innerText.includes('FLOPs') && document.body.innerText.includes('accuracy')")


def test_the_live_front_is_drawn(study, page, address):
    page.goto(f"{address}/front/digits")
    page.wait_for_selector(".scatterlayer .trace")
    assert "8 of 8 trials finished" in page.inner_text("body")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_dashboard_changes_nothing(study, address, method):
    request = urllib.request.Request(f"{address}/api/studies/1", method=method, data=b"{}")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 405
    with urllib.request.urlopen(f"{address}/api/studies") as answer:
        assert len(json.load(answer)["study_summaries"]) == 1


def test_an_unknown_study_is_not_found(address):
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(f"{address}/front/nothing")
    assert missing.value.code == 404


def test_names_are_escaped(study, tmp_path):
    write_page(replace(study, classes=("<script>alert(1)</script>", "b")), tmp_path / "page.html")
    assert "<script>alert(1)</script>" not in (tmp_path / "page.html").read_text()


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    """A study with constraints that some trials keep and others do not."""
    folder = tmp_path_factory.mktemp("bounded")
    config = StudyConfig.from_file(
        "digits",
        trials=6,
        storage=f"sqlite:///{folder}/studies.db",
        training__epochs=2,
        compression__calibration_images=64,
        constraints=[{"metric": "accuracy", "at_least": 0.75}],
        start=[{"regions": 1, "clusters": 1, "energy": energy} for energy in (0.7, 0.95, 0.998)],
    )
    return run_study(config)


def test_trials_that_keep_no_constraint_are_crosses_apart_from_the_front(bounded):
    poor = [point for point in bounded.points if point["accuracy"] < 0.75]
    assert poor
    info = front_info(bounded)
    assert list(info.infeasible) == poor
    drawn = {trace.name: trace for trace in draw_front(info).data}
    crosses = drawn["does not keep the constraints"]
    assert list(zip(crosses.x, crosses.y, strict=True)) == [(point["flops"] / 1e9, point["accuracy"]) for point in poor]
    assert all("violates accuracy >= 0.75 by" in text for text in crosses.text)
    assert "violates" not in "".join(drawn["front (± 1 standard error)"].text)


@pytest.mark.parametrize("objectives", [("flops", "accuracy"), ("macro_f1", "recall:3"), ("parameters", "latency")])
def test_the_line_of_a_front_promises_no_more_than_its_trials_reach(bounded, objectives):
    """Between two members it lies on the worse value of both objectives."""
    points = tuple(replace(one, metrics={**one.metrics, "latency": 1 / one["flops"]}) for one in bounded.points)
    dense = replace(bounded.dense, metrics={**bounded.dense.metrics, "latency": 1e-3})
    config = bounded.config.model_copy(update={"objectives": objectives})
    info = front_info(replace(bounded, config=config, points=points, dense=dense))
    assert {info.x, info.y} == set(objectives)
    (line,) = [trace for trace in draw_front(info).data if trace.mode == "lines+markers"]
    assert line.line.shape == {"macro_f1": "vh"}.get(info.x, "hv")


@pytest.mark.parametrize("kept", ["some feasible", "none feasible", "none finished"])
def test_a_page_says_what_was_looked_for_and_what_is_so(bounded, page, tmp_path, kept):
    points = tuple(replace(one, constraints={"accuracy >= 0.75": 0.5}) for one in bounded.points)
    changed = {"some feasible": bounded.points, "none feasible": points, "none finished": ()}[kept]
    write_page(replace(bounded, points=changed), tmp_path / "front.html")
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "front.html").as_uri())
    page.wait_for_selector(".scatterlayer .trace")
    assert errors == []
    told = page.inner_text("body")
    assert "Looked for: low FLOPs, high accuracy. To be kept: accuracy >= 0.75." in told
    assert ("no trial keeps the constraints: trial" in told) == (kept == "none feasible")
    assert ("no trial is finished yet" in told) == (kept == "none finished")
    assert ("(knee)" in told) == (kept == "some feasible")
    if kept == "none feasible":
        assert page.locator("table tr").count() == 2


def test_a_table_of_many_columns_fits_and_breaks_no_number(bounded):
    settings = {"region_strategy": "coactivation", "budget": 3.25}
    points = tuple(replace(one, settings={**one.settings, **settings}) for one in bounded.points)
    console = Console(width=140, file=io.StringIO(), emoji=False)
    console.print(front_table(replace(bounded, points=points)))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 140
    for point in (bounded.dense, *bounded.front):
        assert any(f"{point['accuracy']:.4f} ± {point.errors['accuracy']:.4f}" in line for line in lines)


def test_optuna_dashboard_agrees_on_what_is_feasible(bounded):
    environment = {"PATH_INFO": "/api/studies/1", "QUERY_STRING": "after=0"}
    setup_testing_defaults(environment)
    answer = b"".join(application(bounded.config.storage)(environment, lambda *answered: None))
    trials = json.loads(answer)["trials"]
    assert len(trials) == len(bounded.points)
    feasible = {trial["number"] for trial in trials if all(size <= 0 for size in trial["constraints"])}
    assert all(trial["constraints"] for trial in trials)
    assert feasible == {point.trial for point in bounded.points if point.feasible}
