import hostile
import pytest
from designs import parameters_of
from geometry import SIDE, seeded, smooth_images

from hscc_search.comparison.methods import METHODS
from hscc_search.compression.baselines import METHODS as PEERS
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.dense.networks import DigitsCNN
from hscc_search.errors import CompressionError
from hscc_search.evaluation.counters import count_macs


def test_every_method_and_its_controls_are_offered():
    peers = ["global-svd", "tucker-2", "response-pca", "alds", "pruning"]
    own = ["hscc-regions", "hscc-random-regions", "hscc-clusters", "hscc-random-clusters"]
    assert list(METHODS) == ["hscc", *peers, *own]
    assert list(PEERS) == peers


@pytest.mark.parametrize("block", ["Tokens", "Windows", "FiveDimensions", "parametrised"])
def test_every_method_keeps_to_the_budget_on_tokens_and_computed_weights(block):
    calibration = calibrate(hostile.Hostile([getattr(hostile, block)] * 2).eval(), smooth_images(48, side=16))
    for name, method in METHODS.items():
        try:
            network = method(calibration, 1.5, 0, 3.0)
        except CompressionError:
            assert name == "pruning"  # torch-pruning follows no tokens
            assert block != "parametrised"
            continue
        assert 1.5 * count_macs(network, calibration.images[:1])[""] <= calibration.macs


def test_hscc_prices_weights_as_the_study_says_and_peers_do_not():
    calibration = calibrate(seeded(lambda: DigitsCNN(5, SIDE)), smooth_images(48))

    def weights(method, price):
        return parameters_of(METHODS[method](calibration, 2.0, 0, price))

    for method in ("hscc", "hscc-clusters"):
        assert weights(method, 1000.0) < weights(method, 0.0)
    assert weights("response-pca", 1000.0) == weights("response-pca", 0.0)
