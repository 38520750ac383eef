"""The answers of the files of an exported folder to the same inputs, each file in each way that it is run."""

import importlib.util
import json
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch

from hscc_search import load
from hscc_search.export.folder import ONNX
from hscc_search.export.formats import FORMATS
from hscc_search.export.runtimes import OPENERS, PACKAGES, install_command

BATCHES, THREADS = (1, 32), (1, 2)
# How a runtime reads ``model.onnx``: as users run it, operator by operator as it is written, and in another program.
OPTIMISED, UNOPTIMISED, OPENVINO = "ONNX Runtime", "unoptimised", "OpenVINO"
LEVELS = {
    OPTIMISED: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    UNOPTIMISED: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
# The largest difference of scores in float, and of 8-bit integers in steps, of which the scores' range has 255.
MOST, MOST_STEPS, STEPS = 1e-4, 1.0, 255


@dataclass(frozen=True)
class Gap:
    """How far scores are from others: the largest difference, and on how many images the class differs.

    Attributes:
        absolute: the largest difference.
        share: the same as a share of the largest score.
        classes: number of images that get another class.
        lead: of those, the most by which the class leads the next as a share of the largest score; 0 without any.
    """

    absolute: float
    share: float
    classes: int
    lead: float

    @classmethod
    def between(cls, scores, reference):
        scores, reference = (values.astype(np.float64) for values in (scores, reference))
        assert scores.shape == reference.shape
        assert np.isfinite(scores).all()
        absolute, largest = float(np.abs(scores - reference).max()), float(np.abs(reference).max())
        differing = scores.argmax(axis=1) != reference.argmax(axis=1)
        second, first = np.sort(reference, axis=1)[:, -2:].T
        lead = float((first - second)[differing].max(initial=0)) / largest
        return cls(absolute, absolute / largest, int(differing.sum()), lead)


def worst(gaps):
    """The largest of each figure of several gaps."""
    return Gap(*(max(getattr(gap, name) for gap in gaps) for name in Gap.__dataclass_fields__))


def formats_for(precision):
    """The formats of a trial that can be written here."""
    written = [name for name in FORMATS if name not in PACKAGES or install_command(name) is None]
    return [name for name in written if not (name == "float16" and precision == "int8")]


def of_torch(name):
    """Whether a file is made of the torch module: of 8-bit integers, the float32 network that was rounded."""
    return name.endswith((".pt2", ".pte"))


def in_batches(run, inputs, batch):
    return np.concatenate([run(inputs[first : first + batch]) for first in range(0, len(inputs), batch)])


def onnx_runner(path, level=OPTIMISED, threads=1):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads = LEVELS[level], threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: session.run(None, {name: inputs})[0]


def torch_runner(module):
    def run(inputs):
        with torch.no_grad():
            return module(torch.from_numpy(inputs)).numpy()

    return run


def openvino_runner(path, threads=1):
    import openvino

    # OpenVINO computes in bfloat16 by itself where the processor can.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(path, "CPU", settings)
    return lambda inputs: compiled([inputs])[0]


def uint8_runner(path):
    """Takes inputs 0 to 1 of the network's size as the images that they were read from, one by one."""
    run = onnx_runner(path)

    def read(inputs):
        images = (inputs * 255).round().astype(np.uint8)
        return np.concatenate([run(image[0] if len(image) == 1 else image.transpose(1, 2, 0)) for image in images])

    return read


def runners(folder):
    """Name each way to run the files of a folder with the functions that run them: of every number of threads.

    Those of ``model.onnx`` in ONNX Runtime come first. Left out is what no installed runtime reads.
    """
    ways = {level: [onnx_runner(folder / ONNX, level, threads) for threads in THREADS] for level in LEVELS}
    if importlib.util.find_spec("openvino"):
        ways[OPENVINO] = [openvino_runner(folder / ONNX, threads) for threads in THREADS]
    for name in FORMATS.values():
        path = folder / name
        if not path.exists():
            continue
        if name == FORMATS["uint8"]:
            ways[name] = [uint8_runner(path)]
        elif path.suffix == ".onnx":
            ways[name] = [onnx_runner(path, threads=threads) for threads in THREADS]
        elif path.suffix == ".pt2":
            ways[name] = [torch_runner(torch.export.load(path).module())]
        elif path.suffix == ".xml":
            ways[name] = [openvino_runner(path, threads) for threads in THREADS]
        elif path.suffix == ".pte":
            ways[name] = [OPENERS["executorch"](path)]
        else:
            raise AssertionError(f"nothing here runs {name}")
    return ways


def gaps_of(folder, inputs):
    """The gap of each way to run a folder's files, the worst over numbers of threads and sizes of batches.

    Args:
        folder: an exported one.
        inputs: float32, shape (images, channels, height, width), 0 to 1 as 255 steps.

    Returns:
        The gaps by the name of the way; the scores of the torch module; and those of ``model.onnx`` as users run it.
        Gaps are from the torch module's scores, and of a ``model.onnx`` of 8-bit integers from its own as users run it,
        except those of files that are made of torch's.
    """
    exact = in_batches(torch_runner(load(folder, trust=True)), inputs, BATCHES[-1])
    ways = runners(folder)
    answers = in_batches(ways[OPTIMISED][0], inputs, BATCHES[-1])
    of_integers = bool(json.loads((folder / "metrics.json").read_text())["int8"])
    gaps = {}
    for name, functions in ways.items():
        reference = answers if of_integers and not of_torch(name) else exact
        scores = [in_batches(run, inputs, batch) for run in functions for batch in BATCHES]
        gaps[name] = worst([Gap.between(each, reference) for each in scores])
    return gaps, exact, answers
