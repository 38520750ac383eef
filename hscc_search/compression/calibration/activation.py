"""Bounds between which the activation behind a layer lets its responses through.

Behind a ReLU all responses below 0 are alike: a fit need not hit them, and has more freedom for the others. This
holds only where nothing but the activation reads the responses, which one watched pass of an image tells.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hscc_search.compression.calibration.hooks import Inputs, hooked

# Lower and upper end; the responses between them pass unchanged.
Bounds = tuple[float, float]

_ATEN = torch.ops.aten


def activation_bounds(network: nn.Module, layers: Mapping[str, nn.Module], image: torch.Tensor) -> dict[str, Bounds]:
    """Find the bounds behind each layer whose responses only ReLU or another clipping activation reads.

    Args:
        network: in evaluation mode.
        layers: by name; each is called once in a pass.
        image: float32 (1, 3, height, width).

    Returns:
        The bounds by layer, without the layers that have none.
    """
    readers = _Readers()
    with hooked(layers, after=readers.follow), torch.no_grad(), readers:
        result = network(image)
    for value in _tensors(result):
        readers.note(value, None)
    bounds = {}
    for name, read_with in readers.bounds.items():
        activation = read_with.pop() if len(read_with) == 1 else None
        if activation is not None:
            bounds[name] = activation
    return bounds


class _Readers(TorchDispatchMode):
    """Records which operations read the responses of followed layers.

    Attributes:
        bounds: for each followed layer the bounds of every activation that reads its responses; None for any other
            reader.
        followed: name and responses of each layer by the storage of the responses, which are held so that the storage
            is not used again.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bounds: dict[str, set[Bounds | None]] = {}
        self.followed: dict[int, tuple[str, torch.Tensor]] = {}

    def follow(self, name: str, inputs: Inputs, output: torch.Tensor) -> None:
        """Follow the responses of a layer from here on."""
        self.bounds[name] = set()
        self.followed[_storage(output)] = name, output

    def note(self, value: torch.Tensor, bounds: Bounds | None) -> bool:
        """Note a reader of a tensor; True where the tensor is one that is followed."""
        name, output = self.followed.get(_storage(value), (None, None))
        if name is None or output is None:
            return False
        self.bounds[name].add(bounds if value.numel() == output.numel() else None)
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        in_place = func._schema.is_mutable
        inputs = _tensors((args, kwargs))
        # A view shares the storage of its input: the operations that read the view count, making it does not.
        viewed = {_storage(value) for value in inputs} & {_storage(value) for value in _tensors(result)}
        if in_place or not viewed:
            bounds = _bounds(func, args)
            for value in inputs:
                if self.note(value, bounds) and in_place:
                    del self.followed[_storage(value)]  # it holds the activation's output from here on
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _bounds(func: Any, args: Any) -> Bounds | None:
    """The bounds of an operation that is a clipping activation, None for any other."""
    if func in (_ATEN.relu.default, _ATEN.relu_.default):
        return 0.0, math.inf
    if func in (_ATEN.hardtanh.default, _ATEN.hardtanh_.default):
        return float(args[1]) if len(args) > 1 else -1.0, float(args[2]) if len(args) > 2 else 1.0
    if func in (_ATEN.clamp_min.default, _ATEN.clamp_min_.default):
        return float(args[1]), math.inf
    return None
