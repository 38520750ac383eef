import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from hscc_search.comparison.folder import claim, write_network
from hscc_search.comparison.measure import LATENCY_BATCHES
from hscc_search.comparison.methods import METHODS
from hscc_search.comparison.record import Asked, ComparedNetwork, ComparisonRecord
from hscc_search.comparison.summary import Estimate, Summary
from hscc_search.errors import ConfigError
from hscc_search.evaluation.quality import Quality
from hscc_search.report.comparison import draw_comparison, peers_of, write_comparison
from hscc_search.report.figures import ACCENT, DENSE, FAINT
from hscc_search.report.terminal import comparison_table

TEST_IMAGES = 40
RUNS = [f"{runtime} {batch}" for runtime in ("torch", "onnxruntime") for batch in LATENCY_BATCHES]
PEERS = [method for method in METHODS if not method.startswith("hscc")]


def summary(method, budget=3.0, epochs=0, **changes):
    dense = method == "dense"
    usual = Summary(
        method=method,
        budget=budget,
        epochs=epochs,
        refined=False,
        splits=3,
        flops_ratio=budget + 0.02 if not dense else 1.0,
        parameters=138_357_544,
        accuracy=Estimate(1 - budget / 100, 0.055),
        macro_f1=Estimate(0.9, 0.055),
        to_dense=Estimate(-0.995, 0.055),
        to_hscc=Estimate(0.995, 0.055),
        speedup={} if dense else dict.fromkeys(RUNS, 12.34),
        failures=(),
    )
    return replace(usual, **changes)


def missing(method, budget):
    nothing = dict.fromkeys(("flops_ratio", "parameters", "accuracy", "macro_f1", "to_dense", "to_hscc"))
    return summary(method, budget, **nothing, splits=0, speedup={}, failures=("split 0: out of reach",))


@pytest.fixture
def summaries():
    return [
        summary("dense", 1.0),
        summary("dense", 1.0, 5),
        *(summary(method, budget, epochs) for budget in (6.0, 3.0) for method in METHODS for epochs in (0, 5)),
    ]


def test_each_method_is_a_line_of_accuracy_over_flops_with_errors(summaries):
    figure = draw_comparison("own", summaries)
    lines = {trace.name: trace for trace in figure.data}
    assert len(lines) == len(figure.data)
    assert lines.keys() == {
        *("dense", "dense, 5 epochs"),
        *METHODS,
        *(f"{method}, 5 epochs" for method in METHODS),
    }
    for method in METHODS:
        for name in (method, f"{method}, 5 epochs"):
            assert lines[name].x == (3.02, 6.02)
            assert lines[name].y == pytest.approx((97, 94))
            assert lines[name].error_y.array == pytest.approx((5.5, 5.5))
            assert lines[name].line.dash == ("dash" if "epochs" in name else "solid")
    assert (lines["dense"].x, lines["dense"].y) == ((1.0,), (99.0,))
    assert "own" in figure.layout.title.text
    assert "FLOPs" in figure.layout.xaxis.title.text
    assert "%" in figure.layout.yaxis.title.text


def test_the_method_its_peers_and_its_controls_are_told_apart_by_colour(summaries):
    colour = {trace.name: trace.line.color for trace in draw_comparison("own", summaries).data}
    assert (colour["hscc"], colour["dense"]) == (ACCENT, DENSE)
    peers = [colour[method] for method in PEERS]
    assert len({*peers, ACCENT, DENSE, FAINT}) == len(PEERS) + 3
    assert all(colour[method] == colour[f"{method}, 5 epochs"] for method in METHODS)


def test_a_network_that_is_not_there_is_no_point():
    figure = draw_comparison("own", [summary("hscc", 3.0), missing("hscc", 50.0), missing("alds", 50.0)])
    assert {trace.name: len(trace.x) for trace in figure.data} == {"hscc": 1, "alds": 0}


