"""Networks in 8-bit integers, against the same networks in float, both run by ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from geometry import OnMaps, Residual, seeded, smooth_images
from scipy.special import log_softmax, softmax
from torch import nn

from hscc_search.compression.balancing import balance
from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.errors import ExportError
from hscc_search.runtime.int8 import MOST_DIVERGENCE, write_int8

SHAPE = (3, 16, 16)
IMAGES = smooth_images(200)


def answers(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


@torch.no_grad()
def divergence(path, network, images):
    wanted, given = network(images).double().numpy(), answers(path, images).astype(np.float64)
    return float((softmax(wanted, 1) * (log_softmax(wanted, 1) - log_softmax(given, 1))).sum(1).mean())


def integer_weights(path):
    return sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in onnx.load(path).graph.initializer)


@pytest.mark.parametrize(
    ("build", "setting"),
    [
        (Residual, {"budget": 1.5, "regions": 4, "region_gain": 0.0}),
        (Residual, {"budget": 1.5, "regions": 3, "region_gain": 0.0, "region_strategy": "kmeans"}),
        (Residual, {"energy": 0.8, "clusters": 2}),
        (OnMaps, {"budget": 2.0}),
    ],
    ids=str,
)
def test_compressed_networks_answer_as_in_float(build, setting, tmp_path):
    network = compress(calibrate(seeded(build), IMAGES[:64]), Setting(**setting)).network
    balance(network, IMAGES)
    result = write_int8(network, SHAPE, IMAGES.numpy(), tmp_path / "model.onnx")
    others = smooth_images(100, seed=1)
    assert result.divergence <= MOST_DIVERGENCE
    assert divergence(tmp_path / "model.onnx", network, others) <= 2 * MOST_DIVERGENCE
    assert not result.in_float
    assert integer_weights(tmp_path / "model.onnx") > 3
    for count in (1, 3):
        assert answers(tmp_path / "model.onnx", others[:count]).shape == (count, 5)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A network in 8-bit integers that no test changes."""
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    write_int8(seeded(Residual), SHAPE, IMAGES.numpy(), path)
    return path


def test_the_file_holds_neither_paths_nor_lines_of_source(file):
    content = file.read_bytes()
    assert b".py" not in content
    assert b"/home" not in content
    assert str(file.parent).encode() not in content


def test_scores_are_not_rounded(file):
    assert len(np.unique(answers(file, IMAGES))) > 600  # of 1,000


class Uneven(nn.Module):
    """A network of which two channels hold everything, one a thousand times larger than the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.head = nn.Linear(8, 4)
        self.register_buffer("scale", torch.tensor([3000.0, *[1.0] * 7]).view(1, -1, 1, 1))

    def forward(self, x):
        x = (self.first(x) * self.scale).relu()
        return 20 * self.head((self.second(x / self.scale)).relu().mean(dim=(2, 3)))


def test_what_rounding_would_ruin_stays_in_float(tmp_path):
    network = Uneven().eval()
    steps = []
    result = write_int8(network, SHAPE, IMAGES.numpy(), tmp_path / "model.onnx", steps.append)
    assert result.in_float
    assert result.divergence <= MOST_DIVERGENCE
    assert divergence(tmp_path / "model.onnx", network, smooth_images(100, seed=1)) <= 3 * MOST_DIVERGENCE
    assert integer_weights(tmp_path / "model.onnx"), "all stayed in float: the rest would not have had to"
    assert steps[-1].done == steps[-1].total


def test_maps_of_scores_are_compared_at_each_position(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    result = write_int8(network, SHAPE, IMAGES.numpy(), tmp_path / "model.onnx")
    assert result.divergence <= MOST_DIVERGENCE
    assert answers(tmp_path / "model.onnx", IMAGES[:3]).shape == (3, 2, 16, 16)


class ByImage(nn.Module):
    def forward(self, x):
        return torch.stack([image.mean(dim=(1, 2)) for image in x])


def test_a_network_that_cannot_be_exported_is_refused_in_one_line(tmp_path):
    with pytest.raises(ExportError) as refusal:
        write_int8(ByImage().eval(), SHAPE, IMAGES.numpy(), tmp_path / "model.onnx")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "model.onnx").exists()


class Attending(nn.Module):
    """Attention whose tensors hold tokens before images inside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cut = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.cut(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(dim=1))


@pytest.mark.parametrize("count", [9, 100])
def test_any_number_of_images_will_do(tmp_path, count):
    network = Attending().eval()
    result = write_int8(network, SHAPE, IMAGES[:count].numpy(), tmp_path / "model.onnx")
    assert result.divergence <= MOST_DIVERGENCE


def test_a_network_whose_answers_are_not_finite_is_refused(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 4)).eval()
    nn.init.constant_(network[2].bias, torch.nan)
    with pytest.raises(ExportError, match="not finite"):
        write_int8(network, SHAPE, IMAGES.numpy(), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_weights_leave_room_for_processors_whose_sums_overflow(file):
    for tensor in onnx.load(file).graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            assert np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max(initial=0) <= 64
