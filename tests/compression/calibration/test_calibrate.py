import gc
import hashlib
import math
import multiprocessing
import os
import time

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from geometry import SIDE, Residual, seeded, smooth_images
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.calibration.eligible import MOST_GROUPS
from hscc_search.compression.calibration.lattice import responses_on
from hscc_search.compression.calibration.store import key
from hscc_search.compression.compress import compress
from hscc_search.compression.fitting import fit_layer
from hscc_search.compression.form import Fold
from hscc_search.compression.ranks.choice import Ranks, allot
from hscc_search.compression.setting import Setting
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError, ConfigError


def images(count=4, side=16, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 5, 64, 65])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [3, 16], ids=["map", "one position"])
def test_records_hold_responses_before_an_activation_in_place(count, memory_format, kernel):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, kernel)
    network = nn.Sequential(layer, nn.ReLU(inplace=True), nn.Flatten()).to(memory_format=memory_format)
    x = images(count).contiguous(memory_format=memory_format)
    calibration = calibrate(network, x)
    (record,) = calibration.records
    torch.testing.assert_close(record.responses, responses_on(layer, x, record.lattice).detach())


def test_records_of_a_linear_layer_hold_responses_before_an_activation_in_place():
    torch.manual_seed(0)
    layer = nn.Linear(48, 8)
    network = nn.Sequential(nn.Flatten(), layer, nn.ReLU(inplace=True))
    x = images(5, 4)
    calibration = calibrate(network, x)
    (record,) = calibration.records
    assert record.fully_connected
    torch.testing.assert_close(record.responses[0], layer(x.flatten(1)).detach())


class OnMaps(nn.Module):
    """Linear layers on maps with the channels last, as in ConvNeXt, with an activation in place between them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.wide = nn.Linear(12, 40)
        self.narrow = nn.Linear(40, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.narrow(nn.functional.relu(self.wide(x), inplace=True))
        return self.head(x.mean(dim=(1, 2)))


def test_records_of_a_linear_layer_on_maps_hold_every_position():
    network = seeded(OnMaps)
    x = images(5)
    calibration = calibrate(network, x)
    record = calibration.record("wide")
    with torch.no_grad():
        expected = network.wide(network.stem(x).permute(0, 2, 3, 1))
    assert record.fully_connected
    assert (record.lattice.height, record.lattice.width) == (8, 8)
    torch.testing.assert_close(record.responses, expected.flatten(1, 2).transpose(0, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(record.profiles, expected.relu().mean(dim=0).permute(2, 0, 1), rtol=1e-4, atol=1e-5)
    assert record.effects.shape == (64, 40)
    assert record.macs == 64 * 12 * 40


def test_profiles_are_the_mean_activations_of_the_whole_map():
    network = DigitsCNN(10)
    x = images(10)
    calibration = calibrate(network, x, batch_size=3)
    record = calibration.record("2")
    assert record.lattice.positions < 16 * 16
    with torch.no_grad():
        expected = nn.Sequential(*list(network)[:4])(x).mean(dim=0)
    torch.testing.assert_close(record.profiles, expected, rtol=1e-4, atol=1e-6)
    assert record.responses.shape == (record.lattice.positions, 10, 64)
    assert record.effects.shape == (record.lattice.positions, 64)


def test_batches_do_not_show_in_the_records():
    network = DigitsCNN(10)
    whole, parts = calibrate(network, images(10)), calibrate(network, images(10), batch_size=3)
    for one, other in zip(whole.records, parts.records, strict=True):
        assert one.name == other.name
        torch.testing.assert_close(one.responses, other.responses, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.profiles, other.profiles, rtol=1e-4, atol=1e-5)


def test_records_are_in_execution_order_with_fvcores_macs():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(8, 4)
            self.second = nn.Conv2d(6, 8, 3, stride=2)
            self.first = nn.Conv2d(3, 6, (5, 3), padding=(1, 2), dilation=(2, 1))

        def forward(self, x):
            return self.last(self.second(self.first(x)).mean(dim=(2, 3)))

    network = Backwards()
    records = calibrate(network, images()).records
    assert [record.name for record in records] == ["first", "second", "last"]
    counted = FlopCountAnalysis(network, images(1)).unsupported_ops_warnings(False).by_module()
    assert {record.name: record.macs for record in records} == {record.name: counted[record.name] for record in records}


class Odd(nn.Module):
    """One layer of each kind that cannot be compressed, and some that can."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.reused = nn.Conv2d(8, 8, 1)
        self.reflecting = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.tokens = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.widen = nn.Conv2d(8, 2 * (MOST_GROUPS + 1), 1)
        self.cardinal = nn.Conv2d(2 * (MOST_GROUPS + 1), 2 * (MOST_GROUPS + 1), 1, groups=MOST_GROUPS + 1)
        self.one = self.other = nn.Conv2d(2 * (MOST_GROUPS + 1), 8, 1)

    def forward(self, x):
        x = self.grouped(self.depthwise(self.plain(x)))
        x = self.reused(self.reused(self.other(self.cardinal(self.widen(x)))))
        return self.tokens(self.reflecting(x).flatten(2).transpose(1, 2)).mean(dim=1)


