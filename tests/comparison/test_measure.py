import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_search import cli as command_line
from hscc_search.comparison import measure as comparing
from hscc_search.comparison.methods import METHODS
from hscc_search.comparison.row import Row
from hscc_search.comparison.summary import summarise
from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError

STUDY = {
    "name": "own",
    "data": {"source": "digits", "image_size": 16, "mean": [0.5] * 3, "std": [0.5] * 3},
    "model": {"name": "digits_cnn"},
    "training": {"epochs": 3, "learning_rate": 0.05, "flip": False},
    "compression": {"calibration_images": 64},
}
OPTIONS = ("--methods", "hscc,global-svd", "--budgets", "3", "--seeds", "0,1", "--finetune", "1")
ROWS = [
    Row(method, budget, seed, epochs)
    for seed in (0, 1)
    for method, budget in (("dense", 1.0), ("hscc", 3.0), ("global-svd", 3.0))
    for epochs in (0, 1)
]


def name_of(row):
    return f"split{row.seed}-{row.method}-{row.budget:g}x-{row.epochs}epochs.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a study file and a cache."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "own.yaml").write_text(yaml.safe_dump(STUDY))
    return folder


@pytest.fixture(scope="module")
def compared(cli, folder):
    """A comparison that the command line has finished."""
    done = cli("compare", "own.yaml", *OPTIONS, "--out", "out", cwd=folder, env={"HSCC_CACHE": folder / "cache"})
    return SimpleNamespace(out=folder / "out", stdout=done.stdout)


@pytest.fixture
def config(folder, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(folder / "cache"))
    return StudyConfig.from_file(folder / "own.yaml")


