"""Write a module as one ONNX file with a batch of any size."""

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from hscc_search.errors import ExportError
from hscc_search.runtime.rewrites import save_copies


def write_onnx(module: nn.Module, image_size: int, path: Path) -> None:
    """Export a module that takes (batch, 3, image_size, image_size) and returns (batch, classes).

    Args:
        module: in evaluation mode, on the CPU.
        image_size: side of the images in pixels.
        path: of the one file that is written, weights included.

    Raises:
        ExportError: torch cannot export the network.
    """
    example = torch.zeros(2, 3, image_size, image_size)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
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
    except Exception as error:  # whatever the exporter meets in a user's network
        message = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ExportError(f"torch cannot export this network to ONNX: {message}") from error
    finally:
        logger.setLevel(level)
    onnx.checker.check_model(path)
