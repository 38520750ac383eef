import numpy as np
import onnxruntime
import pytest
import torch
from geometry import OnMaps, Residual, seeded, smooth_images
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.layers import GroupedRegionConv2d
from hscc_search.compression.setting import Setting
from hscc_search.errors import ExportError
from hscc_search.runtime.onnx import onnx_program, write_onnx


class ImageByImage(nn.Module):
    """Standardises image by image in Python, or by each image's own statistics for the whole batch."""

    def __init__(self, loop):
        super().__init__()
        self.loop, self.head = loop, nn.Linear(192, 2)

    def forward(self, x):
        if self.loop:
            x = torch.stack([(image - image.mean()) / (image.std() + 1e-5) for image in x])
        else:
            x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-5)
        return self.head(x.flatten(1))


def test_a_graph_for_one_size_of_batch_is_refused_in_one_line(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match="for one size of batch alone"):
        write_onnx(ImageByImage(loop=True).eval(), 8, path)
    assert not path.exists()
    write_onnx(ImageByImage(loop=False).eval(), 8, path)
    assert path.exists()


class ByValue(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.mean() > 0 else x.amax((2, 3))


def test_a_network_that_cannot_be_exported_is_refused_in_one_line_of_the_true_reason(capfd):
    with pytest.raises(ExportError) as refused:
        onnx_program(ByValue().eval(), 8)
    line = str(refused.value)
    assert line.startswith("torch cannot export this network to ONNX: Could not guard on data-dependent expression")
    assert "\n" not in line
    assert "\x1b" not in line
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [Residual, OnMaps])
@pytest.mark.parametrize("regions", [1, 4])
def test_compressed_layers_of_each_kind_are_exported(tmp_path, kind, regions):
    """Grouped convolutions among them, and linear layers on maps."""
    images = smooth_images(64)
    setting = Setting(budget=2.0, regions=regions, region_strategy="grid", region_gain=0)
    network = compress(calibrate(seeded(kind), images), setting).network
    if kind is Residual:
        assert any(isinstance(module, GroupedRegionConv2d) for module in network.modules())
    write_onnx(network, images.shape[-1], tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    by_onnx = session.run(None, {session.get_inputs()[0].name: images[:3].numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(by_onnx, network(images[:3]).numpy(), rtol=1e-3, atol=1e-3)
