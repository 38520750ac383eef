import json
import re
import subprocess
import sys
import urllib.error
import urllib.request

import browser
import pytest
from playwright.sync_api import sync_playwright

from dashboards.figures import draw_front, front_info, layers_info
from dashboards.page import write_page
from hscc_search.config import StudyConfig
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
    from dataclasses import replace

    write_page(replace(study, classes=("<script>alert(1)</script>", "b")), tmp_path / "page.html")
    assert "<script>alert(1)</script>" not in (tmp_path / "page.html").read_text()
