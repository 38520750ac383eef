"""The check that a network answers the same with other modules in place of its layers.

Every layer that is to be compressed is replaced at full rank, in the way that a trial replaces it: the basis filters
are the dense filters, the recombination is the identity. Whatever a forward pass asks of a layer, see
:mod:`hscc_search.compression.stand_ins`, then either goes on or shows as another answer or an error. The layers that
do so stay dense.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from hscc_search.compression.form import LayerForm, Piece, RegionRanks
from hscc_search.compression.layers import build, group_modules, region_modules
from hscc_search.compression.stand_ins import copied, replaced_in_order
from hscc_search.errors import CompressionError, one_line

# Largest difference that counts as rounding in single and in double precision, relative to how much answers vary.
_SINGLE, _DOUBLE = 1e-4, 1e-7
# The same where a network runs in single precision alone, and rounding cannot be told from a small fault.
_SINGLE_ALONE = 1e-2
# How much answers vary at the least, relative to their size.
_LEAST_SPREAD = 1e-6

# Calibration images that the check uses.
_IMAGES = 4

Size = tuple[int, int]


@dataclass(frozen=True)
class SelfCheck:
    """The outcome of the check.

    Attributes:
        misfits: the layers that cannot be replaced without changing what the network computes, with the reason.
        error: largest difference of the answers with all other layers replaced, relative to how much answers vary.
    """

    misfits: Mapping[str, str]
    error: float


@torch.no_grad()
def check_replacing(network: nn.Module, sizes: Mapping[str, Size], images: torch.Tensor) -> SelfCheck:
    """Check that layers can be replaced, with whole maps and with maps divided into regions.

    Args:
        network: in evaluation mode, with batch norms folded.
        sizes: height and width of the output map of each layer that is to be compressed.
        images: float32 (images, 3, height, width); a few of them are used.

    Raises:
        CompressionError: the network answers otherwise although each layer alone can be replaced.
    """
    maps = {name: size for name, size in sizes.items() if isinstance(network.get_submodule(name), nn.Conv2d)}
    varied = _varied(images)
    expected = _answers(network, varied)
    checks = [_Check(network, chosen, varied, expected, chosen is maps) for chosen in (sizes, maps)]
    misfits: dict[str, str] = {}
    for check in checks:
        misfits |= check.misfits([name for name in check.sizes if name not in misfits])
    for check in checks:
        fitting = [name for name in check.sizes if name not in misfits]
        problem = check.problem(fitting) if misfits else None
        if problem is not None:
            raise CompressionError(
                f"with its layers up to {check.first_to_differ(fitting)} replaced at full rank, the network answers "
                f"otherwise ({problem}), though it does not with each one alone: it cannot be compressed"
            )
    return SelfCheck(misfits, max(check.distance for check in checks))


def _varied(images: torch.Tensor) -> torch.Tensor:
    """Four of the images, the same mirrored and inverted, and noise of the same strength.

    What a network does only now and then, such as an activation that clips little, must not stay hidden.
    """
    few = images[:: max(1, len(images) // _IMAGES)][:_IMAGES]
    noise = torch.randn(few.shape, generator=torch.Generator().manual_seed(0)).to(few) * few.std()
    return torch.cat([few, few.flip(-1), -few, noise + few.mean()])


class _Check:
    """The check of a network with whole maps, or with maps divided into regions.

    Attributes:
        distance: of the answers when layers were replaced last, relative to how much answers vary.
    """

    def __init__(
        self,
        network: nn.Module,
        sizes: Mapping[str, Size],
        images: torch.Tensor,
        expected: list[torch.Tensor],
        divided: bool,
    ) -> None:
        self.network, self.sizes, self.images, self.expected, self.divided = network, sizes, images, expected, divided
        self.distance = 0.0

    def misfits(self, names: list[str]) -> dict[str, str]:
        """The layers that alone change the answers, found by halving the list, since they are few."""
        problem = self.problem(names)
        if problem is None:
            return {}
        if len(names) == 1:
            return {names[0]: f"the network asks more of it than its answer ({problem})"}
        middle = len(names) // 2
        return self.misfits(names[:middle]) | self.misfits(names[middle:])

    def first_to_differ(self, names: list[str]) -> str:
        """The layer with which the answers begin to differ when layers are replaced one after the other."""
        agreeing, differing = 0, len(names)
        while differing - agreeing > 1:
            middle = (agreeing + differing) // 2
            agreeing, differing = (agreeing, middle) if self.problem(names[:middle]) else (middle, differing)
        return names[differing - 1]

    def problem(self, names: Sequence[str]) -> str | None:
        """How the network answers otherwise with the layers replaced, None if it does not."""
        if not names:
            return None
        fits = {name: partial(_fit_exactly, self.network.get_submodule(name), self._form(name)) for name in names}
        try:
            replaced = replaced_in_order(self.network, fits, self.images[:_IMAGES])
            answers, of_one = _answers(replaced, self.images), _answers(replaced, self.images[:1])
        except Exception as error:  # whatever a forward pass raises when a layer is not what it expects
            return one_line(error, with_type=True)
        first = [value[:1] for value in self.expected]
        self.distance = max(_distance(answers, self.expected), _distance(of_one, first, self.expected))
        return None if self.distance <= _SINGLE else self._problem_in_double(replaced)

    def _problem_in_double(self, replaced: nn.Module) -> str | None:
        """Tell rounding from a fault in double precision, if the network runs in it."""
        images = self.images.double()
        try:
            expected = _answers(copied(self.network).double(), images)
        except Exception:  # a forward pass that makes tensors in single precision
            return None if self.distance <= _SINGLE_ALONE else _difference(self.distance)
        try:
            self.distance = _distance(_answers(copied(replaced).double(), images), expected)
        except Exception as error:
            return one_line(error, with_type=True)
        return None if self.distance <= _DOUBLE else _difference(self.distance)

    def _form(self, name: str) -> LayerForm:
        layer: Any = self.network.get_submodule(name)
        height, width = self.sizes[name]
        rows, columns = _halves(height), _halves(width)
        if not self.divided:
            rows, columns = [(0, height)], [(0, width)]
        corners = [(row, column) for row in rows for column in columns]
        groups = getattr(layer, "groups", 1)
        full: RegionRanks = (len(layer.weight) // groups,)
        ranks = tuple(full if region % 2 == 0 else None for region in range(len(corners)))
        return LayerForm(
            output_size=(height, width),
            ranks=(ranks,) * groups,
            pieces=tuple(Piece(*row, *column, region) for region, (row, column) in enumerate(corners)),
            input_ranks=(None,) * groups,
        )


def _difference(distance: float) -> str:
    return f"its answers differ by {distance:.1g}" if math.isfinite(distance) else "its answers are not finite"


def _halves(size: int) -> list[tuple[int, int]]:
    return [(0, size // 2), (size // 2, size)] if size > 1 else [(0, size)]


def _fit_exactly(layer: Any, form: LayerForm, x: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """A module of full rank that computes what the layer does, and its output."""
    with torch.device("meta"):  # drawing weights that nobody will use takes longer than the rest
        module = build(layer, form)
    module.to_empty(device=x.device).to(layer.weight.dtype).eval()
    groups = group_modules(module)
    weights = layer.weight.chunk(len(groups))
    biases = [None] * len(groups) if layer.bias is None else layer.bias.chunk(len(groups))
    for group, weight, bias in zip(groups, weights, biases, strict=True):
        for region in region_modules(group):
            stages: list[Any] = list(region) if isinstance(region, nn.Sequential) else [region]
            stages[0].weight.copy_(weight)
            if len(stages) == 2:
                torch.nn.init.zeros_(stages[1].weight).flatten(1).fill_diagonal_(1)
            stages[-1].bias.copy_(bias if bias is not None else torch.zeros(()))
    return module, module(x)


def _answers(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a network answers with; of the images a copy, since it may normalise them in place."""
    return [value for value in tree_leaves(network(images.clone())) if isinstance(value, torch.Tensor)]


def _distance(
    answers: list[torch.Tensor], expected: list[torch.Tensor], varying: list[torch.Tensor] | None = None
) -> float:
    """The largest difference relative to how much the expected answers vary between images; infinite if it is NaN.

    Args:
        answers: to the images.
        expected: to the same images.
        varying: answers whose variation counts, ``expected`` by default.
    """
    if [value.shape for value in answers] != [value.shape for value in expected]:
        return math.inf
    largest = 0.0
    for value, wanted, several in zip(answers, expected, varying or expected, strict=True):
        spread = (several - several.mean(dim=0)).double().norm() / len(several) ** 0.5
        size = several.double().norm() / len(several) ** 0.5
        difference = (value - wanted).double().norm() / len(value) ** 0.5
        relative = float(difference / torch.maximum(spread, _LEAST_SPREAD * size).clamp(min=1e-30))
        largest = max(largest, math.inf if math.isnan(relative) else relative)
    return largest
