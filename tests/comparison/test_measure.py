import copy
import json
import math
import re
import shutil
import statistics
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import command_line
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT

from hscc_search import cli as commands
from hscc_search.comparison import measure as comparing
from hscc_search.comparison.folder import network_path, read_network
from hscc_search.comparison.record import Asked
from hscc_search.comparison.summary import summarise
from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError, ModelError

STUDY = {
    "name": "own",
    "data": {"source": "digits", "image_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3},
    "model": {"name": "digits_cnn"},
    "training": {"epochs": 3, "learning_rate": 0.05, "flip": False},
    "compression": {"calibration_images": 64},
}
OPTIONS = ("--methods", "hscc,global-svd", "--budgets", "3", "--seeds", "0,1", "--finetune", "1")
EVERY = [
    Asked(method, budget, seed, epochs)
    for seed in (0, 1)
    for method, budget in (("dense", 1.0), ("hscc", 3.0), ("global-svd", 3.0))
    for epochs in (0, 1)
]


# Written by version 0.1.0 with the same study on images of 16 x 16 pixels.
BEFORE = ROOT / "tests" / "before" / "comparison-0.1.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a study file and a cache."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "own.yaml").write_text(yaml.safe_dump(STUDY))
    return folder


@pytest.fixture(scope="module")
def compared(cli, folder):
    """A comparison that the command line has finished."""
    done = cli("compare", "own.yaml", *OPTIONS, "--out", "out", cwd=folder, env={"HSCC_CACHE": str(folder / "cache")})
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
            commands.main()
        printed = capsys.readouterr()
        assert caught.value.code == code, printed
        return printed

    return call


