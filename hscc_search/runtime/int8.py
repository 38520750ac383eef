"""Write a module as an ONNX file that computes with 8-bit integers, as most processors do fastest.

ONNX Runtime's quantizer writes the file: weights are integers of 7 bits with a scale for each output channel, what
passes between operators is uint8 with one range for each tensor. What is chosen here: the ranges
(:mod:`hscc_search.runtime.ranges`), scales with which all runtimes round alike
(:mod:`hscc_search.runtime.ties`), and the operators that stay in float, where rounding them changes answers too much.
"""

import bisect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData
from scipy.special import log_softmax
from torch import nn

from hscc_search.config import Shape
from hscc_search.errors import ExportError, one_line
from hscc_search.progress import Progress, Report, silent
from hscc_search.runtime.input_rounding import Normalisation, find_normalisation, normalise_while_rounding
from hscc_search.runtime.onnx import onnx_program
from hscc_search.runtime.ranges import learn_ranges
from hscc_search.runtime.rewrites import save_copies
from hscc_search.runtime.ties import avoid_ties, share_ranges

# Images that ranges are learnt from, and those on which float and integer answers are compared.
_RANGE_IMAGES, _JUDGED_IMAGES = 256, 128
# The largest mean divergence of the integer file's answers from the float file's, in nats, before operators are kept in
# float: about a tenth of what compressing a network to a sixth costs.
MOST_DIVERGENCE = 0.005
# Operators that are rounded. Others run in float between: normalisations and what activations are built of.
_ROUNDED = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Slice", "Split", "Pad"),
    *("Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
)
# Operators with weights: what follows one is tried in float together with it.
_WEIGHTED = ("Conv", "Gemm", "MatMul")
_BATCH = 64


@dataclass(frozen=True)
class Int8:
    """The outcome of rounding a network to 8-bit integers.

    Attributes:
        divergence: mean divergence of its answers from those of the float network, in nats, on images that its ranges
            were learnt from.
        in_float: names of the operators that stay in float.
    """

    divergence: float
    in_float: tuple[str, ...]


def write_int8(module: nn.Module, shape: int | Shape, images: np.ndarray, path: Path, report: Report = silent) -> Int8:
    """Write a module as one ONNX file of 8-bit integers with a batch of any size.

    While answers change by more than :data:`MOST_DIVERGENCE`, the operators that cost most stay in float.

    Args:
        module: as for :func:`hscc_search.runtime.onnx.write_onnx`.
        shape: of one image, likewise.
        images: inputs to learn ranges from, float32 (images, ...), of all kinds; no labels are needed.
        path: of the file to write.
        report: told where operators are tried one by one.

    Raises:
        ExportError: torch cannot export the network, ONNX Runtime cannot round or run it, or it answers with a single
            score, by which nobody could tell what rounding costs.
    """
    program = onnx_program(module, shape)
    save_copies(program.model)
    model = _named(program.model_proto)
    try:
        judged = _spread(images, _JUDGED_IMAGES)
        answers = _answers(model, judged)
        if not np.isfinite(answers).all():
            raise ExportError("this network answers with values that are not finite")
        if answers.shape[1] < 2:
            raise ExportError("what rounding costs is judged by scores of two classes or more; here is a single score")
        ranges = share_ranges(model, learn_ranges(model, _spread(images, _RANGE_IMAGES)))
        rounding = _Rounding(model, ranges, judged, answers, find_normalisation(model, ranges))
        in_float = rounding.kept_in_float(report)
        written = rounding.rounded(in_float)
        divergence = rounding.divergence(written)
        onnx.checker.check_model(written)
    except ExportError:
        raise
    except Exception as error:  # ONNX Runtime raises whatever it meets in a user's graph
        reason = one_line(error, with_type=True)
        raise ExportError(f"ONNX Runtime cannot write this network in 8-bit integers: {reason}") from error
    if not np.isfinite(divergence):
        raise ExportError("in 8-bit integers this network answers with values that are not finite")
    if not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in written.graph.initializer):
        raise ExportError("rounding any layer of this network to 8-bit integers changes its answers too much")
    onnx.save(written, path)
    return Int8(divergence, tuple(in_float))


