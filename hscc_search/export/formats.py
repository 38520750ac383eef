"""Further files of an exported network, each checked by running it: ``export --format NAME``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import onnx_ir
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from hscc_search.config import Shape
from hscc_search.data import Part
from hscc_search.errors import ConfigError, ExportError, one_line
from hscc_search.evaluation.predictions import batches, pixel_values
from hscc_search.export.folder import ONNX, WEIGHTS, Pictures
from hscc_search.export.loss import Loss
from hscc_search.export.run import Folder, Refused, gap_between
from hscc_search.export.runtimes import (
    OPENERS,
    PACKAGES,
    Run,
    install_command,
    weights_beside,
    write_executorch,
    write_openvino,
    write_pt2,
)
from hscc_search.runtime.onnx import onnx_scores

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# The file of each format by its name; that of OpenVINO has another beside it, with the weights.
FORMATS = {
    "pt2": "model.pt2",
    "float16": "model-float16.onnx",
    "uint8": "model-uint8.onnx",
    "openvino": "model-openvino.xml",
    "executorch": "model.pte",
}
# How far scores may be from those of model.onnx, or of the torch module, as a share of the largest: by the order of
# additions, by rounding to 11 bits, and by an image's pixels that resizing leaves one of 255 apart.
_TOLERANCES = {"pt2": 1e-3, "float16": 0.02, "uint8": 0.05, "openvino": 1e-3, "executorch": 1e-3}
# The same for raw images that nothing resizes: they become the same numbers, and the same runtime adds them.
_UNRESIZED = 1e-3
# How far a file's own scores may be from those on another machine, which adds and converts in another order.
_ELSEWHERE = {"pt2": 1e-3, "float16": 0.005, "uint8": 1e-3, "openvino": 1e-3, "executorch": 1e-3}
# Added for 8-bit integers: where a runtime rounds one sum otherwise, one step of a tensor's range is passed on.
INT8_TOLERANCE = 0.05
# Those that are made of the torch module: of a trial of 8-bit integers, the float32 network that was rounded.
_OF_TORCH = ("pt2", "executorch")


@dataclass(frozen=True)
class Extras:
    """What an export is to hold, and may lose, beyond what every export does.

    Attributes:
        formats: further files, names of :data:`FORMATS`.
        accept_loss: whether rounded numbers, of an int8 trial or of a further file, may lose more on the test part than
            :meth:`hscc_search.export.loss.Loss.check` lets pass.
        key: that signs the manifest; None signs nothing.

    Raises:
        ConfigError: there is no such format, or the package that writes it is not installed.
    """

    formats: Sequence[str] = ()
    accept_loss: bool = False
    key: "Ed25519PrivateKey | None" = None

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise ConfigError(f"there is no format {name!r}: give {', '.join(FORMATS)}")
            if name in PACKAGES and (command := install_command(name)) is not None:
                raise ConfigError(f"format {name} needs a package that is not installed: {command}")


NO_EXTRAS = Extras()


class Further(NamedTuple):
    """What was written beyond the files of every export.

    Attributes:
        found: by the name of each file its ``bytes``, the ``gap`` of its scores from those of ``model.onnx``, or of the
            torch module where it is made of that, as a share of the largest, and where numbers were rounded to fewer
            bits the ``accuracy`` on the test part.
        answers: of each file to the inputs that anybody can make.
        tolerances: how far these answers may be from those on another machine, as a share of the largest score.
    """

    found: dict[str, dict[str, Any]]
    answers: dict[str, np.ndarray]
    tolerances: dict[str, float]


def check_formats(names: Sequence[str], of_integers: bool, pictures: Pictures) -> None:
    """Check that a trial can be written in some formats, before any work.

    Raises:
        ConfigError: a name of :data:`FORMATS` says what such a trial or study has not.
    """
    if "float16" in names and of_integers:
        raise ConfigError("format float16 is for float32 trials: this one is of 8-bit integers, which are smaller")
    squeezed = pictures.values == "uint8" and pictures.channels in (1, 3) and pictures.resize == "squeeze"
    if "uint8" in names and not squeezed:
        raise ConfigError("format uint8 is for images of 8 bits that data.resize: squeeze brings to size")


def write_formats(folder: Path, extras: Extras, module: nn.Module, test: Part, of_integers: bool) -> Further:
    """Write further files of the network of a folder, and run each.

    Args:
        folder: with ``model.onnx`` and ``architecture.json``.
        extras: with the formats, and whether they may lose more.
        module: the torch module of the folder.
        test: the test part, on which is measured what was rounded to fewer bits.
        of_integers: whether ``model.onnx`` is of 8-bit integers.

    Raises:
        ExportError: a file cannot be written, or answers otherwise than ``model.onnx`` or the torch module that it is
            made of; or it is wrong on more of the test part, and ``extras`` do not accept that.
    """
    further = Further({}, {}, {})
    for name in dict.fromkeys(extras.formats):
        file = FORMATS[name]
        try:
            _WRITERS[name](folder, module)
            further.answers[file] = answers(folder, name)
            further.found[file] = _found(folder, name, further.answers[file], module, of_integers)
            if name == "float16" or (name == "openvino" and of_integers):
                loss = _loss(folder, name, test)
                loss.check(f"in format {name}", f"in {ONNX}", "leave the format out", extras.accept_loss)
                further.found[file]["accuracy"] = loss.accuracy
        except ExportError:
            raise
        except Refused as error:
            raise ExportError(f"this network cannot be written in format {name}: {error}") from error
        except Exception as error:  # exporters, converters and runtimes raise whatever they meet in a user's network
            raise ExportError(
                f"this network cannot be written in format {name}: {one_line(error, with_type=True)}"
            ) from error
        further.tolerances[file] = _tolerance(_ELSEWHERE, name, of_integers)
    return further


def answers(folder: Path, name: str) -> np.ndarray:
    """Run the file of a format in its own runtime on the inputs that anybody can make.

    Raises:
        Exception: whatever the runtime raises; :class:`hscc_search.export.run.Refused` of ONNX Runtime.
    """
    if name in OPENERS:
        return OPENERS[name](folder / FORMATS[name])(Folder(folder).made_inputs())
    return Folder(folder, onnx=FORMATS[name]).made_scores()


def formats_list(found: Mapping[str, Mapping[str, Any]], grey: bool, of_integers: bool) -> str:
    """List further files, and how each is run, as a paragraph of a model card; nothing where there are none.

    Args:
        found: see :class:`Further`.
        grey: whether the network takes grey images.
        of_integers: whether ``model.onnx`` is of 8-bit integers.
    """
    mode = "L" if grey else "RGB"
    module = f"the torch module{', which is the float32 network that was rounded,' if of_integers else ''}"
    words = {
        "pt2": f"{module} for torch alone: "
        '`torch.export.load("model.pt2").module()(torch.from_numpy(pixels))`; as any such file it can run code when it '
        "is loaded, so take it from nobody whom you do not trust",
        "float16": "the same in 16-bit floats, which takes and returns float32",
        "uint8": "takes one upright image of any size as uint8, `numpy.asarray(PIL.ImageOps.exif_transpose(PIL.Image."
        f'open("image.jpg")).convert("{mode}"))`, and resizes and scales it within the graph',
        "openvino": "with `model-openvino.bin`, for OpenVINO: `openvino.Core().compile_model("
        '"model-openvino.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels)[0]`; without that hint some '
        "processors compute in bfloat16",
        "executorch": f"{module} for ExecuTorch with XNNPACK, one image at a time: "
        '`program = executorch.runtime.Runtime.get().load_program("model.pte")`, and while that is held '
        '`program.load_method("forward").execute([torch.from_numpy(pixels).contiguous()])[0]`; a tensor that is not '
        "contiguous is read wrongly, without a word",
    }
    lines = []
    for name, file in FORMATS.items():
        if file not in found:
            continue
        accuracy = f", accuracy on the test part {found[file]['accuracy']:.4f}" if "accuracy" in found[file] else ""
        measured = f"{found[file]['bytes'] / 1e6:.1f} MB, scores of made images differ by up to "
        measured += f"{found[file]['gap']:.1g} of the largest{accuracy}"
        lines.append(f"- `{file}`: {words[name]} ({measured})")
    return "\n\n" + "\n".join(lines) if lines else ""


def _found(folder: Path, name: str, scores: np.ndarray, module: nn.Module, of_integers: bool) -> dict[str, Any]:
    """What is told of a file, which has answered to the made inputs.

    Raises:
        ExportError: it does not answer as ``model.onnx``, or as the torch module where it is made of that.
    """
    exported, path = Folder(folder), folder / FORMATS[name]
    inputs = exported.made_inputs()
    if name == "uint8":
        _check_unresized(folder)
        noise, resizing = _noise(exported.shape, larger=True), Folder(folder, onnx=path.name)
        scores = np.concatenate([scores, *(resizing.scores(np.asarray(image)) for image in noise)])
        inputs = np.concatenate([inputs, *map(exported.pixels, noise)])
    if of_torch := name in _OF_TORCH:
        with torch.no_grad():
            expected = module(torch.from_numpy(inputs)).numpy()
    else:
        expected = exported.scores(inputs)
    tolerance = _tolerance(_TOLERANCES, name, of_integers)
    gap = _checked_gap(
        f"format {name} answers otherwise than {WEIGHTS if of_torch else ONNX}", scores, expected, tolerance
    )
    files = [path, *([weights_beside(path)] if name == "openvino" else [])]
    return {"bytes": sum(file.stat().st_size for file in files), "gap": gap}


def _check_unresized(folder: Path) -> None:
    """Check that the file for raw images answers to those of the network's size, which stay as they are, as to floats.

    Raises:
        ExportError: it does not.
    """
    exported, raw = Folder(folder), Folder(folder, onnx=FORMATS["uint8"])
    images = _noise(exported.shape, larger=False)
    scores = np.concatenate([raw.scores(np.asarray(image)) for image in images])
    expected = np.concatenate([exported.scores(exported.pixels(image)) for image in images])
    _checked_gap(f"format uint8 answers otherwise than {ONNX} to images of its size", scores, expected, _UNRESIZED)


def _checked_gap(fault: str, scores: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """The gap of scores, as a share of the largest.

    Raises:
        ExportError: it is larger than the tolerance; the message begins with ``fault``.
    """
    gap = gap_between(scores, expected)
    if not gap <= tolerance:
        raise ExportError(f"{fault}: scores differ by {gap:.2g} of the largest, more than {tolerance:g}: leave it out")
    return gap


def _loss(folder: Path, name: str, test: Part) -> Loss:
    """The accuracy on the test part that the rounding of a format has cost beside ``model.onnx``."""
    path = folder / FORMATS[name]
    given = _scores(OPENERS[name](path), test) if name in OPENERS else onnx_scores(path, test)
    return Loss.of(given, onnx_scores(folder / ONNX, test), test.labels)


def _tolerance(tolerances: Mapping[str, float], name: str, of_integers: bool) -> float:
    return tolerances[name] + (INT8_TOLERANCE if of_integers and name not in _OF_TORCH else 0)


def _scores(run: Run, test: Part) -> np.ndarray:
    return np.concatenate([run(pixel_values(torch.from_numpy(images)).numpy()) for images in batches(test.images)])


def _noise(shape: Shape, larger: bool, count: int = 8) -> list[Image.Image]:
    """Images whose pixels have nothing to do with their neighbours: they show best where resizing rounds otherwise.

    Args:
        shape: of an input: channels, height, width.
        larger: whether they are larger than an input, or of its size.
        count: their number.
    """
    channels, height, width = shape
    numbers = np.random.default_rng(0)
    sides = (height * 3 // 2 + 1, width * 2 + 1) if larger else (height, width)
    sizes = (*sides, *([] if channels == 1 else [3]))
    return [Image.fromarray(numbers.integers(0, 256, sizes, np.uint8)) for _ in range(count)]


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


# What writes the file of a format into the folder of a torch module.
_WRITERS: Mapping[str, Callable[[Path, nn.Module], None]] = {
    "pt2": lambda folder, module: write_pt2(module, Folder(folder).shape, folder / FORMATS["pt2"]),
    "float16": lambda folder, _: _write_float16(folder / ONNX, folder / FORMATS["float16"]),
    "uint8": lambda folder, _: _write_uint8(folder / ONNX, Folder(folder).shape, folder / FORMATS["uint8"]),
    "openvino": lambda folder, _: write_openvino(folder / ONNX, folder / FORMATS["openvino"]),
    "executorch": lambda folder, module: write_executorch(module, Folder(folder).shape, folder / FORMATS["executorch"]),
}
