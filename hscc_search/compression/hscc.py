"""HSCC, hierarchical spatio-channel clustering (arXiv 2604.23375): calibrate once, compress many times.

One forward pass over the calibration images compresses a network: each layer, when its turn comes, sees the input
that the layers compressed before it deliver, is replaced by its factors, and passes on what these answer. So the
order of execution, branches and skip connections take care of themselves, and only the activations of the current
layer are held in memory.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hscc_search.compression.allotment import Allotment, allot
from hscc_search.compression.calibration import Calibration
from hscc_search.compression.fitting import fit_layer
from hscc_search.compression.folding import Fold, apply_folds
from hscc_search.compression.layers import Blueprint, build
from hscc_search.compression.setting import Setting

# Of many calibration images every second is passed on from layer to layer, as long as so many are left.
_IMAGES = 512


@dataclass(frozen=True)
class LayerPlan:
    """What became of one layer.

    Attributes:
        name: the layer's path in the network.
        macs_dense: its multiply-adds per image before.
        macs: and after, by the formula P_r * K_r * (D + Cout) per factored region; D counts the channels that are left
            where the input is brought to fewer, which costs its positions times both numbers of channels, once.
        regions: number of regions, 0 where the layer was left alone.
        ranks: for each region (of each group, where the convolution is grouped) the rank of each cluster; empty for
            a region that stays dense.
        input_ranks: for each group to how many channels its input is brought first, or None for no such step.
        left_dense: why the layer was left alone, or None.
    """

    name: str
    macs_dense: int
    macs: int
    regions: int
    ranks: tuple[tuple[int, ...], ...]
    input_ranks: tuple[int | None, ...]
    left_dense: str | None = None

    @property
    def summary(self) -> str:
        """What became of the layer, in a few words."""
        if self.left_dense is not None:
            return f"left dense: {self.left_dense}"
        ranks = ", ".join(str(sum(ranks)) if ranks else "dense" for ranks in self.ranks)
        inputs = ", ".join(str(count) if count else "all" for count in self.input_ranks)
        return f"total rank per region: {ranks}" + (f"; of {inputs} inputs" if any(self.input_ranks) else "")

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "LayerPlan":
        """Undo :meth:`stored`."""
        lists = {"ranks": tuple(tuple(ranks) for ranks in tree["ranks"]), "input_ranks": tuple(tree["input_ranks"])}
        return cls(**{**tree, **lists})


@dataclass(frozen=True)
class Form:
    """All of a compressed network but its weights, see :func:`rebuild`.

    Attributes:
        input_size: height and width of the images that it takes: regions belong to maps of one size.
        folds: the batch norms that were folded.
        layers: the form of each compressed layer by its path.
    """

    input_size: tuple[int, int]
    folds: tuple[Fold, ...]
    layers: dict[str, Blueprint]

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "Form":
        """Undo :meth:`stored`."""
        return cls(
            (tree["input_size"][0], tree["input_size"][1]),
            tuple(Fold(**fold) for fold in tree["folds"]),
            {name: Blueprint.from_stored(stored) for name, stored in tree["layers"].items()},
        )


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
    form: Form

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
        Form(
            (calibration.images.shape[2], calibration.images.shape[3]),
            calibration.folds,
            {name: allotment.blueprint for name, allotment in allotments.items()},
        ),
    )


def rebuild(network: nn.Module, form: Form) -> None:
    """Give a dense network the form of a compressed one, in place; the weights are then loaded by name."""
    apply_folds(network, form.folds)
    for name, blueprint in form.layers.items():
        network.set_submodule(name, build(network.get_submodule(name), blueprint))
