import time
from typing import get_args

import pytest
import torch
from torch import nn

from hscc_search.config import LatencyConfig
from hscc_search.errors import ExportError
from hscc_search.runtime import onnx
from hscc_search.runtime.latency import RUNTIMES, in_turns, measure_latency, runners
from hscc_search.runtime.onnx import write_onnx

IMAGE_SIZE = 32


def network(depth):
    """A stack of convolutions that all but the first do the same work."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), *(nn.Conv2d(32, 32, 3, padding=1) for _ in range(depth))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).eval()


def measured(networks, *batch_sizes):
    by_network = {name: runners(each, IMAGE_SIZE) for name, each in networks.items()}
    return measure_latency(by_network, IMAGE_SIZE, batch_sizes)


def test_eight_times_the_work_takes_longer_in_both_runtimes():
    latencies = measured({"much": network(16), "little": network(2)}, 8)
    assert latencies.keys() == {"torch 8", "onnxruntime 8"}
    for milliseconds in latencies.values():
        assert milliseconds.keys() == {"much", "little"}
        assert milliseconds["much"] > 1.5 * milliseconds["little"] > 0


def test_every_batch_size_is_measured_and_the_networks_answer_as_before():
    timed = network(1)
    x = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.inference_mode():
        before = timed(x)
    assert list(measured({"timed": timed}, 1, 3)) == ["torch 1", "torch 3", "onnxruntime 1", "onnxruntime 3"]
    with torch.inference_mode():
        torch.testing.assert_close(timed(x), before)


def test_a_network_that_cannot_be_exported_is_measured_in_torch_alone(monkeypatch):
    def refuse(module, image_size, path):
        if module is odd:
            raise ExportError("no ONNX operator")
        write_onnx(module, image_size, path)

    plain, odd = network(1), network(1)
    monkeypatch.setattr(onnx, "write_onnx", refuse)
    latencies = measured({"plain": plain, "odd": odd}, 1)
    assert latencies.keys() == {"torch 1"}
    assert latencies["torch 1"].keys() == {"plain", "odd"}


@pytest.mark.parametrize("batch_size", [1, 5])
def test_networks_take_turns(batch_size):
    calls = []

    def runner(name):
        return lambda images: calls.append((name, len(images)))

    milliseconds = in_turns({"a": runner("a"), "b": runner("b")}, 2, batch_size)
    assert milliseconds.keys() == {"a", "b"}
    assert len(calls) > 10
    assert calls == [("a", batch_size), ("b", batch_size)] * (len(calls) // 2)


def test_latency_is_in_milliseconds():
    milliseconds = in_turns({"sleeper": lambda images: time.sleep(0.02)}, 2, 3)
    assert 20 <= milliseconds["sleeper"] < 200


def test_threads_are_as_before_and_one_while_it_runs():
    before, during = torch.get_num_threads(), set()
    in_turns({"counting": lambda images: during.add(torch.get_num_threads())}, 2, 3)
    assert during == {1}
    assert torch.get_num_threads() == before


def test_a_study_may_ask_for_every_runtime():
    assert set(RUNTIMES) == set(get_args(LatencyConfig.model_fields["runtime"].annotation))
