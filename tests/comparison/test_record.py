import json

import pytest

from hscc_search.comparison.record import FORMAT, Asked, ComparedNetwork, ComparisonRecord
from hscc_search.config import StudyConfig
from hscc_search.errors import ConfigError
from hscc_search.evaluation.quality import Quality

ASKED = Asked("hscc", 2.5, 3, 5)
MEASURED = ComparedNetwork(
    ASKED,
    macs=300,
    parameters=20,
    quality=Quality({"accuracy": 0.75, "recall:cat": 1.0}, {"accuracy": 0.2, "recall:cat": 0.0}),
    right=(1, 0, 1, 1),
    latency={"torch 1": 2.0},
    dense_latency={"torch 1": 6.0},
    seconds=1.5,
)
FAILED = ComparedNetwork(ASKED, seconds=0.5, failure="out of reach")


@pytest.mark.parametrize("network", [MEASURED, FAILED])
def test_a_network_is_read_back_as_it_was(network):
    tree = json.loads(json.dumps(network.stored()))
    assert tree["format"] == FORMAT
    assert ComparedNetwork.from_stored(tree, "file") == network


@pytest.mark.parametrize("checkpoint", [None, "abc"])
def test_a_comparison_is_read_back_as_it_was(checkpoint):
    record = ComparisonRecord(StudyConfig.from_file("digits"), 5, "fingerprint", checkpoint)
    tree = json.loads(json.dumps(record.stored()))
    assert tree["format"] == FORMAT
    assert ComparisonRecord.from_stored(tree, "file") == record


def test_a_network_of_version_0_1_0_is_read():
    quality = {"accuracy": 0.75, "accuracy_se": 0.2, "macro_f1": 0.5, "macro_f1_se": 0.3}
    per_class = {"recall": [1.0, 0.5], "recall_se": [0.0, 0.1], "f1": [0.8, 0.4], "f1_se": [0.1, 0.2]}
    tree = {
        "method": "hscc",
        "budget": 2.5,
        "seed": 3,
        "epochs": 5,
        "macs": 300,
        "parameters": 20,
        "quality": quality | per_class,
        "right": [1, 0, 1, 1],
        "latency": {"torch 1": 2.0, "dense torch 1": 6.0},
        "seconds": 1.5,
        "failure": None,
    }
    expected = Quality({"accuracy": 0.75, "macro_f1": 0.5}, {"accuracy": 0.2, "macro_f1": 0.3})
    assert ComparedNetwork.from_stored(tree, "file") == ComparedNetwork(
        ASKED, 300, 20, expected, (1, 0, 1, 1), {"torch 1": 2.0}, {"torch 1": 6.0}, 1.5
    )
    failed = {"macs": 0, "parameters": 0, "quality": None, "right": [], "latency": None, "seconds": 0.5}
    assert ComparedNetwork.from_stored(tree | failed | {"failure": "out of reach"}, "file") == FAILED


@pytest.mark.parametrize("stored_format", [0, FORMAT + 1, "new", None])
def test_a_format_that_is_not_known_is_refused_by_name(stored_format):
    record = ComparisonRecord(StudyConfig.from_file("digits"), 5, "fingerprint", None)
    for stored, read in ((MEASURED.stored(), ComparedNetwork.from_stored), (record.stored(), record.from_stored)):
        with pytest.raises(ConfigError, match=f"^file is in format {stored_format}, and .* reads .* 1 and {FORMAT}"):
            read(stored | {"format": stored_format}, "file")
