import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

import hscc_search
from hscc_search.cli.entry import commands
from hscc_search.errors import ConfigError, ExportError, StudyError
from hscc_search.export.formats import Extras
from hscc_search.export.front import export_front
from hscc_search.export.index import Asked, Index
from hscc_search.session import read_study
from hscc_search.study import stored_study


@pytest.fixture(scope="module")
def short(study):
    """The study with two trials on its front, so that an export takes a moment."""
    members = {point.trial for point in study.front[-2:]}
    return replace(study, points=tuple(point for point in study.points if point.trial in members))


class Stopped(Exception):
    """What a stop raises in the middle of the work."""


def state(out):
    """What each file of each exported folder is, without its content."""
    return {path: path.stat() for path in sorted(out.glob("*-trial-*/*"))}


@pytest.fixture(scope="module")
def exported_front(short, tmp_path_factory):
    """A front whose export was stopped while the second trial was written, as it was then, and as the same went on."""
    out = tmp_path_factory.mktemp("front") / "deeper" / "front"
    told = []

    def stop(progress):
        told.append(progress)
        if progress.done == 1 and "loading the models back" in progress.note:
            raise Stopped

    with pytest.raises(Stopped):
        export_front(short, short.config, out, "cpu", stop)
    between = {path.name for path in out.iterdir()}, state(out), json.loads((out / "index.json").read_text())
    page = (out / "index.html").read_text()
    opened = {progress.task for progress in told}
    entries = export_front(short, short.config, out, "cpu", told.append)
    return out, between, page, opened, told, entries


