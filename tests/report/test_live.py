import json
import re
import signal
import time
import urllib.error
import urllib.request
from wsgiref.util import setup_testing_defaults

import command_line
import pytest

from hscc_search.report.live import application


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