@pytest.fixture
def main(folder, tmp_path, monkeypatch, capsys):
    """The command line in this process: ``main("compare", ...)`` gives what it prints."""
    monkeypatch.setenv("HSCC_CACHE", str(folder / "cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(folder / "own.yaml", tmp_path)

    def call(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["hscc-search", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        printed = capsys.readouterr()
        assert caught.value.code == code, printed
        return printed

    return call


def content(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def times(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}


def read(out, row):
    return comparing._read(out / "rows" / name_of(row))


# What is left behind.


def test_each_network_is_a_row_and_the_summary_and_the_page_are_written(compared):
    assert {path.name for path in compared.out.iterdir()} == {
        "comparison.json",
        "comparison.html",
        "summary.json",
        "rows",
    }
    assert {path.name for path in (compared.out / "rows").iterdir()} == {name_of(row) for row in ROWS}
    rows = [read(compared.out, row) for row in ROWS]
    for row, asked in zip(rows, ROWS, strict=True):
        assert (row.method, row.budget, row.seed, row.epochs) == (asked.method, asked.budget, asked.seed, asked.epochs)
        assert row.failure is None
        assert statistics.mean(row.right) == pytest.approx(row.quality["accuracy"])
        assert row.seconds > 0
        timed = row.epochs == 0 and row.method != "dense"
        runs = [f"{runtime} {batch}" for runtime in ("torch", "onnxruntime") for batch in comparing.LATENCY_BATCHES]
        assert row.latency.keys() == ({*runs, *(f"dense {run}" for run in runs)} if timed else set())
        assert all(value > 0 for value in row.latency.values())
    assert json.loads((compared.out / "summary.json").read_text()) == json.loads(
        json.dumps([asdict(summary) for summary in summarise(rows)])
    )
    page = (compared.out / "comparison.html").read_text()
    assert "own: accuracy on the test parts" in page
    assert "global-svd, 1 epochs" in page


def test_the_budget_is_kept(compared):
    for row in ROWS:
        dense, macs = read(compared.out, replace(row, method="dense", budget=1.0)).macs, read(compared.out, row).macs
        assert dense / macs >= row.budget
        assert dense / macs < 1.1 * row.budget


def test_fine_tuning_leaves_the_cost_and_moves_the_accuracy(compared):
    for row in ROWS:
        if row.epochs:
            before, after = read(compared.out, replace(row, epochs=0)), read(compared.out, row)
            assert (before.macs, before.parameters) == (after.macs, after.parameters)
    gained = [
        read(compared.out, row).quality["accuracy"] - read(compared.out, replace(row, epochs=0)).quality["accuracy"]
        for row in ROWS
        if row.method == "global-svd" and row.epochs
    ]
    assert statistics.mean(gained) > 0.05


def test_the_table_has_a_line_for_each_and_says_what_the_errors_are_of(compared):
    lines = [line.split()[:2] for line in compared.stdout.splitlines()]
    for method in ("dense", "hscc", "global-svd"):
        for epochs in ("0", "1"):
            assert [method, epochs] in lines
    assert "2 splits" in compared.stdout
    assert "…" not in compared.stdout


# Going on.


@pytest.fixture
def copied(compared, tmp_path):
    return shutil.copytree(compared.out, tmp_path / "out")


def test_only_a_missing_row_is_measured_again(config, copied):
    lost = ROWS[-1]
    before, rows = times(copied), [read(copied, row) for row in ROWS]
    (copied / "rows" / name_of(lost)).unlink()
    told = []
    again = comparing.compare(config, [3.0], ["hscc", "global-svd"], [0, 1], 1, copied, "cpu", told.append)
    after = times(copied)
    assert after.pop(name_of(lost)) > before.pop(name_of(lost))
    assert after == before
    assert not any("split 0" in progress.task for progress in told)
    assert again[:-1] == [rows[ROWS.index(row)] for row in ROWS[:-1]]
    assert (again[-1].macs, again[-1].parameters) == (rows[-1].macs, rows[-1].parameters)
    assert np.mean(np.array(again[-1].right) == np.array(rows[-1].right)) > 0.95


def test_a_finished_comparison_measures_nothing_and_may_ask_for_less(config, copied):
    before, told = times(copied), []
    rows = comparing.compare(config, [3.0], ["global-svd"], [1], 0, copied, "cpu", told.append)
    assert rows == [read(copied, row) for row in ROWS if row.seed == 1 and not row.epochs and row.method != "hscc"]
    assert {progress.task for progress in told} <= {"reading images"}
    assert times(copied) == before
    # It still belongs to the comparison with one epoch.
    with pytest.raises(ConfigError, match="finetune: 1 -> 2"):
        comparing.compare(config, [3.0], ["hscc"], [0], 2, copied, "cpu")


def test_what_is_named_twice_is_measured_once(config, tmp_path, monkeypatch):
    tuned = []
    monkeypatch.setattr(comparing, "_latency", lambda here, network: {})
    monkeypatch.setattr(comparing, "fine_tune", lambda network, *rest: tuned.append(network))
    rows = comparing.compare(config, [3.0, 3], ["hscc", "hscc"], [0, 0], 1, tmp_path / "out", "cpu")
    assert [(row.method, row.epochs) for row in rows] == [("dense", 0), ("dense", 1), ("hscc", 0), ("hscc", 1)]
    assert len(tuned) == 2


def test_a_killed_comparison_leaves_whole_rows_and_goes_on(cli, folder, tmp_path):
    options = ("own.yaml", "--methods", "global-svd,alds", "--budgets", "2", "--seeds", "0", "--out", tmp_path / "out")
    environment = {"HSCC_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "hscc_search.cli", "compare", *map(str, options)]
    process = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stderr=subprocess.PIPE)
    while len(list((tmp_path / "out").glob("rows/*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    left = sorted((tmp_path / "out").glob("rows/*.json"))
    assert len(left) == 2
    for path in left:
        assert comparing._read(path).failure is None
    before = {path.name: path.stat().st_mtime_ns for path in left}
    cli("compare", *options, cwd=folder, env=environment)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("rows/*.json")}
    assert after.keys() == {name_of(Row(*key, 0, 0)) for key in [("dense", 1), ("global-svd", 2), ("alds", 2)]}
    assert before.items() <= after.items()
    assert (tmp_path / "out" / "summary.json").exists()


# What cannot be measured.


def test_a_budget_out_of_reach_is_a_line_and_not_a_crash(main, tmp_path):
    arguments = ("compare", "own.yaml", "--methods", "hscc,global-svd", "--budgets", "5000", "--seeds", "0")
    arguments = (*arguments, "--out", "out")
    printed = main(*arguments)
    for method in ("hscc", "global-svd"):
        (line,) = [line for line in printed.out.splitlines() if line.startswith(f"{method} at 5000x, split 0: ")]
        assert re.search(r"out of reach: .* gives \d|reaches a budget of \d.* at most", line)
    failed = {s["method"]: s for s in json.loads((tmp_path / "out" / "summary.json").read_text())}
    assert failed["hscc"]["accuracy"] is None
    assert failed["hscc"]["failures"]
    assert failed["dense"]["accuracy"] > 0.5
    before = times(tmp_path / "out")
    assert main(*arguments).out == printed.out
    assert times(tmp_path / "out") == before


def test_a_network_that_answers_nothing_finite_is_a_failure(config, tmp_path, monkeypatch):
    def ruin(network, *rest):
        with torch.no_grad():
            next(network.parameters()).fill_(math.nan)

    monkeypatch.setattr(comparing, "_latency", lambda here, network: {})
    monkeypatch.setattr(comparing, "fine_tune", ruin)
    rows = comparing.compare(config, [3.0], ["global-svd"], [0], 1, tmp_path / "out", "cpu")
    assert [row.failure is None for row in rows] == [True, False, True, False]
    assert "not finite" in rows[-1].failure


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "hscc,magic"], ["'magic'", "tucker-2"]),
        (["--methods", "hscc,"], ["no method ''"]),
        (["--budgets", "1"], ["above 1, not 1"]),
        (["--budgets", "3,0.5"], ["above 1, not 0.5"]),
        (["--budgets", "-3"], ["above 1, not -3"]),
        (["--budgets", "nan"], ["nan"]),
        (["--budgets", "inf"], ["inf"]),
        (["--budgets", "three"], ["--budgets", "'three'"]),
        (["--budgets", "3;6"], ["--budgets", "'3;6'"]),
        (["--budgets", ""], ["--budgets"]),
        (["--seeds", "0,1.5"], ["--seeds", "whole numbers"]),
        (["--seeds", "-1"], ["-1"]),
        (["--seeds", "99999999999"], ["99999999999"]),
        (["--finetune", "-1"], ["--finetune"]),
        (["--out", "precious"], ["precious", "no comparison"]),
        (["--out", "precious/file"], ["file", "no comparison"]),
        (["--out", "precious/file/new"], ["file", "another output folder"]),
        (["--data", "precious"], ["takes no path"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(main, tmp_path, arguments, said):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    before = content(tmp_path)
    out = [] if "--out" in arguments else ["--out", "out"]
    printed = main("compare", "own.yaml", *arguments, *out, code=2)
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert [part for part in said if part not in line] == []
    assert content(tmp_path) == before


def test_another_comparison_in_the_same_folder_is_refused(main, copied, tmp_path):
    study = STUDY | {"training": STUDY["training"] | {"epochs": 4}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(study))
    before = content(copied)
    printed = main("compare", "other.yaml", *OPTIONS, "--out", "out", code=2)
    (line,) = printed.err.splitlines()
    assert "training.epochs: 3 -> 4" in line
    assert "another output folder" in line
    assert content(copied) == before


@pytest.mark.parametrize("name", ["comparison.json", f"rows/{name_of(ROWS[0])}"])
def test_a_damaged_folder_is_refused(main, copied, name):
    (copied / name).write_text("{")
    (line,) = main("compare", "own.yaml", *OPTIONS, "--out", "out", code=2).err.splitlines()
    assert f"{name} is damaged" in line


def test_other_images_and_another_checkpoint_are_refused(config, copied):
    place = copied / "comparison.json"
    stored = json.loads(place.read_text())
    for name in ("images", "checkpoint"):
        place.write_text(json.dumps(stored | {name: "of another"}))
        with pytest.raises(ConfigError, match=f"another comparison .other {name}."):
            comparing.compare(config, [3.0], ["hscc"], [0], 1, copied, "cpu")
    with pytest.raises(ConfigError, match="cannot read checkpoint"):
        comparing.compare(config.with_paths(None, copied / "weights.pt"), [3.0], ["hscc"], [0], 1, copied, "cpu")


def test_budgets_that_differ_little_are_rows_of_their_own(tmp_path):
    assert comparing._file(tmp_path, "hscc", 3.0, 0, 0).name == "split0-hscc-3x-0epochs.json"
    near = {comparing._file(tmp_path, "hscc", budget, 0, 0) for budget in (2.00000001, 2.00000002)}
    assert len(near) == 2


def test_a_checkpoint_belongs_to_one_split(config, tmp_path):
    own = config.with_paths(None, tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="a checkpoint belongs to one split"):
        comparing.compare(own, [3.0], ["hscc"], [0, 1], 0, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


# Putting rows together.


def row(method, seed, right, budget=3.0, epochs=0, **more):
    accuracy = sum(right) / len(right)
    error = math.sqrt(accuracy * (1 - accuracy) / len(right))
    quality = {"accuracy": accuracy, "accuracy_se": error, "macro_f1": accuracy / 2, "macro_f1_se": error / 3}
    return Row(method, budget, seed, epochs, quality=quality, right=tuple(right), **({"macs": 1} | more))


def test_a_summary_by_hand():
    rows = [
        row("dense", 0, [1, 1, 1, 1], 1.0, macs=900, parameters=50),
        row("hscc", 0, [1, 1, 1, 0], macs=300, parameters=20),
        row("pruning", 0, [0, 1, 0, 0], macs=290, parameters=30, latency={"torch 1": 2.0, "dense torch 1": 6.0}),
        row("dense", 1, [1, 1], 1.0, macs=900, parameters=50),
        row("hscc", 1, [1, 1], macs=280, parameters=25),
        row("pruning", 1, [0, 1], macs=300, parameters=10, latency={"torch 1": 1.0, "dense torch 1": 5.0}),
    ]
    dense, hscc, pruning = summarise(rows)
    assert [summary.method for summary in (dense, hscc, pruning)] == ["dense", "hscc", "pruning"]
    assert (dense.ratio, hscc.ratio, pruning.ratio) == (1, 3, 3)
    assert (pruning.parameters, pruning.splits) == (30, 2)
    assert pruning.accuracy == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert pruning.accuracy_se == pytest.approx(math.sqrt(3 / 64 + 1 / 8) / 2)
    assert pruning.macro_f1 == pytest.approx(pruning.accuracy / 2)
    assert pruning.macro_f1_se == pytest.approx(pruning.accuracy_se / 3)
    # Differences to dense: -1, 0, -1, -1 (variance 3/16) and -1, 0 (variance 1/4).
    assert pruning.to_dense == pytest.approx((-3 / 4 - 1 / 2) / 2)
    assert pruning.to_dense_se == pytest.approx(math.sqrt(3 / 16 / 4 + 1 / 4 / 2) / 2)
    # And of hscc: 1, 0, 1, 0 (variance 1/4) and 1, 0 (variance 1/4).
    assert pruning.to_hscc == pytest.approx(1 / 2)
    assert pruning.to_hscc_se == pytest.approx(math.sqrt(1 / 4 / 4 + 1 / 4 / 2) / 2)
    assert (hscc.to_hscc, hscc.to_hscc_se, dense.to_dense, dense.to_dense_se) == (0, 0, 0, 0)
    assert pruning.speedup == {"torch 1": 4.0}
    assert hscc.speedup == {}


rights = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)


@given(splits=st.lists(rights, min_size=1, max_size=4), epochs=st.sampled_from([0, 3]))
@settings(max_examples=80, deadline=None)
def test_differences_are_of_the_same_images(splits, epochs):
    rows = []
    for seed, images in enumerate(splits):
        dense, hscc, other = zip(*images, strict=True)
        rows += [
            row("dense", seed, dense, 1.0),
            row("hscc", seed, hscc, epochs=epochs),
            row("alds", seed, other, epochs=epochs),
            # What has nothing to do with it.
            row("hscc", seed, other, 6.0, epochs=epochs),
            row("hscc", seed, dense, epochs=epochs + 1),
        ]
    found = {(one.method, one.budget, one.epochs): one for one in summarise(rows)}
    alds = found["alds", 3.0, epochs]
    for value, error, first, second in (
        (alds.to_dense, alds.to_dense_se, 2, 0),
        (alds.to_hscc, alds.to_hscc_se, 1, 2),
    ):
        differences = [[image[first] - image[second] for image in images] for images in splits]
        assert value == pytest.approx(statistics.mean(statistics.mean(one) for one in differences), abs=1e-12)
        variances = [statistics.pvariance(one) / len(one) for one in differences]
        assert error == pytest.approx(math.sqrt(sum(variances)) / len(splits), abs=1e-12)


def test_the_error_of_a_difference_is_that_of_drawing_images_again():
    generator = np.random.default_rng(0)
    splits = []
    for count in (60, 90):
        dense = (generator.random(count) < 0.9).astype(int)
        splits.append((dense, np.where(generator.random(count) < 0.8, dense, 1 - dense)))
    rows = [
        row(method, seed, split[at].tolist(), 1.0 if at == 0 else 3.0)
        for seed, split in enumerate(splits)
        for at, method in enumerate(("dense", "alds"))
    ]
    drawn = []
    for _ in range(2000):
        means = []
        for dense, other in splits:
            chosen = generator.integers(0, len(dense), len(dense))
            means.append((other - dense)[chosen].mean())
        drawn.append(np.mean(means))
    assert summarise(rows)[1].to_dense_se == pytest.approx(np.std(drawn), rel=0.1)


def test_a_missing_network_leaves_no_mean_but_the_reason_and_the_others():
    rows = [
        row("dense", 0, [1, 1], 1.0),
        row("hscc", 0, [1, 0]),
        row("alds", 0, [0, 0]),
        row("dense", 1, [1, 1], 1.0),
        Row("hscc", 3.0, 1, 0, failure="out of reach"),
        row("alds", 1, [1, 0]),
    ]
    _, hscc, alds = summarise(rows)
    assert (hscc.accuracy, hscc.accuracy_se, hscc.to_dense, hscc.macro_f1) == (None, None, None, None)
    assert hscc.failures == ("split 1: out of reach",)
    assert (hscc.splits, alds.splits) == (1, 2)
    assert alds.accuracy == 0.25
    assert alds.to_dense == -0.75
    assert alds.to_hscc is None
    assert alds.failures == ()


def test_every_method_and_its_controls_are_offered():
    peers = ["global-svd", "tucker-2", "response-pca", "alds", "pruning"]
    own = ["hscc-regions", "hscc-random-regions", "hscc-clusters", "hscc-random-clusters"]
    assert list(METHODS) == ["hscc", *peers, *own]
