"""Whether a rewritten network answers as it did before."""

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

# Largest difference of the outputs that counts as rounding, relative to the outputs.
_TOLERANCE = 1e-4


class Agreement:
    """The answers of a network to an image and what is made of it, which a rewritten network must give as well.

    Args:
        network: in evaluation mode.
        image: as the network takes them, float32 (1, 3, height, width).

    Attributes:
        finite: whether all answers are.
    """

    def __init__(self, network: nn.Module, image: torch.Tensor) -> None:
        # Near the images that statistics come from: far from them rounding alone may change an answer.
        self._inputs = [image, image.flip(-1), -image]
        self._expected = [_outputs(network, x) for x in self._inputs]
        self.finite = all(bool(value.isfinite().all()) for values in self._expected for value in values)

    def holds(self, network: nn.Module) -> bool:
        """Whether a network answers each input as expected, but for rounding."""
        try:
            outputs = [_outputs(network, x) for x in self._inputs]
        except Exception:  # a network may ask a module for what the one in its place lacks, and raise anything
            return False
        return all(
            len(ours) == len(theirs) and all(map(_is_near, ours, theirs))
            for ours, theirs in zip(outputs, self._expected, strict=True)
        )


def _outputs(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    # Of the input a copy, since a forward pass may normalise it in place.
    return [value.double() for value in tree_leaves(network(x.clone())) if isinstance(value, torch.Tensor)]


def _is_near(value: torch.Tensor, expected: torch.Tensor) -> bool:
    return value.shape == expected.shape and bool((value - expected).norm() <= _TOLERANCE * expected.norm())
