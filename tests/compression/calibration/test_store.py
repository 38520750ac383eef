import gc
import hashlib
import os
import time

import pytest
import torch
from command_line import FORKS
from geometry import SIDE, Residual, random_images, seeded, smooth_images
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.calibration.store import cache_key
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError, ConfigError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path))
    return tmp_path / "calibrations"


def weights_of(calibration):
    setting = Setting(regions=4, clusters=2, budget=2, region_gain=0)
    return compress(calibration, setting).network.state_dict()


def same(state, expected):
    return state.keys() == expected.keys() and all(torch.equal(value, expected[name]) for name, value in state.items())


def must_not_run(*_):
    raise AssertionError("the calibration is in the cache")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_calibration_read_back_gives_the_identical_network(cache, memory_format):
    network = seeded(Residual).to(memory_format=memory_format)
    x = smooth_images(16).contiguous(memory_format=memory_format)
    passing = calibrate(network, x, batch_size=5)
    assert not cache.exists()
    made = calibrate(network, x, batch_size=5, keep=True)
    from_cache = calibrate(network, x, must_not_run, 5, keep=True)
    assert [folder.name for folder in cache.iterdir()] == [cache_key(network, x, 5)]
    for calibration in (made, from_cache):
        assert torch.equal(calibration.images, x)
        assert calibration.images.is_contiguous(memory_format=memory_format)
        assert calibration.folds == passing.folds
        assert calibration.inspection == passing.inspection
        assert calibration.macs == passing.macs
        assert same(calibration.network.state_dict(), passing.network.state_dict())
        for ours, theirs in zip(calibration.records, passing.records, strict=True):
            assert (ours.name, ours.lattice, ours.macs, ours.groups, ours.fully_connected, ours.bounds) == (
                (theirs.name, theirs.lattice, theirs.macs, theirs.groups, theirs.fully_connected, theirs.bounds)
            )
            assert torch.equal(ours.effects, theirs.effects)
            assert torch.equal(ours.profiles, theirs.profiles)
            assert torch.equal(ours.responses, theirs.responses)
            assert (ours.inputs is None) == (theirs.inputs is None)
            if ours.inputs is not None:
                assert (ours.inputs.size, ours.inputs.correlation) == (theirs.inputs.size, theirs.inputs.correlation)
                assert torch.equal(ours.inputs.covariance, theirs.inputs.covariance)
        assert same(weights_of(calibration), weights_of(passing))


def test_changes_to_a_calibration_do_not_reach_the_cache(cache):
    network, x = DigitsCNN(5, SIDE), smooth_images(8)
    calibration = calibrate(network, x, keep=True)
    calibration.images.zero_()
    calibration.records[0].responses.zero_()
    calibration.network[0].weight.data.zero_()
    del calibration
    gc.collect()
    again = calibrate(network, x, must_not_run, keep=True)
    assert torch.equal(again.images, x)
    assert again.records[0].responses.abs().max() > 0
    assert same(again.network.state_dict(), network.state_dict())


def test_the_key_depends_on_the_network_the_images_and_the_batch_size():
    network, x = DigitsCNN(5, SIDE), smooth_images(8)
    other_weights = seeded(lambda: DigitsCNN(5, SIDE), seed=1)
    other_activations = nn.Sequential(*[nn.GELU() if isinstance(layer, nn.ReLU) else layer for layer in network])
    keys = {
        cache_key(network, x, 64),
        cache_key(network, x, 32),
        cache_key(network, x[:4], 64),
        cache_key(network, x.flip(0), 64),
        cache_key(other_weights, x, 64),
        cache_key(other_activations, x, 64),
    }
    assert len(keys) == 6
    assert cache_key(network, x.clone(), 64) == cache_key(network, x, 64)


def truncate(folder):
    with (folder / "1.npy").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)


DAMAGES = {
    "a response file is short": truncate,
    "a response file is missing": lambda folder: (folder / "0.npy").unlink(),
    "the images are missing": lambda folder: (folder / "images.npy").unlink(),
    "the list is short": lambda folder: (folder / "calibration.json").write_text('{"sizes": {'),
    "the list is missing": lambda folder: (folder / "calibration.json").unlink(),
    "the list lacks an entry": lambda folder: (folder / "calibration.json").write_text('{"sizes": {}}'),
    "all is gone": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_made_again(cache, damage):
    network, x = DigitsCNN(5, SIDE), smooth_images(8)
    before = calibrate(network, x, keep=True)
    expected = weights_of(before)
    (folder,) = cache.iterdir()
    damage(folder)
    reports = []
    again = calibrate(network, x, reports.append, keep=True)
    assert reports
    assert same(weights_of(again), expected)
    assert list(cache.iterdir()) == [folder]
    assert same(weights_of(calibrate(network, x, must_not_run, keep=True)), expected)


def test_damage_that_cannot_be_removed_is_an_error_of_one_line(cache, monkeypatch):
    network, x = DigitsCNN(5, SIDE), smooth_images(8)
    calibrate(network, x, keep=True)
    (folder,) = cache.iterdir()
    truncate(folder)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(CompressionError, match=r"is damaged \(1\.npy is not .*cannot be removed \(Permission denied\)"):
        calibrate(network, x, keep=True)


def test_a_cache_that_is_no_folder_is_an_error_of_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="HSCC_CACHE"):
        calibrate(DigitsCNN(5, SIDE), smooth_images(4), keep=True)


def test_a_pass_that_fails_keeps_nothing(cache):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).requires_grad_(False)
    for layer in network:
        layer.weight.fill_(1e30)
    with pytest.raises(CompressionError, match="not finite"):
        calibrate(network, random_images(), keep=True)
    assert list(cache.iterdir()) == []


def test_folders_of_killed_processes_are_removed_after_a_day(cache):
    network, x = DigitsCNN(5, SIDE), smooth_images(4)
    day = 86400
    for name, age, file_age in (("old", 2, 2), ("running", 2, 0), ("young", 0, 0)):
        folder = cache / f".{name}.x"
        folder.mkdir(parents=True)
        (folder / "0.npy").write_text("")
        os.utime(folder / "0.npy", (time.time() - file_age * day,) * 2)
        os.utime(folder, (time.time() - age * day,) * 2)
    calibrate(network, x, keep=True)
    assert {folder.name for folder in cache.iterdir()} == {".running.x", ".young.x", cache_key(network, x, 64)}


def race(start, results, cache_folder):
    os.environ["HSCC_CACHE"] = cache_folder
    network = seeded(lambda: DigitsCNN(5, SIDE))
    start.wait(300)
    weights = weights_of(calibrate(network, smooth_images(24), batch_size=4, keep=True))
    results.put(hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights.values())).hexdigest())


def test_processes_that_calibrate_at_once_get_the_same(cache):
    start, results = FORKS.Barrier(3), FORKS.Queue()
    arguments = (start, results, os.environ["HSCC_CACHE"])
    processes = [FORKS.Process(target=race, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(400)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len({results.get(timeout=10) for _ in processes}) == 1
    assert len(list(cache.iterdir())) == 1
