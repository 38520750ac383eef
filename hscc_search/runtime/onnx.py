"""Write a module as one ONNX file with a batch of any size."""

import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from hscc_search.config import Shape, shape_of
from hscc_search.errors import ExportError
from hscc_search.progress import errors_only
from hscc_search.runtime.rewrites import save_copies


def write_onnx(module: nn.Module, shape: int | Shape, path: Path) -> None:
    """Export a module that takes float32 (batch, channels, height, width) and returns (batch, classes).

    Args:
        module: in evaluation mode, on the CPU.
        shape: of one image, see :func:`hscc_search.config.shape.shape_of`.
        path: of the file to write, weights included.

    Raises:
        ExportError: torch cannot export the network, or for one size of batch alone.
    """
    example = torch.zeros(2, *shape_of(shape))
    try:
        with errors_only("torch.onnx"), warnings.catch_warnings():
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
            save_copies(program.model)
            program.save(path, external_data=False)
    except Exception as error:  # the exporter raises whatever it meets in a user's network
        message = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ExportError(f"torch cannot export this network to ONNX: {message}") from error
    onnx.checker.check_model(path)
    batch = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0]
    if batch.HasField("dim_value"):
        path.unlink()
        raise ExportError(
            f"torch exports this network to ONNX for batches of {batch.dim_value} images alone, as its forward pass "
            "goes through the images one by one: write it for a whole batch"
        )
