import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import command_line
import pytest
from axe_playwright_python.sync_playwright import Axe

from hscc_search.report.live import application
from hscc_search.study.study import run_study

# Addresses of the server itself, and of what a page makes.
OWN = ("http://127.0.0.1", "data:", "blob:")


@pytest.fixture(scope="module")
def address(study, tmp_path_factory):
    command = command_line.start(
        "dashboard", "--storage", study.config.storage, "--port", "0", cwd=tmp_path_factory.getbasetemp()
    )
    while (shown := re.search(r"http://\S+", command.printed()[0])) is None:
        assert command.returncode is None
        time.sleep(0.1)
    yield shown[0]
    command.send_signal(signal.SIGTERM)
    command.communicate()


def test_optuna_dashboard_shows_both_objectives_by_name(study, chromium, address):
    chromium.goto(address)
    assert chromium.locator("table >> text=digits").count() == 1
    chromium.goto(f"{address}/dashboard")
    chromium.get_by_text("digits").first.click()
    chromium.wait_for_selector("text=Pareto Front", timeout=60_000)
    chromium.wait_for_function(
        "document.body.innerText.includes('FLOPs') && document.body.innerText.includes('accuracy')"
    )


def test_the_live_front_is_drawn(study, chromium, address):
    chromium.goto(f"{address}/front/digits")
    chromium.wait_for_selector(".scatterlayer .trace")
    assert "8 of 8 trials finished" in chromium.inner_text("body")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_dashboard_changes_nothing(study, address, method):
    request = urllib.request.Request(f"{address}/api/studies/1", method=method, data=b"{}")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    assert refused.value.code == 405
    with urllib.request.urlopen(f"{address}/api/studies") as answer:
        assert len(json.load(answer)["study_summaries"]) == 1


def test_an_unknown_study_is_not_found(address):
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(f"{address}/front/nothing")
    missing.value.close()
    assert missing.value.code == 404


def test_optuna_dashboard_agrees_on_what_is_feasible(constrained):
    environment = {"PATH_INFO": "/api/studies/1", "QUERY_STRING": "after=0"}
    setup_testing_defaults(environment)
    answer = b"".join(application(constrained.config.storage)(environment, lambda *answered: None))
    trials = json.loads(answer)["trials"]
    assert len(trials) == len(constrained.points)
    feasible = {trial["number"] for trial in trials if all(size <= 0 for size in trial["constraints"])}
    assert all(trial["constraints"] for trial in trials)
    assert feasible == {point.trial for point in constrained.points if point.feasible}


def errors_of(page):
    """What goes wrong in a page, and the addresses that it asks elsewhere, from now on."""
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: None if request.url.startswith(OWN) else wrong.append(request.url))
    return wrong


@pytest.fixture
def explored(chromium, address):
    """A tab of its own with the live page of the study, and what went wrong in it."""
    tab = chromium.context.browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    wrong = errors_of(tab)
    tab.goto(f"{address}/front/digits")
    tab.wait_for_selector("#front .scatterlayer .trace")
    yield tab
    assert wrong == []
    tab.context.close()


def points_drawn(tab):
    """The numbers of the trials in the figure, but for those that are marked once more."""
    return tab.evaluate(
        """() => document.getElementById("front").data
            .filter((trace) => trace.customdata && !["knee", "side by side"].includes(trace.name))
            .flatMap((trace) => trace.customdata)"""
    )


def test_every_trial_is_a_point_and_another_axis_shows_the_same_ones(study, explored):
    numbers = sorted(point.trial for point in study.points)
    assert sorted(points_drawn(explored)) == numbers
    explored.select_option("#x", "parameters")
    explored.select_option("#colour", "energy")
    assert sorted(points_drawn(explored)) == numbers
    assert "million parameters" in explored.inner_text("#front")


def test_bounds_name_a_winner_and_the_command_that_exports_it(study, explored, tmp_path):
    bound = sorted(point["accuracy"] for point in study.points)[-2]
    explored.get_by_label("accuracy, at least").fill(str(bound))
    allowed = [point.trial for point in study.points if point["accuracy"] >= bound - 1e-6]
    shown = [int(row.get_attribute("data-trial")) for row in explored.locator("#trials tbody tr[data-trial]").all()]
    assert sorted(shown) == sorted(allowed)
    assert f"{len(allowed)} of {len(study.points)} trials keep these bounds" in explored.inner_text("#winner")
    command = explored.inner_text("#command")
    number = int(re.search(r"--select trial:(\d+)", command)[1])
    assert number in allowed
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, shell=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"digits-trial{number}" / "model.onnx").exists()
    explored.get_by_label("accuracy, at least").fill("1.01")
    assert "No trial keeps these bounds. The nearest is trial" in explored.inner_text("#winner")
    assert explored.inner_text("#command") == ""


