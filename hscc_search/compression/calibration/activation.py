"""What lies behind a layer: between which bounds a clipping activation lets its responses through.

Behind a ReLU all responses below 0 are alike, so a fit need not hit them, and what that saves serves the others. It
holds only where nothing but the activation sees the responses, which is found by watching one image pass.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten

Bounds = tuple[float, float]


def activation_bounds(network: nn.Module, layers: Mapping[str, nn.Module], image: torch.Tensor) -> dict[str, Bounds]:
    """The bounds behind each layer whose responses go through ReLU or another clipping activation and nowhere else.

    Args:
        network: in evaluation mode.
        layers: by name; each is called once in a pass.
        image: float32 (1, 3, height, width).
    """
    watch = _Watch()
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: watch.follow(name, output))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad(), watch:
            result = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    for value in _tensors(result):
        watch.see(value, None)
    return {
        name: bounds for name, seen in watch.seen.items() if len(seen) == 1 for bounds in seen if bounds is not None
    }


class _Watch(TorchDispatchMode):
    """Notes for each followed tensor the bounds of every activation that reads it, and None for any other reader."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[str, set[Bounds | None]] = {}
        self.followed: dict[int, tuple[str, torch.Tensor]] = {}  # by storage, and held so that it is not used again

    def follow(self, name: str, output: torch.Tensor) -> None:
        self.seen[name] = set()
        self.followed[_storage(output)] = name, output

    def see(self, value: torch.Tensor, bounds: Bounds | None) -> bool:
        """Note a reader; True where the value is one that is followed."""
        name, output = self.followed.get(_storage(value), (None, None))
        if name is None or output is None:
            return False
        self.seen[name].add(bounds if value.numel() == output.numel() else None)
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        in_place = func._schema.is_mutable
        inputs = _tensors((args, kwargs))
        # A view shows the same values, so that its readers count and not itself.
        shown = {_storage(value) for value in inputs} & {_storage(value) for value in _tensors(result)}
        if in_place or not shown:
            bounds = _bounds(func, args)
            for value in inputs:
                if self.see(value, bounds) and in_place:
                    del self.followed[_storage(value)]  # from here on it holds what the activation let through
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _bounds(func: Any, args: Any) -> Bounds | None:
    if func in (_ATEN.relu.default, _ATEN.relu_.default):
        return 0.0, math.inf
    if func in (_ATEN.hardtanh.default, _ATEN.hardtanh_.default):
        return float(args[1]) if len(args) > 1 else -1.0, float(args[2]) if len(args) > 2 else 1.0
    if func in (_ATEN.clamp_min.default, _ATEN.clamp_min_.default):
        return float(args[1]), math.inf
    return None
