import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hscc_search.cli import main


@pytest.fixture
def check(monkeypatch, capfd):
    """Run ``data check`` in this process, and return its exit code, its output and its error lines."""
    terminate = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hscc-search", "data", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        stdout, stderr = capfd.readouterr()
        return ended.value.code, stdout, stderr

    yield run
    signal.signal(signal.SIGTERM, terminate)


NAMES = ("scan [left]", "scan [right]", "[bold]x[/bold]", "[/]", "a\\", "a\\[b]", ":eye: 😀", "%s {0} $HOME")


def test_names_of_classes_are_shown_as_they_are(check, image_folder):
    names = [name.replace("/", "|") for name in NAMES]
    code, stdout, stderr = check(image_folder(dict.fromkeys(names, 2)))
    assert (code, stderr) == (0, "")
    lines = [line.strip() for line in stdout.splitlines()]
    for name in names:
        assert any(line.startswith(f"{name} ") and line.endswith(" 2") for line in lines), name


def test_a_very_long_name_is_shown_whole_and_breaks_no_number(check, image_folder):
    name = "".join(map(str, range(80, 164)))
    _, stdout, _ = check(image_folder({name: 1, "cat": 1}))
    rows = [line.split() for line in stdout.splitlines() if line.strip() and line.split()[0] in name]
    assert "".join(row[0] for row in rows) == name
    assert [row[1:] for row in rows] == [["1"], *([[]] * (len(rows) - 1))]


def test_files_of_unprintable_names_are_named_in_one_line(check, image_folder):
    folder = image_folder({"cat": 2, "dog": 2})
    Path(os.fsdecode(os.fsencode(folder) + b"/dog/\xff\n\x1b[31m.png")).write_bytes(b"no image")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\n.txt")).touch()
    code, stdout, stderr = check(folder)
    assert code == 2
    assert len(stderr.splitlines()) == 1
    assert "\x1b" not in stdout
    assert rf"{folder}/dog/\xff\n\x1b[31m.png" in stdout
    assert r"(\xff\n.txt)" in stdout
    code, stdout, _ = check(folder, "--format", "json")
    assert os.fsencode(json.loads(stdout)["unreadable"][0]["file"]) == os.fsencode(folder) + b"/dog/\xff\n\x1b[31m.png"


@pytest.mark.parametrize("name", [b"b\xff", b"b\nc", b"b\x1b[31m"], ids=["no UTF-8", "line break", "escape"])
def test_a_class_of_an_unprintable_name_ends_in_one_line(check, image_folder, name):
    folder = image_folder({"cat": 2, "dog": 2})
    os.rename(folder / "dog", os.path.join(os.fsencode(folder), name))  # noqa: PTH104, PTH118 - a name of bytes
    code, stdout, stderr = check(folder)
    assert (code, stdout) == (2, "")
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("error: the name of class folder b")
    assert "\x1b" not in stderr


def test_discs_of_two_colours_are_no_conflicts_and_long_lists_are_cut_with_a_count(check, tmp_path):
    for number in range(12):
        for name, colour in (("red", (200 + number, 40, 30)), ("green", (40, 200 + number, 30))):
            image = Image.new("RGB", (64, 64), "white")
            ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill=colour)
            (tmp_path / name).mkdir(exist_ok=True)
            image.save(tmp_path / name / f"{number}.png")
    _, stdout, _ = check(tmp_path)
    assert "label conflicts: 0 pairs" in stdout
    _, stdout, _ = check(tmp_path, "--copies", "shape")
    lines = stdout.splitlines()
    assert "label conflicts: 144 pairs of copies carry different labels" in lines
    assert "  and 136 more" in lines
    assert len(lines) < 30
    _, stdout, _ = check(tmp_path, "--copies", "shape", "--format", "json")
    assert len(json.loads(stdout)["label_conflicts"]) == 144
    _, stdout, _ = check(tmp_path, "--copies", "none")
    assert "no image counts as a copy" in stdout


