"""The comparison of a rewritten copy of a network with the network itself: both must answer alike."""

import copy
import math
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hscc_search.compression.stand_ins import copied
from hscc_search.dense.checked import left_alone
from hscc_search.errors import CompressionError, one_line

# Largest difference that counts as rounding in single and in double precision, relative to how much answers vary.
_SINGLE, _DOUBLE = 1e-4, 1e-7
# The same where a network runs in single precision alone, and rounding cannot be told from a small fault.
_SINGLE_ALONE = 1e-2
# The same in double precision where the rounding of single precision alone changes answers by more than that bound: a
# fault that showed so much there would be no smaller in double precision.
_DOUBLE_AMPLIFIED = 1e-5
# Relative rounding of a weight in single precision.
_ROUNDING = 2.0**-23
# How much answers vary at the least, relative to their size.
_LEAST_SPREAD = 1e-6
# Images of which the varied ones are made, and the number of ways.
_IMAGES, _WAYS = 4, 4


class Answers:
    """The answers of a network to varied images, in single and, where it is in doubt, in double precision.

    Args:
        network: it is not changed, and runs in evaluation mode.
        images: as it takes them, float32 (images, channels, height, width); a few of them are used.

    Attributes:
        images: four of the images, the same mirrored and inverted, and noise of twice their strength: what a network
            does only now and then, such as an activation that clips little, must not stay hidden.
        finite: whether all answers are.
        vary: whether the answers to different images differ. Where they do not, a fault may stay hidden.
    """

    @torch.no_grad()
    def __init__(self, network: nn.Module, images: torch.Tensor) -> None:
        self.images = _varied(images)
        self._network, self._allows_rounding = network, True
        with left_alone(network):
            self._expected = _answers(network.eval(), self.images)
        self.finite = all(bool(value.isfinite().all()) for value in self._expected)
        self.vary = any(_spread(value) > _LEAST_SPREAD * _size(value) for value in self._expected)

    @torch.no_grad()
    def problem(self, network: nn.Module) -> tuple[str | None, float]:
        """The reason why a rewritten copy answers otherwise, None if it does not; and the relative difference.

        The difference is relative to how answers vary. The copy runs on all images, and on the first alone.
        """
        try:
            answers, of_one = _answers(network, self.images), _answers(network, self.images[:1])
        except Exception as error:  # whatever a forward pass raises when a module is not what it expects
            return one_line(error, with_type=True), math.inf
        first = [value[:1] for value in self._expected]
        difference = max(_distance(answers, self._expected), _distance(of_one, first, self._expected))
        return (None, difference) if difference <= _SINGLE else self._problem_in_double(network, difference)

    def again_of(self, rewritten: nn.Module) -> "Answers":
        """The same answers, for copies of a network that was rewritten already and answers alike but for rounding.

        In double precision such copies are held against ``rewritten``, whose weights they share, so that no rounding of
        weights is allowed for: in networks that amplify it, a fault would be lost in it.
        """
        answers = copy.copy(self)
        answers.__dict__.pop("_expected_in_double", None)
        answers._network, answers._allows_rounding = rewritten, False
        return answers

    @torch.no_grad()
    def same_in_double(self, one: nn.Module, other: nn.Module) -> bool:
        """Tell whether two networks in double precision answer alike."""
        try:
            images = self.images.double()
            return _distance(_answers(other, images), _answers(one, images)) <= _DOUBLE
        except Exception:  # whatever a forward pass raises that mixes precisions
            return False

    def holds(self, network: nn.Module) -> bool:
        """Tell whether a rewritten copy answers as the network does."""
        return self.problem(network)[0] is None

    @torch.no_grad()
    def check_copy(self, copied_network: nn.Module) -> None:
        """Check that a copy answers as the network does, by parts of its own.

        Raises:
            CompressionError: it does not, as where a hook or a function refers to the network that was copied.
        """
        name = type(self._network).__name__
        # In another order than before, so that what was kept of an image belongs to another one.
        order = torch.arange(len(self.images)).view(_WAYS, -1).roll(1, 1).flatten()
        try:
            with _Foreign(self._network) as foreign:
                answers = _answers(copied_network, self.images[order])
        except Exception as error:  # whatever is missing in the copy
            raise CompressionError(
                f"a copy of {name} does not run ({one_line(error, with_type=True)}): "
                "keep what its forward pass reads in attributes that copy.deepcopy copies"
            ) from error
        remedy = "reach layers and values through attributes of the module that runs, not through what refers to it"
        if foreign.parameter is not None:
            raise CompressionError(
                f"a copy of {name} computes with {foreign.parameter} of the network that was copied, as a function "
                f"inside a function, a weak reference or a global does: {remedy}"
            )
        difference = _distance(answers, [_in_order(value, order) for value in self._expected])
        if self.finite and difference > _SINGLE and self._problem_in_double(copied_network, difference)[0]:
            raise CompressionError(
                f"a copy of {name} answers otherwise, as where a hook writes into the network that was copied: {remedy}"
            )

    @cached_property
    def _expected_in_double(self) -> list[torch.Tensor] | None:
        """The same answers in double precision; None where the network makes tensors in single precision."""
        try:
            return _answers(copied(self._network).double(), self.images.double())
        except Exception:  # whatever a forward pass raises that mixes precisions
            return None

    def _problem_in_double(self, network: nn.Module, in_single: float) -> tuple[str | None, float]:
        """Tell rounding from a fault in double precision, if the network runs in it."""
        expected = self._expected_in_double
        if expected is None:
            return (None if in_single <= _SINGLE_ALONE else _words(in_single)), in_single
        try:
            difference = _distance(_answers(copied(network).double(), self.images.double()), expected)
        except Exception as error:
            return one_line(error, with_type=True), math.inf
        if self._allows_rounding:
            allowed = max(_DOUBLE, self._rounding)
        else:
            allowed = _DOUBLE_AMPLIFIED if self._amplifies(network) else _DOUBLE
        return (None if difference <= allowed else _words(difference)), difference

    def _amplifies(self, network: nn.Module) -> bool:
        """Tell if a copy with the weights of the network answers otherwise in single precision, by rounding alone."""
        try:
            difference = _distance(_answers(network, self.images), _answers(self._network, self.images))
        except Exception:  # whatever a forward pass raises when a module is not what it expects
            return False
        return difference > _SINGLE_ALONE

    @cached_property
    def _rounding(self) -> float:
        """The difference that rounding the filters to single precision makes, as rewriting them does.

        It is tiny in most networks, and large in those that amplify each difference: deep ones with random weights.
        """
        assert self._expected_in_double is not None
        rounded, generator = copied(self._network).double(), torch.Generator().manual_seed(0)
        for weight in rounded.parameters():
            if weight.ndim < 2:  # a large bias would hide what is small beside it
                continue
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.mul_(1 + _ROUNDING * noise.to(weight.device))
        try:
            difference = _distance(_answers(rounded, self.images.double()), self._expected_in_double)
        except Exception:  # whatever a forward pass raises that mixes precisions
            return 0.0
        return min(difference, _SINGLE_ALONE)


