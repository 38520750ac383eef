"""HSCC, hierarchical spatio-channel clustering (arXiv 2604.23375): calibrate once, compress many times.

One forward pass over the calibration images compresses a network: each layer, when its turn comes, sees the input
that the layers compressed before it deliver, is replaced by its factors, and passes on what these answer. So the
order of execution, branches and skip connections take care of themselves, and only the activations of the current
layer are held in memory.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.fitting import fit_layer
from hscc_search.compression.form import NetworkForm
from hscc_search.compression.plan import LayerPlan
from hscc_search.compression.ranks.choice import Allotment, allot
from hscc_search.compression.setting import Setting

# Of many calibration images every second is passed on from layer to layer, as long as so many are left.
_IMAGES = 512


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    Attributes:
        network: an ordinary module in evaluation mode, for the input size it was calibrated at.
        plan: every convolution and fully connected layer, those that can be compressed first, in execution order.
        form: what it takes to build the network again.
    """

    network: nn.Module
    plan: tuple[LayerPlan, ...]
    form: NetworkForm

    @property
    def macs(self) -> int:
        """Multiply-adds per image of all convolutions and fully connected layers, by the formula."""
        return sum(layer.macs for layer in self.plan)


class _Pending(nn.Module):
    """Stands in a network for a layer that is compressed when the calibration images arrive."""

    def __init__(self, calibration: Calibration, name: str, allotment: Allotment, step: int) -> None:
        super().__init__()
        self.calibration, self.name, self.allotment, self.step = calibration, name, allotment, step
        self.layer = calibration.network.get_submodule(name)
        self.compressed: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.compressed, answers = fit_layer(self.calibration, self.name, self.allotment, x, self.step)
        return answers


@torch.no_grad()
def compress(calibration: Calibration, setting: Setting) -> Compressed:
    """Compress the network of a calibration with one setting. That network itself is not changed.

    Of many calibration images every second is passed on; the statistics that ranks come from are of all.

    Raises:
        CompressionError: the budget is out of reach, or the setting's strategies do not fit.
    """
    network = calibration.network
    allotments = allot(calibration, setting)
    step = 2 if len(calibration.images) >= 2 * _IMAGES else 1
    # A layer that is replaced is not copied: the copy finds its stand-in.
    pending = {name: _Pending(calibration, name, allotment, step) for name, allotment in allotments.items()}
    result = copy.deepcopy(network, {id(place.layer): place for place in pending.values()})
    result(calibration.images[::step])
    for name, place in pending.items():
        assert place.compressed is not None
        result.set_submodule(name, place.compressed)
    plan = [
        LayerPlan(
            record.name,
            record.macs,
            allotments[record.name].macs,
            len(allotments[record.name].partition.blocks[0]),
            tuple(ranks.clusters if ranks else () for row in allotments[record.name].ranks for ranks in row),
            allotments[record.name].blueprint.input_ranks,
        )
        if record.name in allotments
        else LayerPlan(record.name, record.macs, record.macs, 0, (), (), "tiny")
        for record in calibration.records
    ]
    plan += [LayerPlan(name, macs, macs, 0, (), (), reason) for name, (macs, reason) in calibration.left_dense.items()]
    return Compressed(
        result,
        tuple(plan),
        NetworkForm(
            (calibration.images.shape[2], calibration.images.shape[3]),
            calibration.folds,
            {name: allotment.blueprint for name, allotment in allotments.items()},
        ),
    )
