"""The latency of networks in torch and in ONNX Runtime, in milliseconds per batch."""

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hscc_search.config import Shape, shape_of
from hscc_search.errors import ExportError
from hscc_search.temporary import temporary_folder

# Batches that run before times count, so that memory and kernels are in place.
_WARM_UP = 2
# Timed batches: of a single image, and of several images, which take longer and vary less.
_REPEATS_OF_ONE, _REPEATS = 25, 7

# Runs a network on float32 images (batch, channels, height, width).
Runner = Callable[[torch.Tensor], object]

RUNTIMES = ("torch", "onnxruntime")


def measure_latency(
    networks: Mapping[str, Mapping[str, Runner]], shape: int | Shape, batch_sizes: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Time several networks in turns, so that other work on the machine hits all of them alike.

    Args:
        networks: the runners of each network by its name, see :func:`runners`.
        shape: of one image, see :func:`hscc_search.config.pictures.shape_of`.
        batch_sizes: images per batch.

    Returns:
        Median milliseconds per batch, first by ``runtime batch``, such as ``torch 1``, then by name of the network. A
        runtime that cannot run all of the networks is left out.
    """
    latencies = {}
    for runtime in RUNTIMES:
        if all(runtime in by_runtime for by_runtime in networks.values()):
            of_runtime = {name: by_runtime[runtime] for name, by_runtime in networks.items()}
            for batch_size in batch_sizes:
                latencies[f"{runtime} {batch_size}"] = in_turns(of_runtime, shape, batch_size)
    return latencies


def in_turns(runners: Mapping[str, Runner], shape: int | Shape, batch_size: int) -> dict[str, float]:
    """Time several runners in turns on one thread, torch's with images in channels-last order.

    One thread, since the gain of several depends on the machine's other work and, for small networks, on how long the
    threads wait for each other.

    Args:
        runners: by name.
        shape: of one image, see :func:`hscc_search.config.pictures.shape_of`.
        batch_size: images per batch.

    Returns:
        Median milliseconds per batch by name of the runner.
    """
    images = torch.rand(batch_size, *shape_of(shape), generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _median_milliseconds(runners, images)
    finally:
        torch.set_num_threads(threads)


def runners(network: nn.Module, shape: int | Shape) -> dict[str, Runner]:
    """Make a runner of a network for each runtime; ONNX Runtime is missing where the network cannot be exported.

    Args:
        network: on the CPU, in evaluation mode.
        shape: of one image, see :func:`hscc_search.config.pictures.shape_of`.
    """
    by_runtime = {}
    for runtime in RUNTIMES:
        with contextlib.suppress(ExportError):
            by_runtime[runtime] = runner(network, shape, runtime)
    return by_runtime


def runner(network: nn.Module, shape: int | Shape, runtime: str) -> Runner:
    """Make a runner of a network for one runtime.

    Args:
        network: on the CPU, in evaluation mode.
        shape: of one image, see :func:`hscc_search.config.pictures.shape_of`.
        runtime: of :data:`RUNTIMES`.

    Raises:
        ExportError: torch cannot export the network to ONNX.
    """
    return _in_torch(network) if runtime == "torch" else _in_onnxruntime(network, shape)


def file_runner(path: Path) -> Runner:
    """Make a runner of an ONNX file on one thread; the file is not needed any more then."""
    import onnxruntime  # takes a second, and few studies measure latency

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: np.asarray(images)})


def _median_milliseconds(runners: Mapping[str, Runner], images: torch.Tensor) -> dict[str, float]:
    repeats = _REPEATS_OF_ONE if len(images) == 1 else _REPEATS
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(_WARM_UP + repeats):
        for name, run in runners.items():
            start = time.perf_counter()
            run(images)
            if turn >= _WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def _in_torch(network: nn.Module) -> Runner:
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: torch.Tensor) -> object:
        with torch.inference_mode():
            return network(images.contiguous(memory_format=torch.channels_last))

    return run


def _in_onnxruntime(network: nn.Module, shape: int | Shape) -> Runner:
    # Imported here: the exporter takes seconds to import, and few studies measure latency.
    from hscc_search.runtime.onnx import write_onnx

    with temporary_folder("hscc-latency") as folder:
        path = folder / "model.onnx"
        write_onnx(network, shape, path)
        return file_runner(path)
