"""HSCC, hierarchical spatio-channel clustering (arXiv 2604.23375): calibrate once, compress many times.

One forward pass over the calibration images compresses a network: each layer, when its turn comes, sees the input
that the layers compressed before it deliver, is replaced by its factors, and passes on what these answer. So the
order of execution, branches and skip connections take care of themselves, and only the activations of the current
layer are held in memory.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hscc_search.compression.calibration import Calibration, LayerRecord, responses_on
from hscc_search.compression.channels import coactivation
from hscc_search.compression.factors import Factors, Predictor, factorise, fit_predictor
from hscc_search.compression.layers import Blueprint, RegionConv2d, build
from hscc_search.compression.ranks import check_energy
from hscc_search.compression.regions import check_regions, label_map, pieces
from hscc_search.errors import CompressionError

# A layer below this share of the network's multiply-adds is not worth an approximation.
TINY_SHARE = 1e-4
_BATCH = 64


@dataclass(frozen=True)
class Setting:
    """One point of the search space.

    Attributes:
        regions: regions per convolution.
        clusters: clusters per region.
        energy: share of each cluster's response variance that its rank keeps, above 0 and up to 1.
        region_strategy: ``grid`` or ``bands``.
        seed: of the clustering.

    Raises:
        CompressionError: a value is out of range.
    """

    regions: int
    clusters: int
    energy: float
    region_strategy: str = "grid"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise CompressionError(f"clusters must be 1 or more, not {self.clusters}")
        check_regions(self.region_strategy, self.regions)
        check_energy(self.energy)


@dataclass(frozen=True)
class LayerPlan:
    """What became of one layer.

    Attributes:
        name: the layer's path in the network.
        macs_dense: its multiply-adds per image before.
        macs: and after, by the formula P_r * K_r * (D + Cout) per factored region.
        regions: number of regions, 0 where the layer was left alone.
        ranks: for each region the rank of each cluster; empty for a region that stays dense.
        left_dense: why the layer was left alone, or None.
    """

    name: str
    macs_dense: int
    macs: int
    regions: int
    ranks: tuple[tuple[int, ...], ...]
    left_dense: str | None = None

    @property
    def summary(self) -> str:
        """What became of the layer, in a few words."""
        if self.left_dense is not None:
            return f"left dense: {self.left_dense}"
        ranks = ", ".join(str(sum(ranks)) if ranks else "dense" for ranks in self.ranks)
        return f"total rank per region: {ranks}"

    def stored(self) -> dict[str, Any]:
        """JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_stored(cls, tree: dict[str, Any]) -> "LayerPlan":
        """Undo :meth:`stored`."""
        return cls(**{**tree, "ranks": tuple(tuple(ranks) for ranks in tree["ranks"])})


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    Attributes:
        network: an ordinary module in evaluation mode, for the input size it was calibrated at.
        plan: every convolution and fully connected layer, compressed ones first, in execution order.
        blueprints: the form of each compressed layer by its path, see :func:`rebuild`.
    """

    network: nn.Module
    plan: tuple[LayerPlan, ...]
    blueprints: dict[str, Blueprint]

    @property
    def macs(self) -> int:
        """Multiply-adds per image of all convolutions and fully connected layers, by the formula."""
        return sum(layer.macs for layer in self.plan)


class _Pending(nn.Module):
    """Stands in a network for a layer that is compressed when the calibration images arrive."""

    def __init__(self, layer: nn.Module, record: LayerRecord, setting: Setting) -> None:
        super().__init__()
        self.layer, self.record, self.setting = layer, record, setting
        self.compressed: tuple[nn.Module, LayerPlan, Blueprint] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.compressed = compress_layer(self.layer, x, self.record, self.setting)
        return torch.cat([self.compressed[0](part) for part in x.split(_BATCH)])


@torch.no_grad()
def compress(network: nn.Module, calibration: Calibration, setting: Setting) -> Compressed:
    """Compress a network with one setting. The network itself is not changed.

    Args:
        network: the dense network that ``calibration`` was made with.
        calibration: from :func:`hscc_search.compression.calibration.calibrate`.
        setting: how.
    """
    total = sum(record.macs for record in calibration.records) + sum(
        macs for macs, _ in calibration.left_dense.values()
    )
    result = copy.deepcopy(network).eval()
    pending: dict[str, _Pending] = {}
    left = [LayerPlan(name, macs, macs, 0, (), reason) for name, (macs, reason) in calibration.left_dense.items()]
    for record in calibration.records:
        if record.macs < TINY_SHARE * total:
            left.append(LayerPlan(record.name, record.macs, record.macs, 0, (), "tiny"))
            continue
        pending[record.name] = _Pending(result.get_submodule(record.name), record, setting)
        result.set_submodule(record.name, pending[record.name])
    result(calibration.images)
    plan, blueprints = [], {}
    for name, place in pending.items():
        assert place.compressed is not None
        module, layer_plan, blueprint = place.compressed
        result.set_submodule(name, module)
        plan.append(layer_plan)
        blueprints[name] = blueprint
    return Compressed(result, (*plan, *left), blueprints)


def rebuild(network: nn.Module, blueprints: dict[str, Blueprint]) -> None:
    """Give a dense network the form of a compressed one, in place; the weights are then loaded by name."""
    for name, blueprint in blueprints.items():
        network.set_submodule(name, build(network.get_submodule(name), blueprint))


def compress_layer(
    layer: nn.Module, x: torch.Tensor, record: LayerRecord, setting: Setting
) -> tuple[nn.Module, LayerPlan, Blueprint]:
    """Compress one layer to approximate the dense response from the input that is delivered.

    Args:
        layer: the dense layer, Conv2d or Linear.
        x: its input in the partly compressed network, for all calibration images.
        record: the dense network's responses.
        setting: how.

    Returns:
        The module that takes the layer's place, what was done, and the module's form.
    """
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    lattice = record.lattice
    delivered = torch.cat([responses_on(layer, part, lattice) for part in x.split(_BATCH)], dim=1)
    linear = isinstance(layer, nn.Linear)
    labels = label_map(setting.region_strategy, lattice.height, lattice.width, 1 if linear else setting.regions)
    rows, columns = lattice.indices
    seen = labels[rows.numpy()[:, None], columns.numpy()[None, :]].ravel()
    weight = layer.weight.detach().flatten(1)
    outputs, inputs = weight.shape
    region_count = int(labels.max()) + 1
    found: list[tuple[Predictor, Factors | None]] = []
    for region in range(region_count):
        positions = np.flatnonzero(seen == region)
        # A region may lie between the lattice's positions on a tiny map: then the whole map speaks for it.
        chosen = torch.from_numpy(positions if len(positions) else np.arange(len(seen))).to(x.device)
        dense = record.responses[chosen].flatten(0, 1)
        clusters = coactivation(dense, 1 if linear else setting.clusters, setting.seed)
        predictor = fit_predictor(dense * record.effects, delivered[chosen].flatten(0, 1) * record.effects)
        factors = factorise(predictor, clusters, setting.energy)
        pays = sum(factors.ranks) * (inputs + outputs) < inputs * outputs
        found.append((predictor, factors if pays else None))
    blueprint = Blueprint(
        (lattice.height, lattice.width),
        tuple(None if factors is None else sum(factors.ranks) for _, factors in found),
        pieces(labels),
    )
    module = build(layer, blueprint).to(device=x.device, dtype=weight.dtype)
    region_modules = module.regions if isinstance(module, RegionConv2d) else [module]
    for target, fitted in zip(region_modules, found, strict=True):
        _fill(target, layer, record.effects.double(), *fitted)
    areas = np.bincount(labels.ravel())
    macs = sum(
        int(area) * (inputs * outputs if rank is None else rank * (inputs + outputs))
        for area, rank in zip(areas, blueprint.ranks, strict=True)
    )
    plan = LayerPlan(
        record.name,
        record.macs,
        macs,
        region_count,
        tuple(() if factors is None else factors.ranks for _, factors in found),
    )
    return module.eval(), plan, blueprint


def _fill(
    target: nn.Module,
    layer: nn.Conv2d | nn.Linear,
    effects: torch.Tensor,
    predictor: Predictor,
    factors: Factors | None,
) -> None:
    """Set the weights of one region so that its mean response is the dense network's.

    ``predictor`` and ``factors`` speak of responses times ``effects``: so do weight and bias here, and what leaves
    the region is divided by them.
    """
    weight = layer.weight.detach().flatten(1).double() * effects[:, None]
    bias = torch.zeros_like(effects) if layer.bias is None else layer.bias.detach().double() * effects
    without_bias = (predictor.mean_delivered - bias)[:, None]
    last: Any
    if factors is None:
        filters, last = predictor.apply(weight), target
        offset = predictor.mean_dense - predictor.apply(without_bias)[:, 0]
    else:
        assert isinstance(target, nn.Sequential)
        first, last = target
        first.weight.copy_((factors.basis @ weight).view_as(first.weight))  # type: ignore[operator, arg-type]
        filters = factors.recombination
        offset = predictor.mean_dense - (factors.recombination @ (factors.basis @ without_bias))[:, 0]
    last.weight.copy_((filters / effects[:, None]).view_as(last.weight))
    last.bias.copy_(offset / effects)
