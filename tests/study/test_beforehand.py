import pytest

from hscc_search.config import StudyConfig
from hscc_search.errors import StudyError
from hscc_search.progress import Notice
from hscc_search.study.beforehand import Notices, inspect_study


def test_lines_are_told_at_once_and_kept():
    told = []
    notices = Notices(told.append, strict=False)
    notices.tell(["first"])
    notices.tell(["second", "third"])
    assert [step.task for step in told] == ["warning: first", "warning: second", "warning: third"]
    assert all(isinstance(step, Notice) for step in told)
    assert notices.lines == ["first", "second", "third"]


def test_a_strict_study_is_refused_with_the_first_line():
    notices = Notices(lambda step: pytest.fail("told"), strict=True)
    notices.tell([])
    with pytest.raises(StudyError, match=r"^first \(without --strict this is a warning\)$"):
        notices.tell(["first", "second"])


def test_a_study_is_inspected_without_training_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path))
    inspection, notices = inspect_study(StudyConfig.from_file("digits", compression__calibration_images=64))
    assert [layer.left_dense for layer in inspection.layers] == [None] * 5 + ["tiny"]
    assert inspection.share > 0.99
    assert inspection.error < 1e-4
    assert any("128 images would do" in line for line in notices)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_network_that_cannot_be_exported_is_told_before_it_is_trained(monkeypatch, tmp_path):
    (tmp_path / "imagewise.py").write_text("""
import torch
from torch import nn


class ImageByImage(nn.Sequential):
    def forward(self, x):
        return super().forward(torch.stack([(image - image.mean()) / image.std() for image in x]))


def build(classes):
    return ImageByImage(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(64, classes))
""")
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    config = StudyConfig.from_file("digits", model__name="imagewise:build", compression__calibration_images=64)
    _, notices = inspect_study(config)
    assert any("no trial of this study can be exported: torch exports this network" in line for line in notices)
