import numpy as np
import onnx
import pytest
import torch
from geometry import Residual, seeded, smooth_images
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hscc_search.compression.calibration.calibrate import calibrate
from hscc_search.compression.compress import compress
from hscc_search.compression.setting import Setting
from hscc_search.runtime.deployed import Deployed
from hscc_search.runtime.input_rounding import _chosen, find_normalisation
from hscc_search.runtime.int8 import MOST_DIVERGENCE, _named, _Rounding, write_int8
from hscc_search.runtime.onnx import onnx_program
from hscc_search.runtime.ranges import learn_ranges

SHAPE = (3, 16, 16)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = ((smooth_images(200) + 2) / 4).clamp(0, 1)


def network(regions=1):
    setting = Setting(budget=1.5, regions=regions, region_gain=0.0)
    normalised = (PIXELS[:64] - torch.tensor(MEAN).view(1, -1, 1, 1)) / torch.tensor(STD).view(1, -1, 1, 1)
    return compress(calibrate(seeded(Residual), normalised), setting).network


@pytest.mark.parametrize("regions", [1, 4])
def test_a_normalised_input_is_rounded_at_once(tmp_path, regions):
    module = Deployed(network(regions), MEAN, STD, SHAPE).eval()
    result = write_int8(module, SHAPE, PIXELS.numpy(), tmp_path / "model.onnx")
    assert result.divergence <= MOST_DIVERGENCE
    graph = onnx.load(tmp_path / "model.onnx").graph
    readers = [node.op_type for node in graph.node if graph.input[0].name in node.input]
    assert readers == ["QuantizeLinear"]
    assert not {"Sub", "Div"} & {node.op_type for node in graph.node}


def test_where_the_first_layer_stays_in_float_the_input_is_normalised_in_float():
    program = onnx_program(Deployed(network(), MEAN, STD, SHAPE).eval(), SHAPE)
    model = _named(program.model_proto)
    ranges = learn_ranges(model, PIXELS.numpy())
    rounding = _Rounding(model, ranges, PIXELS.numpy(), None, find_normalisation(model, ranges))
    first = next(node.name for node in model.graph.node if node.op_type == "Conv")
    kinds = [node.op_type for node in rounding.rounded(in_float=[first]).graph.node]
    assert {"Sub", "Div", "QuantizeLinear"} <= set(kinds)
    assert not {"Sub", "Div"} & {node.op_type for node in rounding.rounded().graph.node}


@given(
    st.lists(st.tuples(st.floats(0.1, 0.9), st.floats(0.05, 0.6)), min_size=1, max_size=4),
    st.floats(0.2, 1),
    st.integers(0, 1000),
)
def test_both_ways_give_steps_that_differ_by_little(channels, share, seed):
    mean, std = (np.array(values) for values in zip(*channels, strict=True))
    low, high = float(((0 - mean) / std).min()) * share, float(((1 - mean) / std).max()) * share
    chosen = _chosen("x", "y", mean, std, (low, high))
    if chosen is None:
        return
    x = np.random.default_rng(seed).random((200, len(mean)))
    wanted = (x - mean) / std / chosen.scale + chosen.zero
    given_ = np.round(x / chosen.scales) + chosen.zeros
    assert np.abs(wanted - given_).max() <= 1.01
    assert -chosen.zero * chosen.scale <= low + 1e-6
    assert (255.5 - chosen.zero) * chosen.scale >= high - 1e-6


def test_pools_of_single_positions_are_left_out(tmp_path):
    from hscc_search.runtime.rewrites import save_copies

    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(8))
    program = onnx_program(module.eval(), SHAPE)
    save_copies(program.model)
    pools = [node for node in program.model_proto.graph.node if "Pool" in node.op_type]
    assert [list(onnx.helper.get_node_attr_value(pool, "kernel_shape")) for pool in pools] == [[2, 2]]
    onnx.checker.check_model(program.model_proto)
    session = onnx.reference.ReferenceEvaluator(program.model_proto)
    x = PIXELS[:3]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), module(x))
