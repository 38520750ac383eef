import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import command_line
import optuna
import pytest
from asking import ask, ask_json, serving
from axe_playwright_python.sync_playwright import Axe
from optuna.trial import TrialState, create_trial

from hscc_search.errors import DataError
from hscc_search.pareto.selection import select
from hscc_search.report.live import application
from hscc_search.storage import open_storage
from hscc_search.study.catalogue import remove_study
from hscc_search.study.record import TrialRecord
from hscc_search.study.study import run_study
from hscc_search.study.thumbnails import thumbnails

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
    trials = ask_json(application(constrained.config.storage), "/api/studies/1", "after=0")["trials"]
    assert len(trials) == len(constrained.points)
    feasible = {trial["number"] for trial in trials if all(size <= 0 for size in trial["constraints"])}
    assert all(trial["constraints"] for trial in trials)
    assert feasible == {point.trial for point in constrained.points if point.feasible}


BEFORE = Path(__file__).parents[1] / "before" / "studies-0.1.0.sqlite"


def test_a_storage_without_a_study_says_so(tmp_path):
    url = f"sqlite:///{tmp_path}/empty.db"
    open_storage(url)
    served = application(url)
    assert "holds no study yet" in ask(served, "/")[2].decode()
    for path in ("/front/digits", "/data/digits", "/data/digits/trial/0"):
        status, _, content = ask(served, path)
        assert (status, content) == (404, b"no study 'digits' in this storage: it holds none")


STATES = {
    "running": lambda study: (replace(study, points=()), [TrialState.RUNNING, TrialState.WAITING]),
    "one trial": lambda study: (replace(study, points=study.points[:1]), []),
    "failed trials only": lambda study: (replace(study, points=(), failures={0: "no memory", 1: "no disk"}), []),
    "none feasible": lambda study: (
        replace(study, points=tuple(replace(point, violations={"accuracy >= 1": 0.1}) for point in study.points)),
        [],
    ),
    "three objectives": lambda study: (of_objectives(study, "flops", "accuracy", "parameters"), []),
    "four objectives": lambda study: (of_objectives(study, "flops", "accuracy", "parameters", "macro_f1"), []),
    "two costs": lambda study: (of_objectives(study, "flops", "parameters"), []),
}


def of_objectives(study, *names):
    config = study.config.model_copy(update={"objectives": names})
    return replace(study, record=replace(study.record, config=config))


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_study_is_answered(study, stored, state):
    made, open_trials = STATES[state](study)
    served = application(stored(made, open_trials=open_trials))
    data = ask_json(served, "/data/made")
    assert data["finished"] == len(made.points) == len(data["kinds"]) == len(data["new"]["trial"])
    assert len(data["failures"]) == len(made.failures)
    front = [point.trial for point in sorted(made.front, key=lambda point: point.trial)]
    assert [trial for trial, kind in zip(data["new"]["trial"], data["kinds"], strict=True) if kind == "f"] == front
    assert (data["knee"] in front) == bool(front)
    assert ask_json(served, "/data/made", f"known={data['numbers']}")["new"]["trial"] == []
    for point in made.points:
        assert ask_json(served, f"/data/made/trial/{point.trial}")["trial"] == point.trial
    assert b'id="study-data"' in ask(served, "/front/made")[2]
    assert 'href="/front/made"' in ask(served, "/")[2].decode()
    beside = ask_json(served, "/api/studies/1", "after=0")
    assert len(beside["trials"]) == len(made.points) + len(made.failures) + len(open_trials)
    assert [trial["number"] for trial in beside["best_trials"]] == front


def test_a_study_of_the_version_before_is_answered(tmp_path):
    shutil.copy(BEFORE, tmp_path / "studies.db")
    served = application(f"sqlite:///{tmp_path}/studies.db")
    data = ask_json(served, "/data/before")
    assert len(data["new"]["trial"]) == data["finished"] > 0
    assert ask(served, "/front/before")[0] == 200
    notes = [trial["note"]["body"] for trial in ask_json(served, "/api/studies/1")["trials"]]
    assert sum("#trial=" in note for note in notes) == data["finished"]
    assert ask_json(served, f"/data/before/trial/{data['new']['trial'][0]}")["layers"]


def test_servers_agree_and_one_that_starts_anew_loses_nothing(study, stored):
    url = stored(replace(study, points=study.points[:3]))
    one, other = application(url), application(url)
    known = ask_json(one, "/data/made")["numbers"]
    storage = open_storage(url)
    made = optuna.load_study(study_name="made", storage=storage)
    for point in study.points[3:6]:
        record = TrialRecord(point, point.sample, point.violations, study.plan_of(point.trial)).stored()
        values = [float(point[objective.metric]) for objective in study.objectives]
        made.add_trial(create_trial(values=values, user_attrs=record))
        # One has followed the study, the other reads it for the first time, the third has just started.
        answers = [ask(served, "/data/made", f"known={known}")[2] for served in (one, other, application(url))]
        assert answers[0] == answers[1] == answers[2]
        assert json.loads(answers[0])["new"]["trial"] == list(range(3, point.trial + 1))


def test_several_requests_at_a_time_are_answered_alike(study):
    served = application(study.config.storage)
    with ThreadPoolExecutor(8) as pool:
        answers = {*pool.map(lambda _: ask(served, "/data/digits")[2], range(16))}
    assert len(answers) == 1