def test_many_unreadable_files_are_cut_with_a_count(check, image_folder):
    folder = image_folder({"cat": 2, "dog": 2})
    for number in range(1200):
        (folder / "dog" / f"{number:04}.jpg").touch()
    code, stdout, stderr = check(folder)
    assert code == 2
    assert "1200 unreadable files" in stderr
    assert "unreadable: 1,200 files" in stdout
    assert "0000.jpg: an empty file of 0 bytes" in stdout
    assert stdout.rstrip().endswith("and 1,192 more")


def test_what_is_skipped_and_nearly_empty_is_told_and_listed(check, image_folder):
    folder = image_folder({"cat": 2, "dog": 2})
    shutil.copytree(folder / "cat", folder / "cat" / ".ipynb_checkpoints")
    Image.fromarray(np.full((40, 40), 253, np.uint8)).save(folder / "dog" / "white.png")
    code, stdout, stderr = check(folder)
    assert (code, stderr) == (0, "")
    assert "1 hidden (cat/.ipynb_checkpoints)" in stdout
    assert f"1 of 5 ({folder}/dog/white.png)" in stdout
    tree = json.loads(check(folder, "--format", "json")[1])
    assert tree["classes"] == {"cat": 2, "dog": 3}
    assert tree["skipped"] == {"hidden": [f"{folder}/cat/.ipynb_checkpoints"], "others": [], "links": []}
    assert tree["nearly_empty"] == [f"{folder}/dog/white.png"]


def test_the_level_of_the_classes_can_be_given(check, image_folder):
    folder = image_folder({"2024/cat": 2, "2024/dog": 2, "2025/cat": 1})
    code, _, stderr = check(folder)
    assert code == 2
    assert "--class-level" in stderr
    tree = json.loads(check(folder, "--class-level", "2", "--format", "json")[1])
    assert tree["classes"] == {"cat": 3, "dog": 2}


def test_a_table_is_checked_with_its_groups_and_its_split(check, image_folder, tmp_path):
    folder = image_folder({"cat": 6, "dog": 6})
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / "6.png")
    rows = [
        (f"images/{name}/{n}.png", name, n // 3, "test" if n == 6 else "train")
        for name in ("cat", "dog")
        for n in range(6)
    ]
    rows.append(("images/cat/6.png", "cat", 2, "test"))
    lines = ["path,label,group,split", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "images.csv").write_text("\n".join(lines))
    code, stdout, stderr = check(tmp_path / "images.csv")
    assert (code, stderr) == (0, "")
    assert "groups: 13 images are of 3 groups" in stdout
    assert "parts: 12 images in train, 1 images in test" in stdout
    assert "1 of 1 images of the test part have copies in another one" in stdout
    tree = json.loads(check(tmp_path / "images.csv", "--format", "json")[1])
    assert (tree["groups"], tree["parts"]) == (3, {"train": 12, "test": 1})
    assert tree["leak"].startswith("the parts of this split")


def test_a_study_file_is_checked_as_it_stands(check, image_folder, tmp_path):
    folder = image_folder({"cat": 4, "dog": 4})
    study = tmp_path / "mine.yaml"
    study.write_text(f"name: mine\ndata: {{path: {folder}, groups: '[01]'}}\nmodel: {{name: digits_cnn}}\n")
    code, stdout, stderr = check(study)
    assert (code, stdout) == (2, "")
    assert "finds no group in 4 of 8 paths (cat/2.png, cat/3.png" in stderr
    assert "groups: 8 images are of 4 groups" in check(study, "--groups", r"\d")[1]
    assert check(folder, "--groups", "(")[2].startswith("error: data check: groups: '(' is no regular expression")


def test_names_that_look_like_patients_are_told_in_a_line_that_can_be_pasted(check, image_folder):
    folder = image_folder({"cat": 12, "dog": 12})
    for path in folder.rglob("*.png"):
        path.rename(path.with_name(f"p{int(path.stem) // 3}{path.parent.name}_s{int(path.stem) % 3}.png"))
    stdout = check(folder)[1]
    expression = stdout.partition("say data.groups: '")[2].partition("', or")[0]
    assert "groups: 24 images are of 8 groups" in check(folder, "--groups", expression)[1]
