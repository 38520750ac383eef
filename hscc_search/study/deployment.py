"""The network of a trial as it is deployed: with its normalisation, and as a file of 8-bit integers."""

import copy
import json
from pathlib import Path

from torch import nn

from hscc_search.compression.balancing import balance
from hscc_search.dense.opened import Opened
from hscc_search.evaluation.predictions import network_input, pixel_values
from hscc_search.progress import Report, silent
from hscc_search.runtime.deployed import Deployed
from hscc_search.runtime.int8 import Int8, write_int8
from hscc_search.runtime.onnx import add_metadata, write_onnx
from hscc_search.study.opening import calibration_pixels


def normalisation(opened: Opened) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std of each channel; 0 and 1 where a data set of the user's own gives what the network takes."""
    data = opened.config.data
    if opened.dataset.images.dtype.kind == "f":
        return (0.0,) * data.channels, (1.0,) * data.channels
    return data.mean, data.std


def deployed(network: nn.Module, opened: Opened) -> Deployed:
    """The module that takes images with values 0 to 1; it holds ``network``, which is moved to the CPU."""
    return Deployed(network, *normalisation(opened), opened.config.data.shape).cpu().eval()


def in_short(opened: Opened) -> dict[str, str]:
    """What a program needs that has an ONNX file alone, as texts by name."""
    mean, std = normalisation(opened)
    values = "" if opened.dataset.images.dtype.kind == "f" else ", values 0 to 1"
    return {
        "classes": json.dumps(opened.dataset.classes),
        "input": f"float32, shape (images, {', '.join(map(str, opened.config.data.shape))}){values}",
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "normalisation": "mean and std are within the network, which takes values before normalisation",
    }


def write_float_file(module: Deployed, opened: Opened, path: Path) -> None:
    """Write a network as an ONNX file of 32-bit floats.

    Args:
        module: from :func:`deployed`.
        opened: images and configuration of the study.
        path: of the file.

    Raises:
        ExportError: the network cannot be exported.
        DiskFullError: there is no room for the file.
    """
    write_onnx(module, opened.config.data.shape, path)
    add_metadata(path, in_short(opened))


def write_int8_file(network: nn.Module, opened: Opened, path: Path, report: Report = silent) -> Int8:
    """Write a compressed network as an ONNX file of 8-bit integers, whose ranges are learnt from calibration images.

    Args:
        network: a compressed one, in evaluation mode; it is not changed.
        opened: images and configuration of the study.
        path: of the file.
        report: told where operators are tried in float.

    Raises:
        ExportError: the network cannot be exported, or ONNX Runtime cannot round or run it.
    """
    config, images = opened.config, calibration_pixels(opened)
    network = copy.deepcopy(network).cpu()
    balance(network, network_input(images, config.data))
    course = write_int8(deployed(network, opened), config.data.shape, pixel_values(images).numpy(), path, report)
    add_metadata(path, in_short(opened))
    return course
