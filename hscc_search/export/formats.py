"""Further files of an exported network, each checked by running it: ``export --format NAME``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from hscc_search.config import Shape
from hscc_search.data import Part
from hscc_search.errors import ConfigError, ExportError, one_line
from hscc_search.export.folder import ONNX, Pictures
from hscc_search.export.run import Folder
from hscc_search.runtime.onnx import onnx_scores

# The file of each format by its name.
FORMATS = {"pt2": "model.pt2", "float16": "model-float16.onnx", "uint8": "model-uint8.onnx"}
# How far scores may be from those of model.onnx, as a share of the largest: by the order of additions, by rounding to
# 11 bits, and by an image's pixels that are one of 255 apart.
_TOLERANCES = {"pt2": 1e-3, "float16": 0.02, "uint8": 0.05}
# What torch keeps of each node for its own messages: the source lines and paths of the machine that exports.
_OF_THE_MACHINE = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


@dataclass(frozen=True)
class Extras:
    """What an export is to hold, and may lose, beyond what every export does.

    Attributes:
        formats: further files, names of :data:`FORMATS`.
        accept_loss: whether an int8 trial may lose more on the test part than
            :func:`hscc_search.export.checking.check_loss` lets pass.
    """

    formats: Sequence[str] = ()
    accept_loss: bool = False


NO_EXTRAS = Extras()


def check_formats(names: Sequence[str], of_integers: bool, pictures: Pictures) -> None:
    """Check that a trial can be written in some formats, before any work.

    Raises:
        ConfigError: a name is none of :data:`FORMATS`, or says what such a trial or study has not.
    """
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"there is no format {name!r}: give {', '.join(FORMATS)}")
    if "float16" in names and of_integers:
        raise ConfigError("format float16 is for float32 trials: this one is of 8-bit integers, which are smaller")
    squeezed = pictures.values == "uint8" and pictures.channels in (1, 3) and pictures.resize == "squeeze"
    if "uint8" in names and not squeezed:
        raise ConfigError("format uint8 is for images of 8 bits that data.resize: squeeze brings to size")


def write_formats(folder: Path, names: Sequence[str], module: nn.Module, test: Part) -> dict[str, dict[str, Any]]:
    """Write further files of the network of a folder, and run each.

    Args:
        folder: with ``model.onnx`` and ``architecture.json``.
        names: of :data:`FORMATS`.
        module: the torch module of the folder.
        test: the test part, on which float16 is measured.

    Returns:
        By the name of each file its ``bytes``, the ``gap`` of its scores from those of ``model.onnx`` as a share of the
        largest, and of float16 the ``accuracy`` on the test part.

    Raises:
        ExportError: a file cannot be written, or answers otherwise than ``model.onnx``.
    """
    return {FORMATS[name]: _written(folder, name, module, test) for name in dict.fromkeys(names)}


def _written(folder: Path, name: str, module: nn.Module, test: Part) -> dict[str, Any]:
    path, exported = folder / FORMATS[name], Folder(folder)
    inputs = exported.made_inputs()
    found: dict[str, Any] = {}
    try:
        if name == "pt2":
            _write_pt2(module, exported.shape, path)
            with torch.no_grad():
                scores = torch.export.load(path).module()(torch.from_numpy(inputs)).numpy()
        elif name == "float16":
            _write_float16(folder / ONNX, path)
            scores = _run(path, inputs)
            found["accuracy"] = float((onnx_scores(path, test).argmax(axis=1) == test.labels).mean())
        else:
            _write_uint8(folder / ONNX, exported.shape, path)
            images = [*exported.made_images(), *_noise(exported.shape)]
            scores = np.concatenate([_run(path, np.asarray(image)) for image in images])
            inputs = np.concatenate([exported.pixels(image) for image in images])
    except Exception as error:  # exporters and converters raise whatever they meet in a user's network
        raise ExportError(
            f"this network cannot be written in format {name}: {one_line(error, with_type=True)}"
        ) from error
    expected = exported.scores(inputs)
    if name == "pt2":  # of a file of 8-bit integers it is the float32 network that was rounded
        with torch.no_grad():
            expected = module(torch.from_numpy(inputs)).numpy()
    gap = float(np.abs(scores - expected).max() / max(1.0, np.abs(expected).max()))
    if not gap <= _TOLERANCES[name]:
        raise ExportError(
            f"format {name} answers otherwise than {ONNX}: scores differ by {gap:.2g} of the largest, more than "
            f"{_TOLERANCES[name]:g}: leave it out"
        )
    return {"bytes": path.stat().st_size, "gap": gap, **found}


def _noise(shape: Shape, count: int = 8) -> list[Image.Image]:
    """Images whose pixels have nothing to do with their neighbours: they show best where resizing rounds otherwise."""
    channels, height, width = shape
    numbers = np.random.default_rng(0)
    sizes = (height * 3 // 2 + 1, width * 2 + 1, *([] if channels == 1 else [3]))
    return [Image.fromarray(numbers.integers(0, 256, sizes, np.uint8)) for _ in range(count)]


def _write_pt2(module: nn.Module, shape: Shape, path: Path) -> None:
    example = torch.zeros(2, *shape)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        for key in _OF_THE_MACHINE:
            node.meta.pop(key, None)
    torch.export.save(program, path)


def _write_float16(source: Path, path: Path) -> None:
    """Write a graph with weights and computation in float16, which still takes and returns float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx_ir.from_proto(convert_float_to_float16(onnx.load(source), keep_io_types=True))
    model.graph.sort()  # the converter puts its casts at the end
    _save(onnx_ir.to_proto(model), path)


def _write_uint8(source: Path, shape: Shape, path: Path) -> None:
    """Write a graph that takes one image of any size as uint8, (height, width, 3) or grey (height, width)."""
    channels, height, width = shape
    grey = channels == 1
    constants = {
        "front": np.array([0, 1] if grey else [0]),
        "size": np.array([1, channels, height, width]),
        "white": np.array(255, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["values"], ["planes"], perm=[0, 1] if grey else [2, 0, 1]),
        helper.make_node("Unsqueeze", ["planes", "front"], ["batch"]),
        # As Pillow: pixels beyond the border have no part in those at the border.
        helper.make_node(
            *("Resize", ["batch", "", "", "size"], ["sized"]),
            mode="linear",
            antialias=1,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Round", ["sized"], ["whole"]),
        helper.make_node("Div", ["whole", "white"], ["pixels"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", *([] if grey else [3])])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, channels, height, width])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = onnx.load(source)
    graph = helper.make_graph(nodes, "reading", [image], [pixels], tensors)
    reading = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    reading = onnx.compose.add_prefix(reading, "reading_", rename_inputs=False)
    merged = onnx.compose.merge_models(reading, model, [("reading_pixels", model.graph.input[0].name)])
    metadata: Mapping[str, str] = {prop.key: prop.value for prop in model.metadata_props}
    taken = "height, width" if grey else "height, width, 3"
    helper.set_model_props(merged, {**metadata, "input": f"uint8, shape ({taken}), one upright image of any size"})
    _save(merged, path)


def _save(model: onnx.ModelProto, path: Path) -> None:
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _run(path: Path, values: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: values})[0])
