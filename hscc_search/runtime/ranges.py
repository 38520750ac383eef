"""The ranges in which the tensors of a graph are rounded to 256 values, learnt from images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime

# Images per batch: all tensors of a graph are held at once.
_BATCH = 8
# Values of a tensor that are kept for each image of a batch; positions are drawn once.
_KEPT = 512
# Shares of a tensor's whole range that are tried.
_SHARES = np.geomspace(1, 0.2, 17)
_STEPS = 255


@dataclass
class _Seen:
    """The finite values that a tensor took: the smallest, the largest, and some of each batch."""

    positions: np.ndarray
    low: float = 0.0
    high: float = 0.0
    kept: list[np.ndarray] = field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        # A mask may hold infinite ones, and the first axis need not be of images.
        finite = values[np.isfinite(values)]
        if len(finite):
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
            self.kept.append(finite[self.positions % len(finite)])


def learn_ranges(model: onnx.ModelProto, images: np.ndarray) -> dict[str, tuple[float, float]]:
    """Choose the range of each float tensor in which rounding changes its values least: values beyond it are clipped.

    Args:
        model: a graph with one input, whose first axis is of images.
        images: its input, float32 (images, ...).

    Returns:
        The lowest and the highest value by name of the tensor; each range holds 0.
    """
    return {name: _best_range(seen) for name, seen in _watch(model, images).items()}


def _watch(model: onnx.ModelProto, images: np.ndarray) -> Mapping[str, _Seen]:
    """Run a graph over images and keep what its tensors held."""
    seen: dict[str, _Seen] = {}
    generator = np.random.default_rng(0)
    for values in _tensors(model, images):
        for name, tensor in values.items():
            if name not in seen:
                most = _KEPT * len(images[:_BATCH])
                few = tensor.size <= most
                seen[name] = _Seen(np.arange(tensor.size) if few else generator.integers(1 << 40, size=most))
            seen[name].add(tensor.ravel())
    return seen


def _tensors(model: onnx.ModelProto, images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Run a graph over images; give all float tensors of each batch by name."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    types = {
        info.name: info.type.tensor_type.elem_type for info in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    given = {output.name for output in model.graph.output}
    names = [
        name
        for node in model.graph.node
        for name in node.output
        if name in given or types.get(name) == onnx.TensorProto.FLOAT
    ]
    for name in names:
        if name not in given:
            watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    # Fused operators would hide tensors.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given_name = session.get_inputs()[0].name
    for first in range(0, len(images), _BATCH):
        batch = images[first : first + _BATCH]
        yield {given_name: batch, **dict(zip(names, session.run(names, {given_name: batch}), strict=True))}


def _best_range(seen: _Seen) -> tuple[float, float]:
    """The range, of several shares of the whole, in which the kept values change least in the mean square."""
    if seen.low == seen.high:
        return seen.low, seen.high
    values = np.concatenate(seen.kept)
    ranges = [(share * seen.low, share * seen.high) for share in _SHARES]
    costs = [np.square(_rounded(values, *each) - values).mean() for each in ranges]
    return ranges[int(np.argmin(costs))]


def _rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Round values to 256 evenly spaced ones, of which 0 is one."""
    step = (high - low) / _STEPS
    zero = round(-low / step)
    rounded: np.ndarray = (np.clip(np.round(values / step) + zero, 0, _STEPS) - zero) * step
    return rounded