def content(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def times(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}


def read(out, asked):
    return read_network(network_path(out, asked))


# Files in the folder.


def test_each_network_is_a_file_and_the_summary_and_the_page_are_written(compared):
    assert {path.name for path in compared.out.iterdir()} == {
        "comparison.json",
        "comparison.html",
        "summary.json",
        "rows",
    }
    assert set((compared.out / "rows").iterdir()) == {network_path(compared.out, asked) for asked in EVERY}
    networks = [read(compared.out, asked) for asked in EVERY]
    for network, asked in zip(networks, EVERY, strict=True):
        assert network.asked == asked
        assert network.failure is None
        assert statistics.mean(network.right) == pytest.approx(network.quality.metrics["accuracy"])
        assert network.seconds > 0
        timed = asked.epochs == 0 and asked.method != "dense"
        runs = {f"{runtime} {batch}" for runtime in ("torch", "onnxruntime") for batch in comparing.LATENCY_BATCHES}
        assert network.latency.keys() == network.dense_latency.keys() == (runs if timed else set())
        assert all(value > 0 for value in (*network.latency.values(), *network.dense_latency.values()))
    stored = json.loads((compared.out / "summary.json").read_text())
    assert stored == [summary.stored() for summary in summarise(networks)]
    page = (compared.out / "comparison.html").read_text()
    assert "own: accuracy on the test parts" in page
    assert "global-svd, 1 epochs" in page


def test_the_budget_is_kept(compared):
    for asked in EVERY:
        dense = read(compared.out, replace(asked, method="dense", budget=1.0))
        ratio = dense.macs / read(compared.out, asked).macs
        assert asked.budget <= ratio < 1.1 * asked.budget


def test_fine_tuning_leaves_the_cost_and_moves_the_accuracy(compared):
    gains = []
    for asked in EVERY:
        if asked.epochs:
            before, after = read(compared.out, replace(asked, epochs=0)), read(compared.out, asked)
            assert (before.macs, before.parameters) == (after.macs, after.parameters)
            if asked.method == "global-svd":
                gains.append(after.quality.metrics["accuracy"] - before.quality.metrics["accuracy"])
    assert statistics.mean(gains) > 0.05


def test_the_table_has_a_line_for_each_and_says_what_the_errors_are_of(compared):
    lines = [line.split()[:2] for line in compared.stdout.splitlines()]
    for method in ("dense", "hscc", "global-svd"):
        for epochs in ("0", "1"):
            assert [method, epochs] in lines
    assert "2 splits" in compared.stdout
    assert "…" not in compared.stdout


# Going on with a folder.


@pytest.fixture
def copied(compared, tmp_path):
    return shutil.copytree(compared.out, tmp_path / "out")


def test_only_a_missing_network_is_measured_again(config, copied):
    lost = network_path(copied, EVERY[-1])
    before, networks = times(copied), [read(copied, asked) for asked in EVERY]
    lost.unlink()
    reports = []
    again = comparing.compare(config, [3.0], ["hscc", "global-svd"], [0, 1], 1, copied, "cpu", reports.append)
    after = times(copied)
    assert after.pop(lost.name) > before.pop(lost.name)
    assert after == before
    assert not any("split 0" in progress.task for progress in reports)
    assert again[:-1] == networks[:-1]
    assert (again[-1].macs, again[-1].parameters) == (networks[-1].macs, networks[-1].parameters)
    assert np.mean(np.array(again[-1].right) == np.array(networks[-1].right)) > 0.95


def test_a_finished_comparison_measures_nothing_and_may_ask_for_less(config, copied):
    before, reports = times(copied), []
    networks = comparing.compare(config, [3.0], ["global-svd"], [1], 0, copied, "cpu", reports.append)
    wanted = [asked for asked in EVERY if asked.seed == 1 and not asked.epochs and asked.method != "hscc"]
    assert networks == [read(copied, asked) for asked in wanted]
    assert {progress.task for progress in reports} <= {"reading images"}
    assert times(copied) == before
    # It still belongs to the comparison with one epoch.
    with pytest.raises(ConfigError, match="finetune: 1 -> 2"):
        comparing.compare(config, [3.0], ["hscc"], [0], 2, copied, "cpu")


def test_a_comparison_of_version_0_1_0_is_read_to_the_same_summary_and_goes_on(config, tmp_path, monkeypatch):
    tree = STUDY | {"data": STUDY["data"] | {"image_size": 16}}
    config = StudyConfig.from_tree(tree, "as before")
    out = shutil.copytree(BEFORE, tmp_path / "out")
    before, reports = times(out), []

    def go_on():
        return comparing.compare(config, [3.0, 5000.0], ["hscc", "global-svd"], [0], 1, out, "cpu", reports.append)

    summaries = [summary.stored() for summary in summarise(go_on())]
    for summary in summaries:
        summary["ratio"] = summary.pop("flops_ratio")
        assert summary.pop("refined") is False
    assert summaries == json.loads((BEFORE / "summary.json").read_text())
    assert {progress.task for progress in reports} <= {"reading images"}
    assert times(out) == before

    monkeypatch.setattr(comparing, "runners", lambda network, image_size: {})
    lost = Asked("hscc", 3.0, 0, 0)
    dense, expected = read(out, Asked("dense", 1.0, 0, 0)), read(out, lost)
    network_path(out, lost).unlink()
    (again,) = [network for network in go_on() if network.asked == lost]
    # Another machine may train to other weights, and they to other ranks: the budget is one of FLOPs, and the same
    # FLOPs may come with other numbers of parameters.
    assert again.failure is None
    assert again.macs == pytest.approx(expected.macs, rel=0.05)
    assert 3 <= dense.macs / again.macs < 1.1 * 3
    assert again.parameters < 0.6 * dense.parameters
    assert len(again.right) == len(expected.right)
    accuracy, error = expected.quality.metrics["accuracy"], expected.quality.errors["accuracy"]
    assert again.quality.metrics["accuracy"] == pytest.approx(accuracy, abs=4 * error)
    assert json.loads(network_path(out, lost).read_text())["format"] == 2
    assert {name: time for name, time in times(out).items() if before[name] != time}.keys() == {
        network_path(out, lost).name
    }


def test_what_is_named_twice_is_measured_once(config, tmp_path, monkeypatch):
    fine_tuned = []
    monkeypatch.setattr(comparing, "runners", lambda network, image_size: {})
    monkeypatch.setattr(comparing, "fine_tune", lambda network, *rest: fine_tuned.append(network))
    networks = comparing.compare(config, [3.0, 3], ["hscc", "hscc"], [0, 0], 1, tmp_path / "out", "cpu")
    measured = [(network.asked.method, network.asked.epochs) for network in networks]
    assert measured == [("dense", 0), ("dense", 1), ("hscc", 0), ("hscc", 1)]
    assert len(fine_tuned) == 2


def test_a_killed_comparison_leaves_whole_files_and_goes_on(cli, folder, tmp_path):
    out = tmp_path / "out"
    options = ("own.yaml", "--methods", "global-svd,alds", "--budgets", "2", "--seeds", "0", "--out", out)
    environment = {"HSCC_CACHE": str(folder / "cache")}
    command = command_line.start("compare", *options, cwd=folder, env=environment)
    while len(list(out.glob("rows/*.json"))) < 2:
        assert command.returncode is None
        time.sleep(0.01)
    command.kill()

    left = sorted(out.glob("rows/*.json"))
    assert len(left) == 2
    for path in left:
        assert read_network(path).failure is None
    before = {path: path.stat().st_mtime_ns for path in left}
    cli("compare", *options, cwd=folder, env=environment)
    after = {path: path.stat().st_mtime_ns for path in out.glob("rows/*.json")}
    pairs = [("dense", 1.0), ("global-svd", 2.0), ("alds", 2.0)]
    assert after.keys() == {network_path(out, Asked(method, budget, 0, 0)) for method, budget in pairs}
    assert before.items() <= after.items()
    assert (out / "summary.json").exists()


# Refusals and failures.


def test_a_budget_out_of_reach_is_a_line_and_not_a_crash(main, tmp_path):
    arguments = ("compare", "own.yaml", "--methods", "hscc,global-svd", "--budgets", "5000", "--seeds", "0")
    arguments = (*arguments, "--out", "out")
    printed = main(*arguments)
    for method in ("hscc", "global-svd"):
        (line,) = [line for line in printed.out.splitlines() if line.startswith(f"{method} at 5000x, split 0: ")]
        assert re.search(r"out of reach: .* gives \d|reaches a budget of \d.* at most", line)
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())
    by_method = {summary["method"]: summary for summary in stored}
    assert by_method["hscc"]["accuracy"] is None
    assert by_method["hscc"]["failures"]
    assert by_method["dense"]["accuracy"] > 0.5
    before = times(tmp_path / "out")
    assert main(*arguments).out == printed.out
    assert times(tmp_path / "out") == before