class _Foreign(TorchDispatchMode):
    """Notices computing with the parameters of another network than the one that runs.

    Attributes:
        parameter: the first of them, None if there is none.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameter: str | None = None
        self._names = {_address(parameter): name for name, parameter in network.named_parameters()}
        self._names.pop(0, None)  # of parameters without elements

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and self.parameter is None:
                self.parameter = self._names.get(_address(value))
        return func(*args, **(kwargs or {}))


def _address(value: torch.Tensor) -> int:
    try:
        return value.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a tensor without memory of its own
        return 0


def _varied(images: torch.Tensor) -> torch.Tensor:
    few = images[:: max(1, len(images) // _IMAGES)][:_IMAGES]
    noise = torch.randn(few.shape, generator=torch.Generator().manual_seed(0)).to(few) * few.std()
    return torch.cat([few, few.flip(-1), -few, 2 * noise + few.mean()])


def _words(difference: float) -> str:
    return f"its answers differ by {difference:.1g}" if math.isfinite(difference) else "its answers are not finite"


def _answers(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a network answers with, of all images together; it runs on half of them at a time."""
    # Of the images a copy, since a network may normalise them in place.
    by_batch = [
        [value for value in tree_leaves(network(batch.clone())) if isinstance(value, torch.Tensor)]
        for batch in images.split(max(1, len(images) // 2))
    ]
    shapes = [[value.shape[1:] for value in values if value.dim()] for values in by_batch]
    if all(len(shape) == len(by_batch[0]) and shape == shapes[0] for shape in shapes):
        return [torch.cat(values) for values in zip(*by_batch, strict=True)]
    return [value for values in by_batch for value in values]


def _in_order(value: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return value[order] if value.dim() and len(value) == len(order) else value


def _spread(value: torch.Tensor) -> float:
    return float((value - value.mean(dim=0)).double().norm() / len(value) ** 0.5)


def _size(value: torch.Tensor) -> float:
    return float(value.double().norm() / len(value) ** 0.5)


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
        allowed = max(_spread(several), _LEAST_SPREAD * _size(several), 1e-30)
        relative = _size(value - wanted) / allowed
        largest = max(largest, math.inf if math.isnan(relative) else relative)
    return largest
