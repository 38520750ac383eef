"""How long a network takes for a batch, in torch and in ONNX Runtime."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from hscc_search.export.onnx import write_onnx

RUNTIMES = ("torch", "onnxruntime")
# Before times count, so that memory and kernels are in place.
_WARM_UP = 3


def measure_latency(
    networks: Mapping[str, nn.Module], image_size: int, batch_size: int, runtime: str, repeats: int = 15
) -> dict[str, float]:
    """Median seconds per batch of several networks, taken in turns so that other work on the machine hits all alike.

    torch runs with images in channels-last order; ONNX Runtime gets as many threads as torch has.

    Args:
        networks: on the CPU, in evaluation mode, by name.
        image_size: side of the images in pixels.
        batch_size: images per batch.
        runtime: ``torch`` or ``onnxruntime``.
        repeats: timed batches per network.

    Returns:
        Seconds by name.
    """
    images = torch.rand(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Callable[[], object]] = {}
    for name, network in networks.items():
        runs[name] = _in_torch(network, images) if runtime == "torch" else _in_onnxruntime(network, images)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(_WARM_UP + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= _WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _in_torch(network: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = images.contiguous(memory_format=torch.channels_last)

    def run() -> object:
        with torch.inference_mode():
            return network(batch)

    return run


def _in_onnxruntime(network: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Waiting threads that spin would take the processor from the other networks' turns.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(network, images.shape[-1], path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"images": np.ascontiguousarray(images.numpy())}
    return lambda: session.run(None, feed)
