"""Scales with which sums of integers stay away from halfway between two steps, so that runtimes round them alike.

A convolution adds products of integers, and its sum becomes a step of the output by a factor: the scale of its input
times that of its weights, over that of its output. One runtime adds integers and multiplies once, another adds floats;
they differ in the seventh digit, and where a sum lies nearly halfway between two steps, one rounds up and the other
down. A single step in an early layer then changes the roundings behind it. With a factor p / q, q odd, the sums lie
at least 1 / 2q of a step away from halfway, and there is such a factor within 0.3 % of any. Where two tensors are
added, each has such a factor, and q is the same.

This holds for convolutions and fully connected layers whose factor is not tiny (at 1 / 1000 the distance is still ten
times what float32 loses), for joins of pieces and for sums of two tensors. It does not for products, means, activations
other than ReLU and Clip, a constant that is added behind a matrix product, and joins whose parts others read, too.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Ranges = Mapping[str, tuple[float, float]]

# Denominators of factors that are tried: of a factor of 1 / 500 or more at most 1023, and more for smaller ones.
_DENOMINATORS, _SMALLEST = np.arange(257, 1024, 2), 500
# The denominator that the factors of both parts of a sum have in common.
_COMMON = 1023
# Weights are integers of 7 bits.
_LARGEST = 64
# Operators with weights, those whose output has the scale of their input, and those that rounding to a range does too.
_WEIGHTED, _CLIPPING = ("Conv", "Gemm", "MatMul"), ("Relu", "Clip")
_KEEPING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice")
# What ONNX Runtime's quantizer puts behind the name of a constant that it has rounded.
_ROUNDED = "_quantized"


def share_ranges(model: onnx.ModelProto, ranges: Ranges) -> dict[str, tuple[float, float]]:
    """Let tensors have one range that are joined, or computed with the same weights, as pieces of a map are.

    Joining rounds no second time then, and weights need but one scale. Ranges of what is added grow to a whole
    number of 1023rds of the range of the sum: hardly where that is a part that matters.

    Args:
        model: the float graph.
        ranges: of its tensors.

    Returns:
        The ranges of all tensors.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    read = Counter(name for node in model.graph.node for name in node.input)
    groups: dict[str, set[str]] = {name: {name} for name in ranges}
    by_weight: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.op_type == "Concat" and all(read[name] == 1 for name in node.input):
            _join(groups, {*node.input, *node.output} & ranges.keys())
        elif node.op_type in _WEIGHTED and node.input[1] in constants:
            by_weight.setdefault(node.input[1], set()).add(_rounded_as(model.graph, node.output[0]))
    for outputs in by_weight.values():
        _join(groups, outputs & ranges.keys())
    shared = {
        name: (min(ranges[each][0] for each in group), max(ranges[each][1] for each in group))
        for name, group in groups.items()
    }
    _widen(model.graph, shared, groups)
    return shared


def _join(groups: dict[str, set[str]], names: Iterable[str]) -> None:
    """Make one group of all groups that some names are in."""
    joined = set[str]().union(*(groups[name] for name in names))
    groups.update(dict.fromkeys(joined, joined))


def _widen(graph: onnx.GraphProto, ranges: dict[str, tuple[float, float]], groups: Mapping[str, set[str]]) -> None:
    """Widen the ranges of what is added, in place, from the last sum to the first: to parts of the sum's range."""
    makers = {name: node for node in graph.node for name in node.output}
    done: set[str] = set()
    for node in reversed(graph.node):
        out = _rounded_as(graph, node.output[0])
        if node.op_type != "Add" or out not in ranges:
            continue
        whole = ranges[out][1] - ranges[out][0]
        for name in node.input:
            while name in makers and makers[name].op_type in _KEEPING:
                name = makers[name].input[0]
            group = groups.get(name, set())
            if not group or group & done or out in group:
                continue
            done |= group
            part = (ranges[name][1] - ranges[name][0]) / whole if whole > 0 else 0.0
            if part > 0:
                wider = math.ceil(_COMMON * part) / _COMMON / part
                ranges.update({each: (wider * ranges[each][0], wider * ranges[each][1]) for each in group})


def _rounded_as(graph: onnx.GraphProto, name: str) -> str:
    """The tensor in whose range a sum is rounded: what a ReLU that alone reads it lets through, or itself."""
    readers = [node for node in graph.node if name in node.input]
    return readers[0].output[0] if len(readers) == 1 and readers[0].op_type in _CLIPPING else name


