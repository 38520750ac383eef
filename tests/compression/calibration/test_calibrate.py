import gc
from dataclasses import replace

import pytest
import torch
from geometry import SIDE, Residual, random_images, seeded, smooth_images
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError


def test_calibration_leaves_weights_hooks_and_the_mode_alone_and_reports_each_batch():
    network = seeded(Residual).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    reports = []
    calibration = calibrate(network, random_images(20), report=reports.append, batch_size=4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not calibration.network.training
    for module in (*network.modules(), *calibration.network.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert [(step.done, step.total) for step in reports] == [(done, 20) for done in range(4, 21, 4)]


def test_calibration_leaves_gradients_and_their_flags_alone():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 3))
    network[3].bias.requires_grad_(False)
    calibrate(network, torch.randn(8, 3, 3, 3))
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, True, True, False]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_files_live_as_long_as_the_calibration():
    calibration = calibrate(DigitsCNN(5, SIDE), smooth_images(8))
    files = [record.file for record in calibration.records]
    assert len(set(files)) == len(files) == 5
    for record in calibration.records:
        assert record.file.stat().st_size >= record.responses.numel() * 4
    compressed = compress(calibration, Setting(regions=4, clusters=2, budget=2))
    assert all(file.exists() for file in files)
    responses = calibration.records[0].responses
    expected = responses.clone()
    del calibration, record
    gc.collect()
    assert not any(file.exists() for file in files)
    assert not files[0].parent.exists()
    # The compressed network and the mapped responses outlive the files.
    assert torch.isfinite(compressed.network(smooth_images(2))).all()
    assert torch.equal(responses, expected)


def test_a_calibration_that_fails_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).requires_grad_(False)
    for layer in network:
        layer.weight.fill_(1e30)
    with pytest.raises(CompressionError, match="not finite"):
        calibrate(network, random_images())
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_writing_to_responses_does_not_reach_the_file():
    calibration = calibrate(DigitsCNN(5, SIDE), smooth_images(4))
    record = calibration.records[0]
    before = record.responses.clone()
    record.responses.zero_()
    assert before.abs().max() > 0
    assert torch.equal(record.responses, before)


def test_a_result_is_derived_once_per_key():
    calibration = calibrate(DigitsCNN(5, SIDE), smooth_images(4))
    calls = []

    def derive():
        calls.append("called")
        return len(calls)

    assert [calibration.remember(key, derive) for key in ("a", "b", "a", ("a", 1))] == [1, 2, 1, 3]


def test_a_changed_calibration_remembers_nothing():
    calibration = calibrate(DigitsCNN(5, SIDE), smooth_images(4))
    calibration.remember("count", lambda: len(calibration.records))
    fewer = replace(calibration, records=calibration.records[:2])
    assert fewer.remember("count", lambda: len(fewer.records)) == 2
    assert calibration.remember("count", lambda: 0) == len(calibration.records)
