import json
from dataclasses import replace

import numpy as np
from asking import ask_json

from hscc_search.compression.divided import DividedLayer
from hscc_search.compression.division.regions import pieces
from hscc_search.report.live import application
from hscc_search.report.regions import divided_trial, draw_regions, label_map


def divided(labels):
    count = int(labels.max()) + 1
    return DividedLayer("conv<1>", labels.shape, pieces(labels), ((4,),) * count, (None,) * count)


def test_a_map_shows_the_region_of_each_position(study):
    labels = np.array([[0, 0, 1], [2, 2, 1], [2, 0, 0]])
    assert np.array_equal(label_map(divided(labels)), labels + 1)
    shown = replace(study, divided_of=lambda trial: (divided(labels), divided(np.zeros((2, 2), np.int64))))
    figure = draw_regions(shown, study.front[0])
    assert [np.array_equal(trace.z, labels + 1) for trace in figure.data] == [True]  # and none of one region
    assert figure.layout.annotations[0].text == "conv&lt;1>"


def test_the_knee_is_shown_or_else_the_most_probable_divided_trial_of_the_front(study):
    labels = np.array([[0, 1]])
    everywhere = replace(study, divided_of=lambda trial: (divided(labels),))
    assert divided_trial(everywhere).trial == study.confidence.knee
    others = replace(study, divided_of=lambda trial: () if trial == study.confidence.knee else (divided(labels),))
    rest = {point.trial: study.confidence.probability[point.trial] for point in study.front}
    del rest[study.confidence.knee]
    assert study.confidence.probability[divided_trial(others).trial] == max(rest.values())
    assert divided_trial(replace(study, divided_of=lambda trial: ())) is None


def test_optuna_dashboard_shows_regions_where_there_are_some(study):
    shown = ask_json(application(study.config.storage), "/api/studies/1")
    figures = {each["id"]: json.loads(each["graph_object"]) for each in shown["plotly_graph_objects"]}
    assert ("regions" in figures) == (divided_trial(study) is not None)
    assert "front" in figures
