import pytest
import torch
from torch import nn

from hscc_search.errors import ExportError
from hscc_search.runtime import latency, onnx
from hscc_search.runtime.latency import measure_latency, runners
from hscc_search.runtime.onnx import write_onnx

SIDE = 32


def network(depth):
    """All but the first convolution do the same work."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), *(nn.Conv2d(32, 32, 3, padding=1) for _ in range(depth))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).eval()


def measured(networks, *batch_sizes):
    return measure_latency({name: runners(one, SIDE) for name, one in networks.items()}, SIDE, batch_sizes)


def test_eight_times_the_work_takes_longer_in_both_runtimes():
    found = measured({"much": network(16), "little": network(2)}, 8)
    assert found.keys() == {"torch 8", "onnxruntime 8"}
    for seconds in found.values():
        assert seconds.keys() == {"much", "little"}
        assert seconds["much"] > 1.5 * seconds["little"] > 0


def test_every_batch_size_is_measured_and_the_networks_answer_as_before():
    one = network(1)
    x = torch.rand(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        before = one(x)
    found = measured({"one": one}, 1, 3)
    assert list(found) == ["torch 1", "torch 3", "onnxruntime 1", "onnxruntime 3"]
    with torch.inference_mode():
        torch.testing.assert_close(one(x), before)


def test_a_network_that_cannot_be_exported_is_measured_in_torch_alone(monkeypatch):
    def refuse(one, image_size, path):
        if one is odd:
            raise ExportError("no ONNX operator")
        write_onnx(one, image_size, path)

    plain, odd = network(1), network(1)
    monkeypatch.setattr(onnx, "write_onnx", refuse)
    found = measured({"plain": plain, "odd": odd}, 1)
    assert found.keys() == {"torch 1"}
    assert found["torch 1"].keys() == {"plain", "odd"}


@pytest.mark.parametrize("batch_size", [1, 5])
def test_networks_take_turns(batch_size):
    calls = []

    def runner(name):
        return lambda images: calls.append((name, len(images)))

    seconds = latency._timed({"a": runner("a"), "b": runner("b")}, torch.zeros(batch_size, 3, 2, 2))
    assert seconds.keys() == {"a", "b"}
    assert len(calls) > 10
    assert calls == [("a", batch_size), ("b", batch_size)] * (len(calls) // 2)