def test_up_to_four_trials_stand_side_by_side(study, explored):
    for box in explored.locator("#trials tbody input").all()[:2]:
        box.check()
    explored.locator("#compared article").nth(1).locator(".barlayer").first.wait_for()
    assert explored.locator("#compared article").count() == 2
    text = explored.inner_text("#compared")
    assert "confusion matrices" in text
    assert "validation images only this network gets right" in text


def test_an_address_names_trials_and_they_show_what_the_compressor_saw(study, explored, address):
    divided = max(study.points, key=lambda point: len(study.divided_of(point.trial)))
    layers = study.divided_of(divided.trial)
    explored.goto("about:blank")
    explored.goto(f"{address}/front/digits#trial={divided.trial},{study.points[0].trial}")
    article = explored.locator("#compared article").first
    article.locator("summary", has_text="regions and clusters").click()
    pictures = article.locator("canvas[role=img]")
    matrices = sum(picture is not None for layer in layers for picture in layer.coactivation)
    assert pictures.count() == matrices + sum(len(layer.clusters) > 1 for layer in layers)
    tones = """(canvas) => {
        const drawn = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(drawn.data).size;
    }"""
    assert all(picture.evaluate(tones) > 3 for picture in pictures.all())
    explored.locator("#trials tbody input:checked").first.uncheck()
    assert explored.evaluate("location.hash") in (f"#trial={divided.trial}", f"#trial={study.points[0].trial}", "")


def test_all_values_and_what_matters_are_drawn(study, explored):
    explored.locator("#importance .barlayer").wait_for()
    lines = explored.evaluate(
        """() => document.getElementById("parallel").data
            .flatMap((line) => line.customdata).filter((each) => each !== null)"""
    )
    axes = len(study.points[0].sample) + len({*study.config.objectives, "parameters", "megabytes"})
    assert sorted(set(lines)) == [point.trial for point in study.points]
    assert len(lines) == axes * len(study.points)


def test_the_page_is_made_for_everybody(explored, chromium, address):
    explored.locator("#trials tbody input").first.check()
    explored.wait_for_selector("#compared article .barlayer")
    for page in (f"{address}/front/digits", f"{address}/"):
        explored.goto(page)
        explored.wait_for_selector("main")
        found = Axe().run(explored).response["violations"]
        grave = [(each["id"], each["nodes"]) for each in found if each["impact"] in ("serious", "critical")]
        assert not grave


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(explored, width):
    explored.set_viewport_size({"width": width, "height": 800})
    explored.wait_for_timeout(300)
    assert explored.evaluate("document.documentElement.scrollWidth") <= width


def test_a_running_study_grows_on_the_page_and_choices_stay(study, chromium, tmp_path):
    url = f"sqlite:///{tmp_path}/growing.db"
    config = study.config.model_copy(update={"storage": url, "trials": 3})
    run_study(config)
    command = command_line.start("dashboard", "--storage", url, "--port", "0", cwd=tmp_path)
    while (shown := re.search(r"http://\S+", command.printed()[0])) is None:
        assert command.returncode is None
        time.sleep(0.1)
    tab = chromium.context.browser.new_context().new_page()
    wrong = errors_of(tab)
    tab.goto(f"{shown[0]}/front/digits")
    tab.wait_for_selector("#front .scatterlayer .trace")
    tab.select_option("#x", "parameters")
    assert len(points_drawn(tab)) == 3
    run_study(config.model_copy(update={"trials": 5}))
    tab.get_by_text("5 of 5 trials finished").wait_for(timeout=40_000)
    assert len(points_drawn(tab)) == 5
    assert tab.input_value("#x") == "parameters"
    assert wrong == []
    tab.context.close()
    command.send_signal(signal.SIGTERM)
    command.communicate()


def test_a_server_for_others_asks_for_its_token(study, tmp_path):
    command = command_line.start(
        "dashboard", "--storage", study.config.storage, "--host", "0.0.0.0", "--port", "0", cwd=tmp_path
    )
    while (shown := re.search(r"http://0\.0\.0\.0:(\d+)/\?token=(\S+)", command.printed()[0])) is None:
        assert command.returncode is None
        time.sleep(0.1)
    address, token = f"http://127.0.0.1:{shown[1]}", shown[2]
    for path in ("/", "/front/digits", "/data/digits", "/pages/explorer.js", "/dashboard", "/api/studies", "/nothing"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}{path}")
        refused.value.close()
        assert refused.value.code == 401
        request = urllib.request.Request(f"{address}{path}", headers={"Authorization": f"Bearer {token}"})
        if path != "/nothing":
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 200
    command.send_signal(signal.SIGTERM)
    command.communicate()
