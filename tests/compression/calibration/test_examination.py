import pytest
import torch
from geometry import seeded, smooth_images
from torch import nn

from hscc_search.compression.calibration.examination import TINY_SHARE, examine, inspect
from hscc_search.compression.inspection import Inspection
from hscc_search.errors import HsccError


def pooled(width, *layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


def test_layers_that_are_too_small_to_matter_are_left_dense():
    inspection = inspect(seeded(lambda: pooled(64, nn.Conv2d(3, 64, 5))), smooth_images(4, side=32))
    first, last = inspection.layers
    assert (first.left_dense, last.left_dense) == (None, "tiny")
    assert last.macs < TINY_SHARE * inspection.macs
    assert inspection.share == first.macs / (first.macs + last.macs)
    assert inspection.error < 1e-4


def test_a_share_below_a_fifth_is_said_with_the_cut_that_is_left():
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 7, padding=3, groups=8)]
    inspection = inspect(seeded(lambda: pooled(8, *layers)), smooth_images(400))
    (line,) = inspection.notices()
    assert line.startswith(f"only {inspection.share:.1%} of the multiply-adds")
    assert f"{1 / (1 - inspection.share):.3g}x fewer FLOPs are out of reach" in line


@pytest.mark.parametrize(("images", "short"), [(8, True), (64, False)])
def test_too_few_calibration_images_are_said_with_the_number_that_would_do(images, short):
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 32)))
    notices = inspect(network, smooth_images(images, side=16)).notices()
    assert bool(notices) == short
    if short:
        assert "8 calibration images give fewer responses than layer 1, 3 has channels" in notices[0]
        assert "64 images would do" in notices[0]


def test_multiply_adds_outside_of_layers_are_counted():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.kernel = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(8, 8, 3, 3))

        def forward(self, x):
            return nn.functional.conv2d(self.layer(x), self.kernel).mean((2, 3))

    inspection = inspect(seeded(Functional).eval(), smooth_images(4, side=16))
    assert inspection.macs_outside == 8 * 8 * 9 * 14 * 14
    assert inspection.macs == inspection.macs_outside + 3 * 8 * 16 * 16


def test_an_inspection_comes_back_as_it_was_stored_and_reads_as_lines():
    inspection = inspect(seeded(lambda: pooled(64, nn.Conv2d(3, 64, 5))), smooth_images(4, side=32))
    assert Inspection.from_stored(inspection.stored()) == inspection
    lines = str(inspection).splitlines()
    assert lines[0].split()[0] == "0"
    assert "compressible" in lines[0]
    assert "tiny" in lines[1]


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: pooled(4, nn.Conv2d(3, 4, 1)).double(), "float64"),
        (lambda: pooled(3, nn.Dropout2d(0.5), *[_Noise()]), "differently on each pass"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), _Dictionary()), "dict"),
    ],
    ids=["double", "noise", "dictionary"],
)
def test_a_network_of_another_kind_is_refused_in_one_line(network, words):
    with pytest.raises(HsccError, match=words) as refused:
        examine(network(), smooth_images(4, side=16))
    assert "\n" not in str(refused.value)


class _Noise(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


class _Dictionary(nn.Module):
    def forward(self, x):
        return {"scores": x.mean((2, 3))}
