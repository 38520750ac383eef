from hscc_search.comparison.methods import METHODS
from hscc_search.compression.baselines import METHODS as PEERS


def test_every_method_and_its_controls_are_offered():
    peers = ["global-svd", "tucker-2", "response-pca", "alds", "pruning"]
    own = ["hscc-regions", "hscc-random-regions", "hscc-clusters", "hscc-random-clusters"]
    assert list(METHODS) == ["hscc", *peers, *own]
    assert list(PEERS) == peers
