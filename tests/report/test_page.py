from dataclasses import replace

import pytest

from hscc_search.report.page import Page, frozen_page


def test_the_page_renders_with_the_network_off(study, chromium, tmp_path):
    path = tmp_path / "front.html"
    Page(frozen_page(study, "sqlite:///studies.db")).write(path)
    errors, requests = [], []
    chromium.on("pageerror", lambda error: errors.append(str(error)))
    chromium.on("request", lambda request: requests.append(request.url))
    chromium.context.set_offline(True)
    chromium.goto(path.as_uri())
    chromium.wait_for_selector(".scatterlayer .trace")
    chromium.context.set_offline(False)
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    # The front, the knee and the dense network at least.
    assert chromium.locator("#front .scatterlayer .trace").count() >= 3
    rows = chromium.locator("table.front tr").count()
    assert rows == 1 + 1 + len({*study.confidence.close, *(point.trial for point in study.front)})


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(study, chromium, tmp_path):
    page = Page(frozen_page(study, "sqlite:///studies.db"))
    (tmp_path / "notebook.html").write_text(f"<!doctype html><body>{page._repr_html_()}</body>")
    errors = []
    chromium.on("pageerror", lambda error: errors.append(str(error)))
    chromium.goto((tmp_path / "notebook.html").as_uri())
    frame = chromium.frame_locator("iframe")
    frame.locator("#front .scatterlayer .trace").first.wait_for()
    frame.locator("#trials tbody input").first.check()
    frame.locator("#compared article .barlayer").first.wait_for()
    assert errors == []
    page.write(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page.html


def test_names_are_escaped(study, tmp_path):
    record = replace(study.record, classes=("<script>alert(1)</script>", *study.record.classes[1:]))
    Page(frozen_page(replace(study, record=record), "sqlite:///studies.db")).write(tmp_path / "page.html")
    assert "<script>alert(1)</script>" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("trials", ["some feasible", "none feasible", "none finished"])
def test_a_page_names_objectives_and_constraints_and_says_whether_there_is_a_front(
    constrained, chromium, tmp_path, trials
):
    infeasible = tuple(replace(point, violations={"accuracy >= 0.75": 0.5}) for point in constrained.points)
    points = {"some feasible": constrained.points, "none feasible": infeasible, "none finished": ()}[trials]
    Page(frozen_page(replace(constrained, points=points), "sqlite:///studies.db")).write(tmp_path / "front.html")
    errors = []
    chromium.on("pageerror", lambda error: errors.append(str(error)))
    chromium.goto((tmp_path / "front.html").as_uri())
    chromium.wait_for_selector(".scatterlayer .trace")
    assert errors == []
    text = chromium.inner_text("body")
    assert "Objectives: minimise FLOPs, maximise accuracy. Constraints: accuracy >= 0.75." in text
    assert ("No trial is feasible: trial" in text) == (trials == "none feasible")
    assert ("No trial is finished yet" in text) == (trials == "none finished")
    assert ("(knee)" in text) == (trials == "some feasible")
    if trials == "none feasible":
        assert chromium.locator("table.front tr").count() == 2 + len(points)