def avoid_ties(rounded: onnx.ModelProto, floats: onnx.ModelProto) -> None:
    """Give weights of a rounded graph scales with which sums stay away from ties, in place; they grow by 0.3 % at most.

    Weights stay as they are where their sums stay float, or are rounded to several scales.

    Args:
        rounded: of :func:`share_ranges`, with one reader for each rounded sum.
        floats: the graph that was rounded.
    """
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in floats.graph.initializer}
    graph = _RoundedGraph(rounded.graph)
    by_weight: dict[str, list[onnx.NodeProto]] = {}
    for node in rounded.graph.node:
        if node.op_type in _WEIGHTED and graph.maker_of(node.input[1]) is not None:
            by_weight.setdefault(node.input[1], []).append(node)
    for restored, nodes in by_weight.items():
        maker = graph.maker_of(restored)
        assert maker is not None
        ratios = [ratio for node in nodes if (ratio := graph.ratio(node)) is not None]
        if len(set(ratios)) != 1 or maker.input[0] not in graph.constants:
            continue
        exact = weights[maker.input[0].removesuffix(_ROUNDED)]
        axis = next((each.i for each in maker.attribute if each.name == "axis"), 1)
        before = graph.value(maker.input[1]).astype(np.float64)
        after = (_without_ties(before * ratios[0]) / ratios[0]).astype(np.float32)
        shape = [1] * exact.ndim
        shape[axis] = after.size
        integers = np.round(exact / after.reshape(shape if after.ndim else ()))
        graph.put(maker.input[0], integers.clip(-_LARGEST, _LARGEST).astype(np.int8))
        graph.put(maker.input[1], after)
        for node in nodes:
            graph.round_bias_again(node, after)


@dataclass
class _RoundedGraph:
    """A rounded graph whose constants change.

    Attributes:
        graph: nodes and constants.
    """

    graph: onnx.GraphProto

    def __post_init__(self) -> None:
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self._makers = {name: node for node in self.graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def value(self, name: str) -> Any:
        """A constant."""
        return numpy_helper.to_array(self.constants[name])

    def put(self, name: str, value: np.ndarray) -> None:
        """Change a constant."""
        self.constants[name].CopyFrom(numpy_helper.from_array(value, name))

    def maker_of(self, name: str) -> onnx.NodeProto | None:
        """The node that makes floats of integers, if a tensor is its output; else None."""
        node = self._makers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def ratio(self, node: onnx.NodeProto) -> float | None:
        """The scale of a node's input over that of its output; None where one is not rounded, or sums are scaled."""
        if any(each.name in ("alpha", "beta") and each.f != 1 for each in node.attribute):
            return None
        given, readers = self.maker_of(node.input[0]), self._readers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type in _CLIPPING:
            readers = self._readers.get(readers[0].output[0], [])
        if given is None or [reader.op_type for reader in readers] != ["QuantizeLinear"]:
            return None
        return float(self.value(given.input[1])) / float(self.value(readers[0].input[1]))

    def round_bias_again(self, node: onnx.NodeProto, scales: np.ndarray) -> None:
        """Bring a node's bias to the scale of its sums, given new scales of its weights."""
        maker = self.maker_of(node.input[2]) if len(node.input) > 2 else None
        given = self.maker_of(node.input[0])
        if maker is None or given is None:
            return
        # It was rounded once before, by 32 bits: what is lost is nothing beside the weights' 7.
        values = self.value(maker.input[0]) * self.value(maker.input[1]).astype(np.float64)
        of_sums = self.value(given.input[1]) * scales
        self.put(maker.input[0], np.round(values / of_sums).astype(np.int32))
        self.put(maker.input[1], of_sums.astype(np.float32))


def _without_ties(factors: np.ndarray) -> np.ndarray:
    """The least p / q with q odd that are as large as some factors or larger, float64, in their shape."""
    flat = np.maximum(factors.reshape(-1, 1), np.finfo(np.float32).tiny)
    denominators = _DENOMINATORS * (2 * np.round(1 / (2 * _SMALLEST * flat)) + 1)
    tried = np.ceil(flat * denominators) / denominators
    least: np.ndarray = tried.min(axis=1).reshape(factors.shape)
    return least
