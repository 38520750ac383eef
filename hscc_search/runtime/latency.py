"""How long a network takes for a batch, in torch and in ONNX Runtime."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hscc_search.errors import ExportError

# Before times count, so that memory and kernels are in place.
_WARM_UP = 2
# Timed batches: of one image, and of more.
_REPEATS_OF_ONE, _REPEATS = 25, 7


Runner = Callable[[torch.Tensor], object]
RUNTIMES = ("torch", "onnxruntime")


def measure_latency(
    networks: Mapping[str, Mapping[str, Runner]], image_size: int, batch_sizes: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Median seconds per batch of several networks, taken in turns so that other work on the machine hits all alike.

    Args:
        networks: by name what :func:`runners` gave.
        image_size: side of the images in pixels.
        batch_sizes: images per batch.

    Returns:
        By ``runtime batch``, such as ``torch 1``, the seconds by name of the network, for runtimes that run them all.
    """
    found = {}
    for runtime in RUNTIMES:
        if all(runtime in runs for runs in networks.values()):
            taking_turns = {name: runs[runtime] for name, runs in networks.items()}
            for batch_size in batch_sizes:
                found[f"{runtime} {batch_size}"] = in_turns(taking_turns, image_size, batch_size)
    return found


def runners(network: nn.Module, image_size: int) -> dict[str, Runner]:
    """What runs a network, by runtime; ONNX Runtime is missing where the network cannot be exported.

    Args:
        network: on the CPU, in evaluation mode.
        image_size: side of the images in pixels.
    """
    found = {}
    for runtime in RUNTIMES:
        with contextlib.suppress(ExportError):
            found[runtime] = runner(network, image_size, runtime)
    return found


def runner(network: nn.Module, image_size: int, runtime: str) -> Runner:
    """What runs a network on float32 images (batch, 3, image_size, image_size).

    Args:
        network: on the CPU, in evaluation mode.
        image_size: side of the images in pixels.
        runtime: of :data:`RUNTIMES`.

    Raises:
        ExportError: torch cannot export the network to ONNX.
    """
    return _in_torch(network) if runtime == "torch" else _in_onnxruntime(network, image_size)


def in_turns(runners: Mapping[str, Runner], image_size: int, batch_size: int) -> dict[str, float]:
    """Median seconds per batch, by name of the runner, the runners taken in turns.

    One thread computes: what several gain depends on what else the machine does and, for small networks, on how they
    wait for each other. torch runs with images in channels-last order.
    """
    images = torch.rand(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _timed(runners, images)
    finally:
        torch.set_num_threads(threads)


def _timed(runs: Mapping[str, Runner], images: torch.Tensor) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(_WARM_UP + (_REPEATS_OF_ONE if len(images) == 1 else _REPEATS)):
        for name, run in runs.items():
            start = time.perf_counter()
            run(images)
            if turn >= _WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _in_torch(network: nn.Module) -> Runner:
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: torch.Tensor) -> object:
        with torch.inference_mode():
            return network(images.contiguous(memory_format=torch.channels_last))

    return run


def _in_onnxruntime(network: nn.Module, image_size: int) -> Runner:
    import onnxruntime  # slow to import, as what exports is, and few studies look at latency

    from hscc_search.runtime.onnx import write_onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(network, image_size, path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": np.asarray(images)})
