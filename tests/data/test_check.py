import shutil

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hscc_search.config import DataConfig
from hscc_search.data import check_images


@pytest.fixture
def photographs():
    return [Image.fromarray(photograph[:200, :200]) for photograph in load_sample_images().images]


def test_check_counts_copies_conflicts_and_unreadable_files(tmp_path, photographs):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    photographs[0].save(tmp_path / "cat" / "0.png")
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / "1.png")
    photographs[1].save(tmp_path / "cat" / "2.png")
    photographs[0].save(tmp_path / "dog" / "3.jpg", quality=80)
    (tmp_path / "dog" / "4.jpg").write_text("no image")
    report = check_images(DataConfig(path=tmp_path))
    assert report.classes == {"cat": 3, "dog": 2}
    assert report.exact_copies == 1
    assert report.near_pairs == 2
    conflicts = [(first.name, second.name) for first, second in report.conflicts]
    assert conflicts == [("0.png", "3.jpg"), ("1.png", "3.jpg")]
    assert [path.name for path, _ in report.unreadable] == ["4.jpg"]
    assert "cannot identify" in report.unreadable[0][1]


def test_check_finds_nothing_in_a_clean_folder(image_folder):
    report = check_images(DataConfig(path=image_folder({"cat": 3, "dog": 2})))
    assert report.classes == {"cat": 3, "dog": 2}
    assert (report.exact_copies, report.near_pairs, report.conflicts, report.unreadable) == (0, 0, [], [])


def test_a_check_judges_copies_as_it_is_told(tmp_path, photographs):
    for name, photograph in zip(("cat", "dog"), photographs, strict=True):
        (tmp_path / name).mkdir()
        photograph.save(tmp_path / name / "0.png")
        photograph.save(tmp_path / name / "0.bmp")
        photographs[0].save(tmp_path / name / "1.jpg", quality=80)
    found = {kind: check_images(DataConfig(path=tmp_path, copies=kind)) for kind in ("near", "shape", "exact", "none")}
    assert {kind: report.near_pairs for kind, report in found.items()} == {"near": 6, "shape": 6, "exact": 2, "none": 0}
    assert [len(report.conflicts) for report in found.values()] == [3, 3, 1, 0]


def test_a_check_tells_of_skipped_files_empty_images_and_the_level_of_classes(image_folder):
    folder = image_folder({"2024/cat": 2, "2024/dog": 2, "2025/cat": 2})
    (folder / "2024" / ".DS_Store").touch()
    Image.new("RGB", (40, 40), (3, 3, 3)).save(folder / "2025" / "cat" / "black.png")
    report = check_images(DataConfig(path=folder, class_level=2))
    assert report.classes == {"cat": 5, "dog": 2}
    assert [path.name for path in report.empty] == ["black.png"]
    skipped, parts, empty = report.notes
    assert "1 hidden (2024/.DS_Store)" in skipped
    assert "dog (2024)" in parts
    assert "1 of 7 (" in empty
    assert empty.endswith("2025/cat/black.png)")


def test_every_file_is_reported_once(image_folder):
    folder, steps = image_folder({"cat": 3, "dog": 2}), []
    (folder / "dog" / "broken.png").write_text("no image")
    check_images(DataConfig(path=folder), steps.append)
    assert [(step.done, step.total) for step in steps] == [(done, 6) for done in range(1, 7)]
