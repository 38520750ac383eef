"""Normalisation of the input and its rounding to 8 bits in one operation, where a graph begins with both.

``(x - mean) / std`` and ``round(y / scale) + zero`` are one rounding of x whose scale and zero point differ by channel:
``round(x / (std scale)) + (zero - mean / (std scale))``. That the zero points are whole numbers moves a channel by half
a step at most; the scale is chosen such that they nearly are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

_STEPS = 255
# The scale may be larger than it has to be by this factor, in so many steps.
_LARGEST, _TRIED = 1.05, 501


@dataclass(frozen=True)
class Normalisation:
    """The normalisation that a graph begins with, and how what it gives is rounded.

    Attributes:
        given: name of the graph's input.
        normalised: name of the normalised tensor.
        scale: of a step of the normalised tensor.
        zero: the step that stands for 0.
        scales: of a step of the input, float32 (channels,).
        zeros: the step of the input's 0, uint8 (channels,).
    """

    given: str
    normalised: str
    scale: float
    zero: int
    scales: np.ndarray
    zeros: np.ndarray

    def overrides(self) -> dict[str, list[dict[str, Any]]]:
        """Tell ONNX Runtime's quantizer of scale and zero point."""
        values = {"scale": np.array(self.scale, np.float32), "zero_point": np.array(self.zero, np.uint8)}
        return {self.normalised: [values]}


def find_normalisation(model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> Normalisation | None:
    """Find ``(x - mean) / std`` by channel at the beginning of a graph, and choose how it is rounded.

    Args:
        model: the float graph.
        ranges: of its tensors.

    Returns:
        None where the graph begins otherwise, or a channel's zero point would not be among the 256 steps.
    """
    graph = model.graph
    given = graph.input[0].name
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = [node for node in graph.node if given in node.input]
    if len(readers) != 1 or readers[0].op_type != "Sub" or readers[0].input[1] not in constants:
        return None
    difference = readers[0].output[0]
    readers = [node for node in graph.node if difference in node.input]
    if len(readers) != 1 or readers[0].op_type != "Div" or readers[0].input[1] not in constants:
        return None
    subtracted = next(node for node in graph.node if given in node.input).input[1]
    mean, std = (numpy_helper.to_array(constants[name]) for name in (subtracted, readers[0].input[1]))
    if mean.shape != std.shape or mean.ndim != 4 or mean.size != mean.shape[1] or not (std > 0).all():
        return None
    normalised = readers[0].output[0]
    return _chosen(
        given, normalised, mean.ravel().astype(np.float64), std.ravel().astype(np.float64), ranges[normalised]
    )


def _chosen(
    given: str, normalised: str, mean: np.ndarray, std: np.ndarray, bounds: tuple[float, float]
) -> Normalisation | None:
    """Choose the scale whose zero points are nearest to whole numbers in the worst channel."""
    low, high = bounds
    least = (high - low) / _STEPS
    if not least > 0:
        return None
    scales = least * np.linspace(1, _LARGEST, _TRIED)
    zeros = np.ceil(-low / scales)
    scales, zeros = (values[zeros + high / scales <= _STEPS + 0.5] for values in (scales, zeros))
    exact = zeros[:, None] - mean / (std * scales[:, None])
    off = np.abs(exact - exact.round()).max(axis=1)
    inside = (exact.round() >= 0).all(axis=1) & (exact.round() <= _STEPS).all(axis=1)
    if not inside.any():
        return None
    best = int(np.where(inside, off, np.inf).argmin())
    return Normalisation(
        given,
        normalised,
        float(np.float32(scales[best])),
        int(zeros[best]),
        (std * scales[best]).astype(np.float32),
        exact[best].round().astype(np.uint8),
    )


def normalise_while_rounding(model: onnx.ModelProto, normalisation: Normalisation) -> None:
    """Let a rounded graph round its input at once, in place; not where what is normalised stays float."""
    graph = model.graph
    readers = [node for node in graph.node if normalisation.normalised in node.input]
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        return
    rounding = readers[0]
    scales, zeros = f"{normalisation.given}_scales", f"{normalisation.given}_zeros"
    graph.initializer.append(numpy_helper.from_array(normalisation.scales, scales))
    graph.initializer.append(numpy_helper.from_array(normalisation.zeros, zeros))
    rounding.input[:] = [normalisation.given, scales, zeros]
    rounding.attribute.append(onnx.helper.make_attribute("axis", 1))
    makers = {name: node for node in graph.node for name in node.output}
    divided = makers[normalisation.normalised]
    graph.node.remove(makers[divided.input[0]])
    graph.node.remove(divided)
