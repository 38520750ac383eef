"""HSCC, hierarchical spatio-channel clustering (arXiv 2604.23375): calibrate once, compress many times.

One forward pass over the calibration images compresses a network: each layer, when its turn comes, is given the input
that the layers compressed before it deliver, is replaced by its factors, and passes on their output.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.divided import DividedLayer, with_smaller_pictures
from hscc_search.compression.fitting.layer import fit_layer
from hscc_search.compression.form import NetworkForm
from hscc_search.compression.plan import LayerPlan
from hscc_search.compression.ranks.choice import choose_ranks
from hscc_search.compression.ranks.design import LayerDesign
from hscc_search.compression.refining import refine_on_calibration
from hscc_search.compression.setting import Refinement, Setting
from hscc_search.compression.stand_ins import replaced_in_order

# Pass on every second calibration image if at least this many remain.
FEWEST_IMAGES = 512


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    Attributes:
        network: an ordinary module in evaluation mode. A layer of several regions takes the image size of the
            calibration alone.
        plan: what became of every convolution and fully connected layer; those that can be compressed come first, in
            execution order.
        form: all that is needed to build the network again, but its weights.
        macs: multiply-adds per image of the whole network: those of its layers by the formula, and what the dense
            network takes outside of them.
        divided: the layers that have more than one region or cluster.
    """

    network: nn.Module
    plan: tuple[LayerPlan, ...]
    form: NetworkForm
    macs: int
    divided: tuple[DividedLayer, ...]


def compress(calibration: Calibration, setting: Setting, refine: Refinement | None = None) -> Compressed:
    """Compress the network of a calibration with one setting. That network itself is not changed.

    Factors are fitted to every second image where there are many; ranks are chosen by the responses to all of them.

    Args:
        calibration: of the dense network.
        setting: the request.
        refine: asks for a refinement on the calibration images; on others it is done by
            :func:`hscc_search.compression.refining.refine`.

    Raises:
        CompressionError: the budget is out of reach, or the setting has no energy for a layer.
    """
    compressed = _compress(calibration, setting)
    if refine is not None:
        refine_on_calibration(compressed.network, calibration, refine)
    return compressed


@torch.no_grad()
def _compress(calibration: Calibration, setting: Setting) -> Compressed:
    designs = choose_ranks(calibration, setting)
    step = 2 if len(calibration.images) >= 2 * FEWEST_IMAGES else 1
    fits = {name: partial(fit_layer, calibration, name, design, step) for name, design in designs.items()}
    result = replaced_in_order(calibration.network, fits, calibration.images[::step])
    form = NetworkForm(calibration.plain, calibration.folds, {name: design.form for name, design in designs.items()})
    plan = _plan(calibration, designs)
    macs = calibration.inspection.macs_outside + sum(layer.macs for layer in plan)
    return Compressed(result, plan, form, macs, _divided(designs))


def _divided(designs: dict[str, LayerDesign]) -> tuple[DividedLayer, ...]:
    layers = []
    for name, design in designs.items():
        blocks = design.partition.blocks[0]
        sizes = tuple(tuple(np.bincount(block.clusters).tolist()) for block in blocks)
        if len(blocks) > 1 or len(sizes[0]) > 1:
            pictures = tuple(block.coactivation for block in blocks)
            layers.append(DividedLayer(name, design.form.output_size, design.form.pieces, sizes, pictures))
    return with_smaller_pictures(layers)


def _plan(calibration: Calibration, designs: dict[str, LayerDesign]) -> tuple[LayerPlan, ...]:
    """Tell what became of every convolution and fully connected layer, in the order of :class:`Compressed`."""
    plan = []
    for record in calibration.records:
        design = designs[record.name]
        plan.append(LayerPlan(record.name, record.macs, design.macs, design.form.ranks, design.form.input_ranks))
    plan += [
        LayerPlan(layer.name, layer.macs, layer.macs, left_dense=layer.left_dense)
        for layer in calibration.inspection.layers
        if layer.left_dense is not None
    ]
    return tuple(plan)
