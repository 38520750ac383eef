"""Run the models of an exported folder from their files, and write down what they answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hscc_search.config import IN_MEMORY
from hscc_search.data import Part
from hscc_search.dense.opened import Opened
from hscc_search.errors import ExportError
from hscc_search.evaluation.predictions import batches, pixel_values
from hscc_search.export.folder import ONNX, WEIGHTS
from hscc_search.export.formats import INT8_TOLERANCE, Extras, write_formats
from hscc_search.export.loading import build_module
from hscc_search.export.loss import Loss
from hscc_search.export.manifest import write_reference
from hscc_search.export.run import Folder, gap_between
from hscc_search.runtime.deployed import Deployed
from hscc_search.runtime.onnx import onnx_scores

# Largest difference of scores between two runtimes, relative to the largest score: they add in different orders.
TOLERANCE = 1e-3


class Answers(NamedTuple):
    """The scores that each written model gives each test image, before softmax: float32, shape (images, classes).

    With them what was found of further files, see :func:`hscc_search.export.formats.write_formats`.
    """

    onnx: np.ndarray
    torch: np.ndarray
    formats: Mapping[str, Mapping[str, Any]] = {}


def check(folder: Path, opened: Opened, of_integers: bool, extras: Extras) -> Answers:
    """Run both models from their files over the test part, and write their answers to the inputs that anybody can make.

    Args:
        folder: of the models.
        opened: images and network of the study.
        of_integers: whether the trial is of 8-bit integers.
        extras: further files to write, and whether what is rounded may lose more.

    Raises:
        ExportError: their scores differ by more than the order of additions does; or, of 8-bit integers, fewer test
            images are right by more than a point and its standard error, and ``extras`` do not accept that.
    """
    test, in_memory = opened.parts.test, opened.config.model.name == IN_MEMORY
    module = build_module(folder, opened.network.cpu() if in_memory else None, trust=True)
    opened.network.to(opened.device)
    answers = Answers(onnx_scores(folder / ONNX, test), torch_scores(module, test))
    if of_integers:
        loss = Loss.of(answers.onnx, answers.torch, test.labels)
        loss.check("in 8-bit integers", "in float", "export another trial", extras.accept_loss)
    else:
        gap = gap_between(answers.onnx, answers.torch)
        if not gap <= TOLERANCE:
            raise ExportError(f"{ONNX} and {WEIGHTS} disagree: scores differ by {gap:.2g} of the largest")
    exported = Folder(folder)
    inputs = exported.made_inputs()
    made = {ONNX: exported.scores(inputs), WEIGHTS: answer(module, inputs)}
    tolerances = {ONNX: INT8_TOLERANCE if of_integers else TOLERANCE, WEIGHTS: TOLERANCE}
    further = write_formats(folder, extras, module, test, of_integers)
    write_reference(folder, {**made, **further.answers}, {**tolerances, **further.tolerances})
    return answers._replace(formats=further.found)


def torch_scores(module: Deployed, part: Part) -> np.ndarray:
    """The scores of a part of the data, as :func:`hscc_search.runtime.onnx.onnx_scores`."""
    return np.concatenate([answer(module, pixel_values(torch.from_numpy(images))) for images in batches(part.images)])


@torch.no_grad()
def answer(module: Deployed, inputs: np.ndarray | torch.Tensor) -> np.ndarray:
    """The scores of one batch."""
    scores: np.ndarray = module(torch.as_tensor(inputs)).numpy()
    return scores
