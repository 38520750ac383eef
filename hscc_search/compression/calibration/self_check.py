"""The check that a network answers the same with other modules in place of its layers.

Every layer that is to be compressed is replaced at full rank, in the way that a trial replaces it: the basis filters
are the dense filters, the recombination is the identity. Whatever a forward pass asks of a layer, see
:mod:`hscc_search.compression.stand_ins`, then either goes on or shows as another answer or an error. The layers that
do so stay dense.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from hscc_search.compression.calibration.agreement import Answers
from hscc_search.compression.form import LayerForm, Piece, RegionRanks
from hscc_search.compression.layers import build, group_modules, region_modules
from hscc_search.compression.stand_ins import replaced_in_order
from hscc_search.errors import CompressionError, one_line

# Images that the layers are fitted to.
_IMAGES = 4

Size = tuple[int, int]


@dataclass(frozen=True)
class SelfCheck:
    """The outcome of the check.

    Attributes:
        misfits: the layers that cannot be replaced without changing what the network computes, with the reason.
        error: largest difference of the answers with all other layers replaced, relative to how much answers vary; in
            double precision, and to the folded network, where it is too large in single precision.
    """

    misfits: Mapping[str, str]
    error: float


@torch.no_grad()
def check_replacing(network: nn.Module, sizes: Mapping[str, Size], answers: Answers) -> SelfCheck:
    """Check that layers can be replaced, with whole maps and with maps divided into regions.

    Args:
        network: in evaluation mode, with batch norms folded.
        sizes: height and width of the output map of each layer that is to be compressed.
        answers: of the network before it was made plain and folded, which was checked.

    Raises:
        CompressionError: the network answers otherwise although each layer alone can be replaced.
    """
    answers = answers.again_of(network)
    maps = {name: size for name, size in sizes.items() if isinstance(network.get_submodule(name), nn.Conv2d)}
    checks = [_Check(network, chosen, answers, chosen is maps) for chosen in (sizes, maps)]
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
    return SelfCheck(misfits, max(check.difference for check in checks))


class _Check:
    """The check of a network with whole maps, or with maps divided into regions.

    Attributes:
        difference: of the answers when layers were replaced last, relative to how much answers vary.
    """

    def __init__(self, network: nn.Module, sizes: Mapping[str, Size], answers: Answers, divided: bool) -> None:
        self.network, self.sizes, self.answers, self.divided = network, sizes, answers, divided
        self.difference = 0.0

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
        """The reason why the network answers otherwise with the layers replaced, None if it does not."""
        if not names:
            return None
        fits = {name: partial(_fit_exactly, self.network.get_submodule(name), self._form(name)) for name in names}
        try:
            replaced = replaced_in_order(self.network, fits, self.answers.images[:_IMAGES])
        except Exception as error:  # whatever a forward pass raises when a layer is not what it expects
            return one_line(error, with_type=True)
        problem, self.difference = self.answers.problem(replaced)
        return problem

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