def test_layers_that_cannot_be_compressed_are_left_dense_with_a_reason():
    calibration = calibrate(Odd(), images(side=8))
    assert [record.name for record in calibration.records] == ["plain", "grouped", "widen"]
    assert calibration.record("grouped").groups == 2
    reasons = {name: reason for name, (_, reason) in calibration.left_dense.items()}
    assert reasons.keys() == {"depthwise", "cardinal", "one", "reused", "reflecting", "tokens", "never"}
    assert reasons["depthwise"] == "depthwise"
    assert f"{MOST_GROUPS + 1} groups" in reasons["cardinal"]
    assert "more than one name" in reasons["one"]
    assert "more than once" in reasons["reused"]
    assert "reflect" in reasons["reflecting"]
    assert "3 dimensions" in reasons["tokens"]
    assert "never called" in reasons["never"]


def test_layers_left_dense_have_fvcores_macs():
    network = Odd()
    calibration = calibrate(network, images(side=8))
    left_dense = calibration.left_dense
    counted = FlopCountAnalysis(network, images(1, 8)).unsupported_ops_warnings(False)
    by_module = counted.uncalled_modules_warnings(False).by_module()
    for name, (macs, _) in left_dense.items():
        assert macs == by_module[name], name
    assert calibration.macs == by_module[""]


def test_a_layer_over_positions_folded_into_the_images_is_left_dense():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.pixels = nn.Linear(3, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.pixels(x.permute(0, 2, 3, 1).reshape(-1, 3))
            return self.head(x.reshape(-1, 16, 8).mean(dim=1))

    network = Folded()
    calibration = calibrate(network, images(side=4))
    assert [record.name for record in calibration.records] == ["head"]
    macs, reason = calibration.left_dense["pixels"]
    assert macs == 16 * 3 * 8
    assert "more than one position" in reason


def test_a_network_that_is_one_layer_has_no_place_to_put_another():
    with pytest.raises(CompressionError, match="no convolution or fully connected layer"):
        calibrate(nn.Conv2d(3, 8, 3), images())


def test_weights_that_are_not_finite_are_named():
    network = DigitsCNN(10)
    with torch.no_grad():
        network[5].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(CompressionError, match=r"5\.weight"):
        calibrate(network, images())


def test_responses_that_are_not_finite_name_their_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).requires_grad_(False)
    for layer in network[:2]:
        layer.weight.fill_(1e30)
    with pytest.raises(CompressionError, match="layer 1 "):
        calibrate(network, images())


def test_a_network_without_a_layer_to_compress_is_an_error():
    with pytest.raises(CompressionError, match="no convolution or fully connected layer"):
        calibrate(nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Flatten()), images())


def test_statistics_of_a_batch_norm_that_are_not_finite_are_named():
    network = seeded(Residual)
    network.norm.running_mean[0] = math.inf
    with pytest.raises(CompressionError, match=r"norm\.running_mean"):
        calibrate(network, images())


