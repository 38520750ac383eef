"""Files for runtimes other than ONNX Runtime: torch.export, OpenVINO and ExecuTorch, each written and run."""

import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hscc_search.config import Shape
from hscc_search.export.run import LARGEST_MODEL, regular

# Formats that need a package, which has their name, as has the extra that installs it.
PACKAGES = ("openvino", "executorch")
# What a made-up file of a format can do to whoever loads it.
HARMS = {
    "pt2": "torch can run code out of it",
    "openvino": "OpenVINO does not check it, and one that was made up can end the process",
    "executorch": "ExecuTorch does not check it, and one that was made up can end the process",
}
# Takes float32 inputs, shape (images, channels, height, width), and returns their scores.
Run = Callable[[np.ndarray], np.ndarray]
# What torch keeps of each node for its own messages: the source lines and paths of the machine that exports.
_OF_THE_MACHINE = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
# Bytes of OpenVINO's first file, whose weights are in the second: a layer takes a few thousand.
_LARGEST_GRAPH = 1 << 27
# Processors with bfloat16 would else compute in that.
_IN_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


def install_command(package: str) -> str | None:
    """The command that installs a package of :data:`PACKAGES`; None where it is installed."""
    return f"pip install 'hscc-search[{package}]'" if importlib.util.find_spec(package) is None else None


def weights_beside(path: Path) -> Path:
    """The second file of OpenVINO, with the weights."""
    return path.with_suffix(".bin")


def write_pt2(module: nn.Module, shape: Shape, path: Path) -> None:
    """Write a program of ``torch.export`` that takes any number of images."""
    example = torch.zeros(2, *shape)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        for key in _OF_THE_MACHINE:
            node.meta.pop(key, None)
    torch.export.save(program, path)


def write_openvino(source: Path, path: Path) -> None:
    """Write the graph of an ONNX file for OpenVINO, its weights in float32 or in 8-bit integers as they are there.

    The graph is read by OpenVINO's core: its converter would write down the paths of this machine, and report its use.
    """
    import openvino

    model = openvino.Core().read_model(source)
    for position, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():  # it is named by how many nodes this process has made before
            node.set_friendly_name(f"{node.get_type_name()}_at_{position}")
    openvino.save_model(model, path, compress_to_fp16=False)


def write_executorch(module: nn.Module, shape: Shape, path: Path) -> None:
    """Write a program for ExecuTorch that takes one image, with what XNNPACK can compute handed to that."""
    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(module, (torch.zeros(1, *shape),))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


def _open_pt2(path: Path) -> Run:
    program = torch.export.load(regular(path, LARGEST_MODEL)).module()

    @torch.no_grad()
    def run(inputs: np.ndarray) -> np.ndarray:
        return np.asarray(program(torch.from_numpy(inputs)))

    return run


def _open_openvino(path: Path) -> Run:
    graph, weights = regular(path, _LARGEST_GRAPH), regular(weights_beside(path), LARGEST_MODEL)
    import openvino

    core = openvino.Core()
    model = core.read_model(graph.read_bytes(), weights.read_bytes())
    compiled = core.compile_model(model, "CPU", _IN_FLOAT32)
    return lambda inputs: np.array(compiled(inputs)[0])


def _open_executorch(path: Path) -> Run:
    content = regular(path, LARGEST_MODEL).read_bytes()
    with _quiet(), _without_standard_error():
        from executorch.runtime import Runtime, Verification

        program = Runtime.get().load_program(content, verification=Verification.InternalConsistency)
        program.load_method("forward")

    def run(inputs: np.ndarray) -> np.ndarray:
        method = program.load_method("forward")  # which is freed, in use or not, once nobody holds the program
        # A tensor whose memory is in another order is read wrongly, without a word.
        images = torch.from_numpy(np.ascontiguousarray(inputs))
        return torch.cat([method.execute([image[None]])[0] for image in images]).numpy()

    return run


# What opens the file of a format.
OPENERS: Mapping[str, Callable[[Path], Run]] = {
    "pt2": _open_pt2,
    "openvino": _open_openvino,
    "executorch": _open_executorch,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Python code from warning while the block runs: ExecuTorch warns of what other packages plan to change."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _without_standard_error() -> Iterator[None]:
    """Keep ExecuTorch's own code, which is not Python, from telling which files of the system it looked for."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
