"""Compression and studies on a GPU, with the same results as on the CPU but for rounding."""

import pytest
import torch
from geometry import SIDE, Residual, seeded, smooth_images

from hscc_search.compression.baselines import METHODS
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.dense.device import choose_device
from hscc_search.dense.networks import DigitsCNN
from hscc_search.evaluation.counters import measure_cost
from hscc_search.export.export import export
from hscc_search.export.loading import load
from hscc_search.study.study import run_study

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

NETWORKS = {"digits": lambda: DigitsCNN(5, SIDE), "residual": Residual}
SETTINGS = {
    "whole": {"energy": 0.9},
    "divided": {"energy": 0.9, "regions": 4, "clusters": 2},
    "budget": {"budget": 3, "regions": 4, "clusters": 2},
    "controls": {
        "channel_share": 0.5,
        "regions": 3,
        "region_strategy": "random",
        "clusters": 2,
        "cluster_strategy": "random",
    },
}


@pytest.fixture(scope="module", params=NETWORKS)
def both(request):
    """A network's calibration by device."""
    network, images = seeded(NETWORKS[request.param]), smooth_images(64)
    devices = [choose_device("cpu"), choose_device("cuda")]
    return {device.type: calibrate(network.to(device), images.to(device)) for device in devices}


def scores(network):
    device = next(network.parameters()).device
    with torch.no_grad():
        return network(smooth_images(64, seed=5).to(device)).cpu()


def assert_alike(networks, tolerance, more_macs=0.0):
    costs = {device: measure_cost(network, SIDE) for device, network in networks.items()}
    answers = {device: scores(network) for device, network in networks.items()}
    assert {next(network.parameters()).device.type for network in networks.values()} == set(networks)
    assert costs["cuda"].macs == pytest.approx(costs["cpu"].macs, rel=more_macs)
    assert (answers["cuda"] - answers["cpu"]).norm() < tolerance * answers["cpu"].norm()


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_network_is_compressed_to_the_same(both, setting):
    networks = {
        device: compress(calibration, Setting(**SETTINGS[setting])).network for device, calibration in both.items()
    }
    assert_alike(networks, 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_peers_compress_to_the_same(both, method):
    networks = {device: METHODS[method](calibration, 2) for device, calibration in both.items()}
    assert_alike(networks, 0.02, 1e-3)  # rounding may give an axis more to one layer, and one less to another


def test_a_calibration_that_was_kept_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HSCC_CACHE", str(tmp_path))
    device = choose_device("cuda")
    network, images = seeded(Residual).to(device), smooth_images(64).to(device)
    results = [compress(calibrate(network, images, keep=True), Setting(energy=0.9)) for _ in range(2)]
    assert torch.equal(*(scores(each.network) for each in results))


def test_a_study_with_fine_tuning_is_searched_and_exported(digits, tmp_path):
    config = digits(trials=3, training__epochs=4, training__mixup=0.2, finetuning={"epochs": 2, "distillation": 0.5})
    study = run_study(config, "cuda")
    assert len(study.points) == 3
    point = max(study.points, key=lambda point: point["accuracy"])
    metrics = export(study, point, config, tmp_path / "out", "cuda")
    assert metrics.compressed.test.metrics["accuracy"] > 0.8
    assert not next(load(tmp_path / "out").parameters()).is_cuda
    assert abs(metrics.compressed.validation.metrics["accuracy"] - point["accuracy"]) < 0.02


def test_two_workers_share_a_gpu(digits):
    assert len(run_study(digits(trials=4, training__epochs=2), "cuda", workers=2).points) == 4
