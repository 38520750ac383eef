import json

import pytest

from hscc_search.errors import ConfigError
from hscc_search.report.formats import front_json
from hscc_search.report.measured import HEADS, measured_rows, read_measured
from hscc_search.report.page import frozen_page


def file_of(folder, **changed):
    """A file as run.py benchmark writes it; what that writes is read in the test of the command."""
    times = {"median_ms": 1.5, "p95_ms": 2.25, "batches": 9}
    tree = {
        "study": "constrained",
        "trial": 0,
        "latency": {"1": times, "32": {**times, "median_ms": 20.0}},
        "threads": 1,
        "peak_memory_mb": 80.4,
        "cpu": "Raspberry Pi 4 <b>",
        "onnxruntime": "1.24.0",
    }
    path = folder / "measured.json"
    path.write_text(json.dumps({**tree, **changed}))
    return path


def test_what_a_device_measured_stands_beside_the_figures_of_the_trial(constrained, tmp_path):
    name, point = constrained.config.name, constrained.points[0]
    measured = read_measured([file_of(tmp_path, study=name, trial=point.trial)], constrained)
    (row,) = measured_rows(constrained, measured)
    cells = dict(zip(HEADS, row, strict=False))
    assert (cells["trial"], cells["ms for 1 image"], cells["ms for 32 images"]) == (str(point.trial), "1.500", "20.000")
    assert row[-1] == "Raspberry Pi 4 <b>, ONNX Runtime 1.24.0"
    assert row[1] == f"{constrained.dense['flops'] / point['flops']:.2f}x"
    page = frozen_page(constrained, "sqlite:///studies.db", measured=measured)
    assert "Measured on devices" in page
    assert "Raspberry Pi 4 &lt;b&gt;" in page
    assert "Measured on devices" not in frozen_page(constrained, "sqlite:///studies.db")
    (tree,) = json.loads(front_json(constrained, measured))["measured"]
    assert tree["median"] == [1.5, 20.0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"study": "another"}, "is of study 'another', not of"),
        ({"trial": 999}, "is of trial 999, which this study has not finished"),
        ({"trial": None}, "is not what run.py benchmark --out writes"),
        ({"trial": [1]}, "is not what run.py benchmark --out writes"),
        ({"latency": {"1": {}}}, "is not what run.py benchmark --out writes"),
        ({"latency": 3}, "is not what run.py benchmark --out writes"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(constrained, tmp_path, changed, said):
    own = {"study": constrained.config.name, "trial": constrained.points[0].trial}
    with pytest.raises(ConfigError, match=said):
        read_measured([file_of(tmp_path, **{**own, **changed})], constrained)


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_a_file_that_is_no_json_is_refused_in_one_line(constrained, tmp_path, content):
    path = tmp_path / "measured.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"--measured: .*measured.json is (missing|damaged)"):
        read_measured([path], constrained)
