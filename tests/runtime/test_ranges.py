import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from hscc_search.runtime.ranges import _SHARES, _rounded, learn_ranges


def graph(*nodes, shape=("batch", 4)):
    given_, returned = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    made = helper.make_graph(list(nodes), "graph", [given_], [returned])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


DOUBLED = graph(helper.make_node("Add", ["x", "x"], ["twice"]), helper.make_node("Relu", ["twice"], ["y"]))


def test_every_tensor_has_a_range_that_holds_zero():
    x = np.random.default_rng(0).uniform(1, 3, (40, 4)).astype(np.float32)
    ranges = learn_ranges(DOUBLED, x)
    assert ranges.keys() == {"x", "twice", "y"}
    for low, high in ranges.values():
        assert low <= 0 <= high
    assert ranges["twice"][1] == pytest.approx(2 * ranges["x"][1])


def test_few_far_values_are_clipped_and_evenly_spread_ones_are_not():
    generator = np.random.default_rng(0)
    even = generator.uniform(-1, 1, (200, 4)).astype(np.float32)
    far = generator.standard_t(4, (20_000, 4)).astype(np.float32)
    assert learn_ranges(DOUBLED, even)["x"] == (pytest.approx(even.min()), pytest.approx(even.max()))
    low, high = learn_ranges(DOUBLED, far)["x"]
    assert high < 0.95 * far.max()
    assert low / far.min() == pytest.approx(high / far.max())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 100), st.floats(0.01, 100), st.floats(-3, 3))
def test_no_share_of_the_whole_range_changes_values_less(seed, scale, shift):
    x = (scale * (np.random.default_rng(seed).standard_t(2, (64, 4)) + shift)).astype(np.float32)
    chosen = learn_ranges(DOUBLED, x)["x"]
    whole = min(x.min(), 0), max(x.max(), 0)

    def cost(low, high):
        return np.square(_rounded(x, low, high) - x).mean()

    assert all(cost(*chosen) <= cost(share * whole[0], share * whole[1]) * (1 + 1e-6) for share in _SHARES)


def test_tensors_of_whole_numbers_have_no_range():
    model = graph(
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Reshape", ["x", "size"], ["y"]),
    )
    onnx.checker.check_model(model)
    assert learn_ranges(model, np.ones((3, 4), np.float32)).keys() == {"x", "y"}
