from dataclasses import replace

import pytest

from hscc_search.report.figures import draw_front, front_info


def test_the_figure_shows_every_trial_once(study):
    info = front_info(study)
    shown = (*info.members, *info.close, *info.dominated, *info.infeasible)
    assert sorted(point.trial for point in shown) == list(range(8))
    assert list(info.members) == study.front
    figure = draw_front(info)
    drawn = {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in figure.data}
    assert drawn["front (± 1 standard error)"] == [(point["flops"] / 1e9, point["accuracy"]) for point in study.front]
    assert drawn["dense network"] == [(study.dense["flops"] / 1e9, study.dense["accuracy"])]


def test_trials_that_violate_a_constraint_are_crosses_apart_from_the_front(constrained):
    poor = [point for point in constrained.points if point["accuracy"] < 0.75]
    assert poor
    info = front_info(constrained)
    assert list(info.infeasible) == poor
    drawn = {trace.name: trace for trace in draw_front(info).data}
    crosses = drawn["violates a constraint"]
    assert list(zip(crosses.x, crosses.y, strict=True)) == [(point["flops"] / 1e9, point["accuracy"]) for point in poor]
    assert all("violates accuracy >= 0.75 by" in text for text in crosses.text)
    assert "violates" not in "".join(drawn["front (± 1 standard error)"].text)


@pytest.mark.parametrize("objectives", [("flops", "accuracy"), ("macro_f1", "recall:3"), ("parameters", "latency")])
def test_the_line_of_a_front_promises_no_more_than_its_trials_reach(constrained, objectives):
    """Between two members the line takes the worse value of both objectives."""
    points = tuple(
        replace(point, metrics={**point.metrics, "latency": 1 / point["flops"]}) for point in constrained.points
    )
    record = constrained.record
    measured = replace(record.dense.measured, metrics={**record.dense.measured.metrics, "latency": 1e-3})
    config = record.config.model_copy(update={"objectives": objectives})
    record = replace(record, config=config, dense=replace(record.dense, measured=measured))
    info = front_info(replace(constrained, record=record, points=points))
    assert {info.x, info.y} == set(objectives)
    (line,) = [trace for trace in draw_front(info).data if trace.mode == "lines+markers"]
    assert line.line.shape == {"macro_f1": "vh"}.get(info.x, "hv")


def test_the_name_of_a_class_is_no_markup(study):
    """Plotly takes some HTML for markup."""
    points = tuple(
        replace(
            point,
            metrics={**point.metrics, "recall:<b>x": point["accuracy"]},
            errors={**point.errors, "recall:<b>x": 0.1},
            violations={"recall:<b>x >= 2": 1.0},
        )
        for point in study.points
    )
    measured = study.record.dense.measured
    measured = replace(measured, metrics={**measured.metrics, "recall:<b>x": 0.5})
    config = study.config.model_copy(update={"objectives": ("flops", "recall:<b>x")})
    record = replace(study.record, config=config, dense=replace(study.record.dense, measured=measured))
    figure = draw_front(front_info(replace(study, record=record, points=points)))
    drawn = figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
    assert "<b>" not in drawn
    assert drawn.count("recall of &lt;b>x") > len(points)
    assert "violates recall:&lt;b>x" in drawn
