import numpy as np
import onnx
import pytest
from agreement import OPTIMISED, UNOPTIMISED, in_batches, onnx_runner
from geometry import Residual, seeded, smooth_images
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hscc_search.runtime import int8
from hscc_search.runtime.int8 import write_int8
from hscc_search.runtime.ties import _without_ties

IMAGES = smooth_images(300)


@given(st.lists(st.floats(2e-3, 3), min_size=1, max_size=8), st.integers(-20_000, 20_000))
def test_no_whole_number_times_a_factor_lies_near_a_tie(factors, number):
    wanted = np.array(factors)
    found = _without_ties(wanted)
    assert (wanted <= found).all()
    assert (found <= 1.005 * wanted).all()
    assert np.abs((number * found) % 1 - 0.5).min() > 1 / 2047


def test_small_factors_are_hardly_changed():
    factors = np.geomspace(1e-6, 2e-3, 500)
    assert (_without_ties(factors) / factors).max() < 1.005


class Bounded(nn.Module):
    """A block as MobileNetV2's: ReLU6, a depthwise convolution, and a sum."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6())
        self.block = nn.Sequential(
            *(nn.Conv2d(16, 32, 1), nn.ReLU6(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU6()),
            nn.Conv2d(32, 16, 1),
        )
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(864, 5))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.block(x))


def written(build, path):
    write_int8(seeded(build), (3, 16, 16), IMAGES[:128].numpy(), path)
    return path


def steps_apart(path):
    """The largest difference between optimised and plain answers, in steps of which the scores' range has 255."""
    optimised, plain = (in_batches(onnx_runner(path, level), IMAGES.numpy(), 32) for level in (OPTIMISED, UNOPTIMISED))
    return np.abs(optimised - plain).max() / np.ptp(optimised) * 255


@pytest.mark.parametrize("build", [Residual, Bounded])
def test_integers_and_floats_round_alike(build, tmp_path):
    path = written(build, tmp_path / "model.onnx")
    assert steps_apart(path) < 1e-3
    assert {"Conv", "Add"} <= {node.op_type for node in onnx.load(path).graph.node}


def test_they_do_not_with_scales_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "avoid_ties", lambda rounded, floats: None)
    monkeypatch.setattr(int8, "share_ranges", lambda model, ranges: ranges)
    assert steps_apart(written(Residual, tmp_path / "model.onnx")) > 0.1
