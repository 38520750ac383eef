import gc
import hashlib
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
import torch
from command_line import FORKS
from geometry import SIDE, Residual, random_images, seeded, smooth_images
from torch import nn

from hscc_search.cache import remove_entry
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.calibration.store import cache_key
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError, ConfigError, DiskFullError, HsccWarning


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


def flip(path, share):
    """Flip one bit at a share of a file's length."""
    damaged = bytearray(path.read_bytes())
    damaged[int(share * len(damaged))] ^= 4
    path.write_bytes(damaged)


DAMAGES = {
    "a bit of a response": lambda folder: flip(folder / "1.npy", 0.7),
    "a bit of the images": lambda folder: flip(folder / "images.npy", 0.9),
    "a bit of the statistics": lambda folder: flip(folder / "statistics.npz", 0.5),
    "a bit of a figure": lambda folder: flip(folder / "calibration.json", 0.5),
    "a response file is short": lambda folder: os.truncate(folder / "1.npy", 1000),
    "all is gone": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_calibration_is_made_again(cache, damage):
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


def test_a_calibration_that_is_used_stays_in_the_cache(cache):
    calibration = calibrate(DigitsCNN(5, SIDE), smooth_images(8), keep=True)
    (entry,) = cache.iterdir()
    assert not remove_entry(entry)
    part = replace(calibration, images=calibration.images[:4])
    del calibration
    assert not remove_entry(entry)
    del part
    assert remove_entry(entry)


@pytest.mark.parametrize("damaged", [False, True])
def test_with_a_cache_that_cannot_be_written_to_the_calibration_is_the_same(small_disk, monkeypatch, damaged):
    disk = small_disk(20_000)
    monkeypatch.setenv("HSCC_CACHE", str(disk))
    network, x = DigitsCNN(5, SIDE), smooth_images(8)
    if damaged:
        calibrate(network, x, keep=True)
        flip(next(disk.glob("calibrations/*/0.npy")), 0.5)
    small_disk(20_000, "remount,ro")
    with pytest.warns(HsccWarning, match=rf"the cache {disk} cannot be written to"):
        passing = calibrate(network, x, keep=True)
    monkeypatch.delenv("HSCC_CACHE")
    assert same(weights_of(passing), weights_of(calibrate(network, x)))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kilobytes", [40, 400, 1000])
def test_a_disk_without_room_for_the_responses_is_named_before_the_pass(small_disk, monkeypatch, kilobytes, keep):
    disk = small_disk(kilobytes)
    monkeypatch.setenv("HSCC_CACHE", str(disk))
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    network, x = DigitsCNN(5, SIDE), smooth_images(64)
    with pytest.raises(DiskFullError, match=rf"responses of 5 layers to 64 images: \d\.\d MB are needed, and .*{disk}"):
        calibrate(network, x, must_not_run, keep=keep)
    assert [path for path in disk.rglob("*") if path.is_file()] == []
    small_disk(40_000, "remount")
    assert calibrate(network, x, keep=keep).records


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


def calibrate_and_die(network, x):
    def die(_):
        os.kill(os.getpid(), signal.SIGKILL)

    calibrate(network, x, die, batch_size=2, keep=True)


def test_what_a_killed_process_left_is_removed_by_the_next(cache):
    network, x = DigitsCNN(5, SIDE), smooth_images(4)
    process = multiprocessing.get_context("fork").Process(target=calibrate_and_die, args=(network, x.flip(0)))
    process.start()
    process.join()
    assert [path.name[0] for path in cache.iterdir()] == [".", "."]
    calibrate(network, x, keep=True)
    assert [folder.name for folder in cache.iterdir()] == [cache_key(network, x, 64)]


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