def test_calibration_leaves_weights_hooks_and_the_mode_alone_and_reports_each_batch():
    network = seeded(Residual).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen = []
    calibration = calibrate(network, images(20), report=seen.append, batch_size=4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not calibration.network.training
    assert not any(layer._forward_hooks for one in (network, calibration.network) for layer in one.modules())
    assert [(step.done, step.total) for step in seen] == [(done, 20) for done in range(4, 21, 4)]


def test_batch_norms_are_folded_before_the_network_is_looked_at():
    network = seeded(Residual)
    x = smooth_images(8)
    calibration = calibrate(network, x)
    assert calibration.folds == (Fold("stem.0", "stem.1"), Fold("reduce", "norm"), Fold("mix", "norm_mix"))
    with torch.no_grad():
        torch.testing.assert_close(calibration.network(x), network(x), rtol=1e-4, atol=1e-4)
        normed = network.stem[1](network.stem[0](x))
    record = calibration.record("stem.0")
    rows, columns = record.lattice.indices
    expected = normed[:, :, rows][:, :, :, columns].flatten(2).permute(2, 0, 1)
    torch.testing.assert_close(record.responses, expected, rtol=1e-4, atol=1e-4)


def test_the_files_live_as_long_as_the_calibration():
    calibration = calibrate(DigitsCNN(5, SIDE), smooth_images(8))
    files = [record.file for record in calibration.records]
    assert len(set(files)) == len(files) == 6
    for record in calibration.records:
        assert record.file.stat().st_size >= record.responses.numel() * 4
    found = compress(calibration, Setting(regions=4, clusters=2, budget=2))
    assert all(file.exists() for file in files)
    responses = calibration.records[0].responses
    expected = responses.clone()
    del calibration, record
    gc.collect()
    assert not any(file.exists() for file in files)
    assert not files[0].parent.exists()
    # What was made from it lives on.
    assert torch.isfinite(found.network(smooth_images(2))).all()
    assert torch.equal(responses, expected)


def test_a_calibration_that_fails_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).requires_grad_(False)
    for layer in network:
        layer.weight.fill_(1e30)
    with pytest.raises(CompressionError, match="not finite"):
        calibrate(network, images())
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_writing_to_responses_does_not_reach_the_file():
    calibration = calibrate(DigitsCNN(5, SIDE), smooth_images(4))
    record = calibration.records[0]
    before = record.responses.clone()
    record.responses.zero_()
    assert before.abs().max() > 0
    assert torch.equal(record.responses, before)


def network_of_known_effects(inplace):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    with torch.no_grad():
        network[0].weight[2], network[0].bias[2] = network[0].weight[1], network[0].bias[1]
        network[4].weight[:, 0] = 0
        network[4].weight[:, 2] = 2 * network[4].weight[:, 1]
    return network


@pytest.mark.parametrize("inplace", [True, False])
def test_the_effect_of_a_channel_is_in_proportion_to_what_the_loss_makes_of_it(inplace):
    network = network_of_known_effects(inplace)
    convolution, _ = calibrate(network, torch.randn(70, 3, 8, 8)).records
    effects = convolution.effects
    assert effects.shape == (36, 4)
    assert effects[:, 1].min() > 0
    torch.testing.assert_close(effects[:, 0], torch.zeros(36))
    # Both channels of the pair answer alike, so that their activations open at the same places.
    torch.testing.assert_close(effects[:, 2], 2 * effects[:, 1])


def test_the_effect_of_an_output_is_the_fisher_information_of_its_logit():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    x = 2 * torch.randn(6000, 3, 2, 2)
    (record,) = calibrate(network, x, batch_size=500).records
    with torch.no_grad():
        p = network(x).softmax(dim=1)
    expected = (p * (1 - p)).mean(dim=0).sqrt()
    torch.testing.assert_close(record.effects[0], expected, rtol=0.05, atol=0)