def test_the_page_and_the_summary_are_written_whole(summaries, tmp_path):
    for _ in range(2):
        write_comparison("own", [*summaries, missing("alds", 50.0)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "comparison.html"}
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert [tree["method"] for tree in stored] == [*(summary.method for summary in summaries), "alds"]
    assert stored[2]["accuracy"] == summaries[2].accuracy.value
    assert stored[2]["speedup"] == summaries[2].speedup
    page = (tmp_path / "comparison.html").read_text()
    assert "cdn.plot.ly/plotly" not in page
    assert all(method in page for method in METHODS)


def printed(summaries):
    console = Console(width=120, file=io.StringIO(), emoji=False)
    console.print(comparison_table(summaries))
    return console.file.getvalue()


def test_the_table_of_all_methods_fits_120_columns(summaries):
    text = printed([*summaries, missing("alds", 50.0)])
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 120
    # No cell is broken either: a line for each row, with all its figures.
    rows = [line.split() for line in text.splitlines() if "x  " in line or line.startswith(" dense")]
    assert len(rows) == len(summaries)
    for row, shown in zip(rows, summaries, strict=True):
        assert row[:2] == [shown.method, str(shown.epochs)]
        if shown.method != "dense":
            accuracy = f"{100 * shown.accuracy.value:.1f}"
            assert row[2:8] == [f"{shown.flops_ratio:.2f}x", "138.36", "M", accuracy, "±", "5.5"]
            assert row[8:11] == ["-99.5", "±", "5.5"]
            assert row[11:-4] == (["-"] if shown.method == "hscc" else ["+99.5", "±", "5.5"])
            assert row[-4:] == ["12.3x"] * 4


def test_what_is_not_there_is_a_dash():
    lines = [line.split() for line in printed([summary("hscc"), missing("alds", 50.0)]).splitlines()]
    (row,) = [cells for cells in lines if cells[:1] == ["alds"]]
    assert set(row[2:]) == {"-"}


def test_without_latencies_the_table_has_no_columns_for_them():
    assert "ORT" in printed([summary("hscc")])
    assert "ORT" not in printed([summary("hscc", speedup={})])


def compared(folder, study):
    """A comparison of the study's network: a peer that is right on 5 images less than the dense one, and HSCC."""
    claim(folder, ComparisonRecord(study.config, 0, study.record.fingerprint, None))
    for method, budget, right in (("dense", 1.0, 36), ("tucker-2", 3.0, 31), ("hscc", 3.0, 36)):
        rights = tuple(int(image < right) for image in range(TEST_IMAGES))
        quality = Quality({"accuracy": right / TEST_IMAGES, "macro_f1": 0.5}, {"accuracy": 0.05, "macro_f1": 0.05})
        macs = int(study.dense["macs"] / budget)
        write_network(folder, ComparedNetwork(Asked(method, budget, 0, 0), macs, 1000, quality, rights))


def test_peers_stand_among_the_trials_of_a_study(study, tmp_path):
    compared(tmp_path / "comparison", study)
    (tmp_path / "comparison" / "rows" / ".split1-tucker-2-3x.json.abc.hscc-lock").touch()  # as of one that is running
    (peer,) = peers_of(study, tmp_path / "comparison")
    assert peer["name"] == "tucker-2 at 3x, 1 split"
    assert peer["metrics"]["flops"] == pytest.approx(study.dense["flops"] / 3, rel=1e-4)
    assert peer["metrics"]["accuracy"] == pytest.approx(study.dense["accuracy"] - 5 / TEST_IMAGES)
    assert peer["errors"]["accuracy"] == pytest.approx((5 / 40 * 35 / 40 / 40) ** 0.5)


def test_a_comparison_of_other_images_or_none_is_refused(study, tmp_path):
    with pytest.raises(ConfigError, match="holds no comparison"):
        peers_of(study, tmp_path)
    other = replace(study, record=replace(study.record, fingerprint="other"))
    compared(tmp_path / "comparison", other)
    with pytest.raises(ConfigError, match="another study's images"):
        peers_of(study, tmp_path / "comparison")
    config = study.config.model_copy(update={"model": study.config.model.model_copy(update={"name": "resnet18"})})
    with pytest.raises(ConfigError, match="another study's network"):
        peers_of(replace(other, record=replace(other.record, config=config)), tmp_path / "comparison")
