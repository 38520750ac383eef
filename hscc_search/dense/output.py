"""Pick the scores out of what a network answers with, by a function of the user's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hscc_search.dense.answers import described
from hscc_search.errors import ModelError, one_line
from hscc_search.user_code import load_function


def picking(network: nn.Module, output: str) -> nn.Module:
    """Let a network answer with the scores alone, in place.

    A hook on the network and no module around it: so its weights and layers keep their names in checkpoints and tables,
    and a copy of it, or a module that holds it, answers alike.

    Args:
        network: answers with anything; one that picks already stays as it is.
        output: ``package.module:function``, which takes the answer and returns the scores.

    Raises:
        ModelError: it cannot be imported, or is no function.
    """
    try:
        function = load_function(output)
    except Exception as error:  # whatever the user's code raises
        raise ModelError(f"model.output: cannot import {output}: {one_line(error, with_type=True)}") from error
    if not callable(function):
        raise ModelError(f"model.output: {output} is no function")
    if not any(isinstance(hook, _Pick) for hook in network._forward_hooks.values()):
        network.register_forward_hook(_Pick(output, function))
    return network


@dataclass(frozen=True)
class _Pick:
    """A forward hook that replaces the answer of a network by the scores in it.

    Attributes:
        name: of the function, for messages.
        function: takes the answer, returns the scores.
    """

    name: str
    function: Callable[[Any], Any]

    def __call__(self, network: nn.Module, inputs: tuple[Any, ...], answer: Any) -> torch.Tensor:
        """Pick the scores.

        Raises:
            ModelError: the function fails, or returns no tensor.
        """
        try:
            scores = self.function(answer)
        except Exception as error:  # whatever the user's code raises
            reason = one_line(error, with_type=True)
            raise ModelError(
                f"model.output: {self.name} fails on {described(answer)}, with which the network answers: {reason}"
            ) from error
        if not isinstance(scores, torch.Tensor):
            raise ModelError(
                f"model.output: {self.name} must return the scores, a tensor, not {described(scores)}; the network "
                f"answers with {described(answer)}"
            )
        return scores
