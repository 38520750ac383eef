"""Functions that are called whenever chosen modules of a network run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...]


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module],
    before: Callable[[str, Inputs], None] | None = None,
    after: Callable[[str, Inputs, torch.Tensor], None] | None = None,
) -> Iterator[None]:
    """Watch modules inside a ``with`` block; at its end, also after an error, the hooks are removed.

    ::

        with hooked({"features.0": layer}, after=lambda name, inputs, output: print(name, output.shape)):
            network(images)

    Args:
        modules: those to watch, each under the name that the functions are told.
        before: called with a module's name and inputs, those given by keyword last, before it runs.
        after: called with a module's name, inputs and output once it has run. An activation in place may change the
            output later, so keep a copy of what is to be kept.
    """
    handles = []
    try:
        for name, module in modules.items():
            if before is not None:
                handles.append(module.register_forward_pre_hook(_pre_hook(name, before), with_kwargs=True))
            if after is not None:
                handles.append(module.register_forward_hook(_forward_hook(name, after), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pre_hook(name: str, call: Callable[[str, Inputs], None]) -> Callable[[nn.Module, Any, dict[str, Any]], None]:
    def hook(module: nn.Module, inputs: Any, keywords: dict[str, Any]) -> None:
        call(name, (*inputs, *keywords.values()))

    return hook


def _forward_hook(
    name: str, call: Callable[[str, Inputs, Any], None]
) -> Callable[[nn.Module, Any, dict[str, Any], Any], None]:
    def hook(module: nn.Module, inputs: Any, keywords: dict[str, Any], output: Any) -> None:
        call(name, (*inputs, *keywords.values()), output)

    return hook
