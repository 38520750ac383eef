"""Write a module as one ONNX file with a batch of any size, and run such a file."""

import io
import re
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from hscc_search.config import Shape, shape_of
from hscc_search.data import Part
from hscc_search.errors import ExportError, one_line
from hscc_search.evaluation.predictions import batches, pixel_values
from hscc_search.progress import errors_only
from hscc_search.runtime.rewrites import save_copies

# Colours and other commands to a terminal in the exporter's messages.
_TERMINAL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def write_onnx(module: nn.Module, shape: int | Shape, path: Path) -> None:
    """Export a module that takes float32 (batch, channels, height, width) and returns (batch, classes, ...).

    Args:
        module: in evaluation mode, on the CPU.
        shape: of one image, see :func:`hscc_search.config.pictures.shape_of`.
        path: of the file to write, weights included.

    Raises:
        ExportError: torch cannot export the network, or for one size of batch alone.
    """
    program = onnx_program(module, shape)
    save_copies(program.model)
    program.save(path, external_data=False)
    onnx.checker.check_model(path)


def onnx_program(module: nn.Module, shape: int | Shape) -> torch.onnx.ONNXProgram:
    """Export a module as :func:`write_onnx` does, without writing it.

    Raises:
        ExportError: torch cannot export the network, or for one size of batch alone.
    """
    example = torch.zeros(2, *shape_of(shape))
    try:
        # The exporter prints whole graphs on the way to an error.
        with errors_only("torch"), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["scores"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        assert program is not None
    except Exception as error:  # the exporter raises whatever it meets in a user's network
        raise ExportError(f"torch cannot export this network to ONNX: {_reason(error)}") from error
    taken = program.model.graph.inputs[0].shape
    if taken is None or isinstance(taken[0], int):
        raise ExportError(
            "torch exports this network to ONNX for one size of batch alone, as its forward pass goes through the "
            "images one by one: write it for a whole batch"
        )
    # Source lines and paths of the machine that exports, in a file that others get.
    ClearMetadataAndDocStringPass()(program.model)
    return program


def add_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Write texts by name into an ONNX file behind those that it has; all else stays as it is."""
    model = onnx.load(path)
    for name, text in metadata.items():
        model.metadata_props.add(key=name, value=text)
    onnx.save(model, path)


def contents_of(path: Path) -> dict[str, Any]:
    """The ``opset``, the ``operators`` and the ``bytes`` of an ONNX file; operators of other domains with theirs."""
    model = onnx.load(path)
    operators = {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node}
    (opset,) = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    return {"opset": opset, "operators": sorted(operators), "bytes": path.stat().st_size}


def onnx_scores(path: Path, part: Part) -> np.ndarray:
    """Run an ONNX file that takes images with values 0 to 1 over a part of the data.

    Returns:
        Scores before softmax, float32, shape (images, classes), or (images, classes, height, width) for maps.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    scores = [
        session.run(None, {name: pixel_values(torch.from_numpy(images)).numpy()})[0] for images in batches(part.images)
    ]
    return np.concatenate(scores)


def _reason(error: BaseException) -> str:
    """The reason of a failed export: the exporter wraps it in advice and in errors that only say that it failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    advice, text = "\n\n", _TERMINAL.sub("", str(error))
    return one_line(text.strip().partition(advice)[0] or type(error).__name__)