def test_a_network_that_answers_nothing_finite_is_a_failure(config, tmp_path, monkeypatch):
    def ruin(network, *rest):
        with torch.no_grad():
            next(network.parameters()).fill_(math.nan)

    monkeypatch.setattr(comparing, "runners", lambda network, image_size: {})
    monkeypatch.setattr(comparing, "fine_tune", ruin)
    networks = comparing.compare(config, [3.0], ["global-svd"], [0], 1, tmp_path / "out", "cpu")
    assert [network.failure is None for network in networks] == [True, False, True, False]
    assert "not finite" in networks[-1].failure


def test_a_network_that_cannot_be_calibrated_is_no_failure_of_a_method(config, tmp_path, monkeypatch):
    opened = comparing.open_dense(config, "cpu")
    ruined = copy.deepcopy(opened.network)
    with torch.no_grad():
        next(ruined.parameters()).fill_(math.nan)
    monkeypatch.setattr(comparing, "open_dense", lambda *rest: replace(opened, network=ruined))
    with pytest.raises(ModelError, match="not finite"):
        comparing.compare(config, [3.0], ["global-svd"], [0], 0, tmp_path / "out", "cpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "hscc,magic"], ["'magic'", "tucker-2"]),
        (["--methods", "hscc,"], ["no method ''"]),
        (["--budgets", "1"], ["above 1 and at most 10,000, not 1"]),
        (["--budgets", "3,0.5"], ["above 1 and at most 10,000, not 0.5"]),
        (["--budgets", "3,1e308"], ["at most 10,000, not 1e+308"]),
        (["--budgets", "-3"], ["above 1 and at most 10,000, not -3"]),
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
        (["--out", "precious/file/new"], ["file", "another folder"]),
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
    assert [words for words in said if words not in line] == []
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


@pytest.mark.parametrize("name", ["comparison.json", "rows/split0-dense-1x-0epochs.json"])
def test_a_damaged_folder_is_refused(main, copied, name):
    (copied / name).write_text("{")
    (line,) = main("compare", "own.yaml", *OPTIONS, "--out", "out", code=2).err.splitlines()
    assert f"{name} is damaged" in line


def test_other_images_and_another_checkpoint_are_refused(config, copied):
    path = copied / "comparison.json"
    stored = json.loads(path.read_text())
    for name in ("images", "checkpoint"):
        path.write_text(json.dumps(stored | {name: "of another"}))
        with pytest.raises(ConfigError, match=f"another comparison .other {name}."):
            comparing.compare(config, [3.0], ["hscc"], [0], 1, copied, "cpu")
    with pytest.raises(ConfigError, match="cannot read checkpoint"):
        comparing.compare(config.with_paths(None, copied / "weights.pt"), [3.0], ["hscc"], [0], 1, copied, "cpu")


def test_a_checkpoint_belongs_to_one_split(config, tmp_path):
    own = config.with_paths(None, tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="a checkpoint belongs to one split"):
        comparing.compare(own, [3.0], ["hscc"], [0, 1], 0, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


def test_weights_that_a_network_comes_with_belong_to_one_split(config, tmp_path, monkeypatch):
    (tmp_path / "own_split.py").write_text(
        "from torch import nn\n\n\ndef make(classes):\n    layer = nn.Linear(192, classes)\n"
        "    nn.init.eye_(layer.weight), nn.init.zeros_(layer.bias)\n    return nn.Sequential(nn.Flatten(), layer)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = config.model_copy(update={"model": config.model.model_copy(update={"name": "own_split:make"})})
    with pytest.raises(ConfigError, match=r"own_split:make comes with belong to one split: give one seed"):
        comparing.compare(own, [3.0], ["hscc"], [0, 1], 0, tmp_path / "out", "cpu")
    assert not list((tmp_path / "out" / "rows").iterdir())


# Refining.


def test_networks_are_measured_refined_too_whatever_method_made_them(config, tmp_path):
    methods = ("hscc", "pruning")
    short = config.refine.model_copy(update={"epochs": 2, "images": 256})
    config = config.model_copy(update={"refine": short})
    networks = comparing.compare(config, [3.0], methods, [0], 0, tmp_path / "out", "cpu", refine=True)
    asked = [network.asked for network in networks]
    assert [(one.method, one.refined) for one in asked] == [
        *(("dense", False), ("hscc", False), ("hscc", True), ("pruning", False), ("pruning", True)),
    ]
    by_asked = {network.asked: network for network in networks}
    for network in networks:
        assert network.failure is None
        assert network.quality is not None
        if network.asked.refined:
            plain = by_asked[replace(network.asked, refined=False)]
            assert (network.macs, network.parameters) == (plain.macs, plain.parameters)
            assert not network.latency
    names = [summary.name for summary in summarise(networks)]
    assert names == ["dense", "hscc", "hscc, refined", "pruning", "pruning, refined"]
    refining = config.model_copy(update={"refine": short.model_copy(update={"epochs": 1})})
    with pytest.raises(ConfigError, match="another refine section"):
        comparing.compare(refining, [3.0], methods, [0], 0, tmp_path / "out", "cpu", refine=True)