def test_a_stopped_export_leaves_whole_folders_and_the_same_one_continues(exported_front, short):
    out, (names, before, index), page, _, _, entries = exported_front
    first, second = [f"{place:02d}-trial-{choice.point.trial}" for place, choice in enumerate(short.ranked(), start=1)]
    assert names == {first, "index.json", "index.html"}
    assert [entry["exported"] for entry in index["trials"]] == [True, False]
    assert "not exported yet" in page
    assert {path.name for path in out.iterdir()} == {first, second, "index.json", "index.html"}
    after = state(out)
    for path, was in before.items():
        assert (after[path].st_ino, after[path].st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
    assert [entry["folder"] for entry in entries] == [first, second]
    assert json.loads((out / "index.json").read_text())["trials"] == entries
    for name in (first, second):
        assert hscc_search.load(out / name)


def test_images_and_network_are_opened_once_and_progress_is_over_all_trials(exported_front, short):
    out, _, _, opened, told, _ = exported_front
    assert f"exporting the front to {out}" in opened
    assert not any(progress.task.startswith("exporting to") for progress in told)
    of_all = [progress for progress in told if progress.task == f"exporting the front to {out}"]
    assert {progress.total for progress in of_all} == {2}
    assert [progress.done for progress in of_all][-1] == 2
    # Each opening says once what becomes of the weights: one for the export that was stopped, one for the other.
    assert sum(progress.task.startswith("training:") for progress in told) == 2


def test_each_entry_is_what_its_folder_and_the_study_say(exported_front, short):
    out, _, _, _, _, entries = exported_front
    ranked = short.ranked()
    for entry, choice in zip(entries, ranked, strict=True):
        metrics = json.loads((out / entry["folder"] / "metrics.json").read_text())
        assert entry["trial"] == metrics["trial"] == choice.point.trial
        assert metrics["chosen"] == choice.stored()
        assert choice.why in (out / entry["folder"] / "README.md").read_text()
        for network in ("dense", "compressed"):
            assert entry[network]["cost"].items() <= metrics[network]["cost"].items()
            for part in ("test", "validation"):
                accuracy = entry[network][part]["accuracy"]
                assert accuracy["value"] == metrics[network][part]["metrics"]["accuracy"]
                assert accuracy["error"] == metrics[network][part]["errors"]["accuracy"]
        assert entry["compressed"]["validation"]["accuracy"]["value"] == choice.point["accuracy"]
    knees = [short.confidence.knees.get(choice.point.trial, 0) for choice in ranked]
    assert knees == sorted(knees, reverse=True)


def test_another_front_and_what_was_changed_are_refused_before_anything_is_opened(exported_front, short, tmp_path):
    out = exported_front[0]
    told = []
    alone = replace(short, points=short.points[:1])
    with pytest.raises(
        ExportError, match=r"holds the export of another front \(trials: \[.*\] -> \[\d\]\): name another"
    ):
        export_front(alone, alone.config, out, "cpu", told.append)
    with pytest.raises(ExportError, match=r"another front \(finetuning_epochs: 0 -> 3\)"):
        export_front(short, short.config.finetuned(3), out, "cpu", told.append)
    with pytest.raises(ExportError, match=r"another front \(formats: \[\] -> \['pt2', 'uint8'\]\)"):
        export_front(short, short.config, out, "cpu", told.append, extras=Extras(("uint8", "pt2")))
    with pytest.raises(ExportError, match=r"another front \(refine: False -> True\)"):
        export_front(short, short.config, out, "cpu", told.append, refine=True)
    with pytest.raises(ExportError, match="exists and holds no export of a front: name one that does not"):
        export_front(short, short.config, next(out.glob("01-*")), "cpu", told.append)
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(ExportError, match="exists and holds no export of a front"):
        export_front(short, short.config, tmp_path / "precious", "cpu", told.append)
    card = next(out.glob("02-*")) / "README.md"
    text = card.read_text()
    card.write_text(text + "changed")
    with pytest.raises(ExportError, match=r"was changed since it was exported.*: remove it, and the same command"):
        export_front(short, short.config, out, "cpu", told.append)
    card.write_text(text)
    with pytest.raises(StudyError, match="the front is empty"):
        export_front(replace(short, points=()), short.config, tmp_path / "empty", "cpu", told.append)
    assert not told
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_the_command_exports_all_and_says_what_each_trial_became(short, exported_front, monkeypatch):
    out, _, _, _, _, entries = exported_front
    monkeypatch.setattr(stored_study, "read_study", lambda storage, name: short)
    command = ["export", "digits", "--select", "all", "--out", str(out)]
    done = CliRunner().invoke(commands, command, catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [*(entry["folder"] for entry in entries), "exported", "next"]
    assert "place 1 of 2, the knee of " in lines[0]
    assert lines[-1].startswith(f"next: open {out / 'index.html'}")


def test_a_session_exports_the_front_but_not_with_one_network(study, exported_front, tmp_path):
    out, _, _, _, _, entries = exported_front
    session = read_study(study.config.storage, study.config.name)
    members = {entry["trial"] for entry in entries}
    session = replace(session, points=tuple(point for point in session.points if point.trial in members))
    assert session.export("all", out, device="cpu") == out
    with pytest.raises(ConfigError, match="the given network is of one"):
        session.export("all", tmp_path / "new", network=hscc_search.load(out / entries[0]["folder"]))
    with pytest.raises(ConfigError, match="only an export takes it"):
        session.compressed("all")
    with pytest.raises(ConfigError, match="only an export takes it"):
        session.select("all")


def test_the_index_escapes_names(short, tmp_path):
    hostile = "<script>alert(1)</script>"
    asked = Asked(hostile, "f", "w", 2, True, (0,))
    metrics = ("accuracy", f"recall:{hostile}")
    choice = replace(short.ranked()[0], reason=f"fewest FLOPs of 2 that keep recall:{hostile}>=0.5")
    index = Index(asked, (choice,), (hostile, "b & b"), metrics, None)
    index.claim(tmp_path / "front")
    page = (tmp_path / "front" / "index.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 4
    assert "b &amp; b" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "fine-tuned for 2 epochs" in page


def test_a_measured_latency_is_shown(exported_front, short, tmp_path):
    out = tmp_path / "front"
    shutil.copytree(exported_front[0], out)
    choices = tuple(
        replace(choice, point=replace(choice.point, metrics={**choice.point.metrics, "latency": 1.25}))
        for choice in short.ranked()
    )
    trials = tuple(choice.point.trial for choice in choices)
    asked = Asked("digits", "f", "w", 0, False, trials)
    entries = Index(asked, choices, short.record.classes, ("accuracy",), 4.5).write(out)
    assert [(entry["compressed"]["cost"]["latency"], entry["dense"]["cost"]["latency"]) for entry in entries] == [
        (1.25, 4.5),
        (1.25, 4.5),
    ]
    page = (out / "index.html").read_text()
    assert "latency in ms" in page
    assert page.count("<td>1.250</td>") == 2
    assert page.count("<td>4.500</td>") == 1