@dataclass(frozen=True)
class _Rounding:
    """A float graph with what is needed to round it.

    Attributes:
        model: the graph.
        ranges: of its tensors.
        images: to compare answers on.
        answers: of the graph to these images.
        normalisation: in front of the graph; None where it has none.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, tuple[float, float]]
    images: np.ndarray
    answers: np.ndarray
    normalisation: Normalisation | None

    def rounded(self, in_float: Collection[str] = (), alone: Collection[str] = ()) -> onnx.ModelProto:
        """Round a copy of the graph but for some nodes, or some nodes alone."""
        model = onnx.shape_inference.infer_shapes(self.model)  # a copy
        data = {name: tuple(map(np.float32, each)) for name, each in self.ranges.items()}
        overrides = {} if self.normalisation is None else self.normalisation.overrides()
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=True,  # 7 bits: of 8, sums of two products overflow on processors without VNNI
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=list(alone),
            nodes_to_exclude=list(in_float),
            op_types_to_quantize=list(_ROUNDED),
            extra_options={"MatMulConstBOnly": True, "TensorQuantOverrides": overrides},
        )
        quantizer.quantize_model()
        rounded = _with_float_answers(quantizer.model.model)
        if self.normalisation is not None:
            normalise_while_rounding(rounded, self.normalisation)
        quantizer.model.topological_sort()
        avoid_ties(rounded, self.model)
        return _without_unused(rounded)

    def divergence(self, rounded: onnx.ModelProto) -> float:
        """The mean divergence of a rounded graph's answers; infinite where they are not finite."""
        wanted, given = (
            log_softmax(answers.astype(np.float64), axis=1)
            for answers in (self.answers, _answers(rounded, self.images))
        )
        mean = float((np.exp(wanted) * (wanted - given)).sum(axis=1).mean())
        return max(mean, 0.0) if np.isfinite(mean) else np.inf

    def kept_in_float(self, report: Report) -> list[str]:
        """Choose the nodes that stay in float: none where rounding all costs little, else those that cost most."""
        if self.divergence(self.rounded()) <= MOST_DIVERGENCE:
            return []
        steps, costs = self._steps(), []
        for done, step in enumerate(steps, 1):
            costs.append(self.divergence(self.rounded(alone=step)))
            report(Progress("rounding step by step", done, len(steps)))
        worst_first = [steps[position] for position in np.argsort(costs)[::-1]]

        def enough(count: int) -> bool:
            in_float = [name for step in worst_first[:count] for name in step]
            return self.divergence(self.rounded(in_float)) <= MOST_DIVERGENCE

        count = bisect.bisect_left(range(1, len(steps)), True, key=enough) + 1
        return sorted(name for step in worst_first[:count] for name in step)

    def _steps(self) -> list[list[str]]:
        """Divide the nodes that can be rounded into those with weights, each with the ones up to the next."""
        steps: list[list[str]] = [[]]
        for node in self.model.graph.node:
            if node.op_type in _WEIGHTED and steps[-1]:
                steps.append([])
            if node.op_type in _ROUNDED:
                steps[-1].append(node.name)
        return steps


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give each node a name of its own, by which the quantizer knows it."""
    for position, node in enumerate(model.graph.node):
        node.name = f"{position} {node.op_type} {node.input[1] if node.op_type in _WEIGHTED else node.output[0]}"
    return model


def _with_float_answers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let a graph answer with what its last operator computed, not rounded: a score of 256 values makes ties."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        back = makers[output.name]
        rounding = makers.get(back.input[0]) if back.op_type == "DequantizeLinear" else None
        if rounding is None or rounding.op_type != "QuantizeLinear":
            continue
        source = rounding.input[0]
        readers = sum(name == source for node in graph.node for name in node.input)
        if source not in makers or readers > 1:
            continue
        maker = makers[source]
        maker.output[list(maker.output).index(source)] = output.name
        graph.node.remove(back)
        graph.node.remove(rounding)
    return model


def _without_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove constants that nothing reads."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return model


def _answers(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate(
        [session.run(None, {name: images[first : first + _BATCH]})[0] for first in range(0, len(images), _BATCH)]
    )


def _spread(images: np.ndarray, count: int) -> np.ndarray:
    """Choose some images, evenly over all: the first ones may all be of one class."""
    if len(images) <= count:
        return images
    chosen: np.ndarray = images[np.linspace(0, len(images) - 1, count).round().astype(int)]
    return chosen