def test_calibration_leaves_gradients_and_their_flags_alone():
    network = network_of_known_effects(True)
    network[4].bias.requires_grad_(False)
    calibrate(network, torch.randn(8, 3, 8, 8))
    assert [parameter.requires_grad for parameter in network.parameters()] == [True, True, True, False]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_errors_go_where_the_loss_does_not_look():
    """Of two independent channels and one filter, the one that the loss hears is kept, though it varies less."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[0, 0], network[0].weight[1, 1] = 3, 1
        network[3].weight.copy_(torch.tensor([[0.0, 5.0], [0.0, -5.0]]))
    images = torch.randn(256, 16, 4, 4)
    calibration = calibrate(network, images)
    allotment = allot(calibration, Setting(energy=0.5))["0"]
    with torch.no_grad():
        module, _ = fit_layer(calibration, "0", allotment, images)
        error = (module(images) - network[0](images)).square().mean(dim=(0, 2, 3))
    assert allotment.ranks == ((Ranks((1,)),),)
    assert error[1] < 0.01 * error[0]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path))
    return tmp_path / "calibrations"


def weights_of(calibration):
    setting = Setting(regions=4, clusters=2, budget=2, region_gain=0)
    return compress(calibration, setting).network.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def must_not_run(*_):
    raise AssertionError("it was kept")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_calibration_read_back_gives_the_identical_network(cache, memory_format):
    network = seeded(Residual).to(memory_format=memory_format)
    x = smooth_images(16).contiguous(memory_format=memory_format)
    passing = calibrate(network, x, batch_size=5)
    assert not cache.exists()
    made = calibrate(network, x, batch_size=5, keep=True)
    found = calibrate(network, x, must_not_run, 5, keep=True)
    assert [folder.name for folder in cache.iterdir()] == [key(network, x, 5)]
    for calibration in (made, found):
        assert torch.equal(calibration.images, x)
        assert calibration.images.is_contiguous(memory_format=memory_format)
        assert calibration.folds == passing.folds
        assert calibration.left_dense == passing.left_dense
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


def test_what_was_kept_is_neither_written_to_nor_removed(cache):
    network, x = DigitsCNN(5, SIDE), smooth_images(8)
    calibration = calibrate(network, x, keep=True)
    calibration.images.zero_()
    calibration.records[0].responses.zero_()
    calibration.network[0].weight.data.zero_()
    del calibration
    gc.collect()
    found = calibrate(network, x, must_not_run, keep=True)
    assert torch.equal(found.images, x)
    assert found.records[0].responses.abs().max() > 0
    assert same(found.network.state_dict(), network.state_dict())


def test_another_network_or_other_images_are_another_calibration():
    network, x = DigitsCNN(5, SIDE), smooth_images(8)
    other_weights = seeded(lambda: DigitsCNN(5, SIDE), seed=1)
    other_form = nn.Sequential(*[nn.GELU() if isinstance(layer, nn.ReLU) else layer for layer in network])
    keys = {
        key(network, x, 64),
        key(network, x, 32),
        key(network, x[:4], 64),
        key(network, x.flip(0), 64),
        key(other_weights, x, 64),
        key(other_form, x, 64),
    }
    assert len(keys) == 6
    assert key(network, x.clone(), 64) == key(network, x, 64)


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
    seen = []
    again = calibrate(network, x, seen.append, keep=True)
    assert seen
    assert same(weights_of(again), expected)
    assert list(cache.iterdir()) == [folder]
    assert same(weights_of(calibrate(network, x, must_not_run, keep=True)), expected)


def test_damage_that_cannot_be_removed_is_one_line(cache, monkeypatch):
    network, x = DigitsCNN(5, SIDE), smooth_images(8)
    calibrate(network, x, keep=True)
    (folder,) = cache.iterdir()
    truncate(folder)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(CompressionError, match=r"is damaged \(1\.npy is not .*cannot be removed \(Permission denied\)"):
        calibrate(network, x, keep=True)


def test_a_cache_that_is_no_folder_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="HSCC_CACHE"):
        calibrate(DigitsCNN(5, SIDE), smooth_images(4), keep=True)


def test_a_pass_that_fails_keeps_nothing(cache):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).requires_grad_(False)
    for layer in network:
        layer.weight.fill_(1e30)
    with pytest.raises(CompressionError, match="not finite"):
        calibrate(network, images(), keep=True)
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_removed_after_a_day(cache):
    network, x = DigitsCNN(5, SIDE), smooth_images(4)
    day = 86400
    for name, age, file_age in (("old", 2, 2), ("running", 2, 0), ("young", 0, 0)):
        folder = cache / f".{name}.x"
        folder.mkdir(parents=True)
        (folder / "0.npy").write_text("")
        os.utime(folder / "0.npy", (time.time() - file_age * day,) * 2)
        os.utime(folder, (time.time() - age * day,) * 2)
    calibrate(network, x, keep=True)
    assert {folder.name for folder in cache.iterdir()} == {".running.x", ".young.x", key(network, x, 64)}


def race(start, results):
    network = seeded(lambda: DigitsCNN(5, SIDE))
    start.wait(300)
    weights = weights_of(calibrate(network, smooth_images(24), batch_size=4, keep=True))
    results.put(hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights.values())).hexdigest())


def test_processes_that_calibrate_at_once_get_the_same(cache):
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=race, args=(start, results)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(400)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len({results.get(timeout=10) for _ in processes}) == 1
    assert len(list(cache.iterdir())) == 1
