import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from geometry import seeded
from torch import nn

from hscc_search.compression.division.regions import pieces
from hscc_search.compression.form import LayerForm
from hscc_search.compression.layers import build
from hscc_search.runtime import onnx as export
from hscc_search.runtime.rewrites import save_copies

IMAGE_SIZE = 16
QUARTERS = np.repeat(np.repeat([[0, 1], [2, 3]], 9, 0), 9, 1)[:IMAGE_SIZE, :IMAGE_SIZE]
SCATTERED = np.where(np.arange(IMAGE_SIZE) == 3, QUARTERS.T, QUARTERS)


def regional(labels, rank=2, inputs=None):
    count = int(labels.max()) + 1
    form = LayerForm(labels.shape, (((rank,),) * count,), pieces(labels), (inputs,))
    return build(nn.Conv2d(3, 3, 3, padding=1), form)


class Shared(nn.Module):
    """A layer of regions whose joined map is used before the ReLU, too."""

    def __init__(self):
        super().__init__()
        self.layer = regional(QUARTERS)

    def forward(self, x):
        y = self.layer(x)
        return y + y.relu()


class Sliced(nn.Module):
    """Two cuts along one axis, or along two of them."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, x):
        return x[:, :, :, 2:].narrow(self.axis, 3, 5) * 2


NETWORKS = {
    "quarters": lambda: nn.Sequential(regional(QUARTERS), nn.ReLU(), nn.Flatten(), nn.Linear(768, 4)),
    "two layers": lambda: nn.Sequential(regional(QUARTERS, 2, 2), nn.ReLU(), regional(QUARTERS), nn.ReLU()),
    "scattered": lambda: nn.Sequential(regional(SCATTERED), nn.ReLU()),
    "rows": lambda: nn.Sequential(regional(QUARTERS // 2), nn.ReLU()),
    "one axis": lambda: Sliced(-1),
    "no regions": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "joined at the end": lambda: nn.Sequential(nn.ReLU(), regional(QUARTERS)),
    "shared": Shared,
}


def opened(path):
    return onnx.load(path).graph, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rewritten_graph_answers_the_same_bit_by_bit_and_copies_less(name, tmp_path, monkeypatch):
    network = seeded(NETWORKS[name]).eval()

    def keep_as_it_was(model):
        ir.save(model, tmp_path / "plain.onnx")
        save_copies(model)

    monkeypatch.setattr(export, "save_copies", keep_as_it_was)
    export.write_onnx(network, IMAGE_SIZE, tmp_path / "rewritten.onnx")
    graph, session = opened(tmp_path / "rewritten.onnx")
    plain_graph, plain = opened(tmp_path / "plain.onnx")
    x = np.random.default_rng(0).standard_normal((3, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)

    (answer,) = session.run(["scores"], {"images": x})
    assert np.array_equal(answer, plain.run(None, {"images": x})[0])
    np.testing.assert_allclose(answer, network(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert copies(graph) <= copies(plain_graph)
    makers = {output: node.op_type for node in graph.node for output in node.output}
    behind = {(makers.get(value), node.op_type) for node in graph.node for value in node.input}
    assert (("Slice", "Slice") in behind) == (name == "one axis")
    assert (("Concat", "Relu") in behind) == (name == "shared")
    if name in ("quarters", "two layers"):
        assert copies(graph) < copies(plain_graph)


def copies(graph):
    return sum(node.op_type in ("Slice", "Concat", "Pad") for node in graph.node)