def test_a_body_is_packed_where_that_is_understood(study):
    served = application(study.config.storage)
    for path in ("/", "/front/digits", "/data/digits", "/pages/plotly.js", "/pages/explorer.css"):
        plain = ask(served, path)[2]
        for accepted, packed in (("gzip, br", True), ("br;q=1, gzip;q=0.5", True), ("gzip;q=0", False), ("br", False)):
            _, headers, content = ask(served, path, HTTP_ACCEPT_ENCODING=accepted)
            assert headers["Vary"] == "Accept-Encoding"
            assert int(headers["Content-Length"]) == len(content)
            assert (headers.get("Content-Encoding") == "gzip") == (packed and len(plain) > 1000)
            assert (gzip.decompress(content) if "Content-Encoding" in headers else content) == plain


def test_a_study_that_is_removed_while_its_page_is_open_does_not_break_it(study, stored, chromium):
    url = stored(study)
    with serving(application(url)) as port:
        tab = chromium.context.browser.new_context().new_page()
        wrong = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.clock.install()
        tab.goto(f"http://127.0.0.1:{port}/front/made")
        tab.wait_for_selector("#front .scatterlayer .trace")
        remove_study(url, "made")
        tab.clock.run_for(20_000)
        tab.get_by_text("no study 'made' in this storage").wait_for()
        assert sorted(points_drawn(tab)) == [point.trial for point in study.points]
        stored(study)
        tab.clock.run_for(20_000)
        tab.locator("#lost").wait_for(state="hidden")
        assert wrong == []
        tab.context.close()


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
    assert explored.locator("#front .modebar-btn").count() > 3
    assert explored.locator("#front .modebar-btn[data-title*=Share]").count() == 0  # which would upload the study
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
    answer = explored.inner_text("#winner")
    assert f"{len(allowed)} of {len(study.points)} trial" in answer
    best = select(f"accuracy>={bound}", study.points, study.objectives, study.truth, study.config.seed, study.dense)
    assert f"{best.name}," in answer
    command = explored.inner_text("#command")
    number = int(re.search(r"--select trial:(\d+)", command)[1])
    assert number == best.trial
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, shell=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"digits-trial{number}" / "model.onnx").exists()
    explored.get_by_label("accuracy, at least").fill("1.01")
    assert "No trial keeps these bounds. The nearest is trial" in explored.inner_text("#winner")
    assert explored.inner_text("#command") == ""


def test_a_lasso_selects_into_the_table_and_bounds_hold_in_it(study, explored):
    explored.evaluate("() => Plotly.relayout('front', { dragmode: 'lasso' })")
    plane = explored.locator("#front .nsewdrag").bounding_box()
    left, top = plane["x"] + 2, plane["y"] + 2
    right, bottom = left + plane["width"] - 4, top + plane["height"] - 4
    explored.mouse.move(left, top)
    explored.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top)):
        explored.mouse.move(x, y, steps=8)
    explored.mouse.up()
    explored.get_by_text("selected in the figure").wait_for()
    rows = explored.locator("#trials tbody tr[data-trial]")
    selected = {int(row.get_attribute("data-trial")) for row in rows.all()}
    assert len(selected) >= len(study.points) - 1  # one may stand at the very edge
    assert f"{len(selected)} trials selected in the figure" in explored.inner_text("#shown")
    least = sorted(point["accuracy"] for point in study.points if point.trial in selected)[-3]
    explored.get_by_label("accuracy, at least").fill(str(least))
    assert 3 <= rows.count() < len(selected)
    explored.get_by_label("accuracy, at least").fill("")
    explored.locator("#everything").click()
    assert "selected" not in explored.inner_text("#shown")


def test_up_to_four_trials_stand_side_by_side(study, explored):
    explored.locator("#every").check()
    for box in explored.locator("#trials tbody input").all()[:5]:
        box.check()
    explored.locator("#compared article").nth(3).locator(".barlayer").first.wait_for()
    assert explored.locator("#compared article").count() == 4
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
    explored.locator("#trials tbody input:not(:checked)").first.check()
    explored.locator("#compared article").nth(2).wait_for()
    assert pictures.first.is_visible()  # what was opened stays open
    explored.locator("#trials tbody input:checked").first.uncheck()


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


def test_images_are_shown_small_where_they_are_and_else_it_is_said(study):
    opened = []

    def open_images(study):
        opened.append(study.config.name)
        return thumbnails(study.record, study.config)

    served = application(study.config.storage, open_images=open_images)
    worst = min(study.points, key=lambda point: point["accuracy"])
    for _ in range(2):
        detail = ask_json(served, f"/data/digits/trial/{worst.trial}")
        named = {str(row[0]) for side in ("only_dense", "only_compressed") for row in detail["answers"][side]["images"]}
        assert detail["thumbnails"].keys() == named != set()
        assert all(address.startswith("data:image/png;base64,") for address in detail["thumbnails"].values())
    assert opened == ["digits"]

    def refuse(study):
        raise DataError("there is no folder images")

    detail = ask_json(application(study.config.storage, open_images=refuse), f"/data/digits/trial/{worst.trial}")
    assert detail["no_thumbnails"] == "there is no folder images"
    assert "thumbnails" not in ask_json(application(study.config.storage), f"/data/digits/trial/{worst.trial}")
