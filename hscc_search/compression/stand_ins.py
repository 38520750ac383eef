"""Modules that take the place of a layer, in a network that was written for the layer.

The forward pass of somebody's network may ask a layer for more than an answer: ``isinstance(layer, nn.Conv2d)``,
``layer.weight.dtype``, ``layer.stride``, an attribute of its own; it may call the layer by keyword, hold it in a plain
list as well, or under two names. So that all of this goes on, whatever a network asks:

- Only a layer whose computation is known is replaced, see :func:`computes_otherwise`: its class adds nothing to
  ``nn.Conv2d`` or ``nn.Linear``, and it has no hooks, parametrisations or buffers. Any other stays dense.
- A stand-in is an instance of the layer's own class, with the layer's attributes, and before that of the class that
  computes. A type test and an attribute need no list of cases that way.
- The values of the dense weight are gone, so nothing may be computed from them: ``weight`` and ``bias`` have shape,
  dtype and device, and every value is NaN. A forward pass that computes with them answers NaN, which the self-check
  sees (:mod:`hscc_search.compression.calibration.self_check`), and the layer stays dense.
- A network is copied with the stand-in as the copy of the layer, so that whatever referred to the layer refers to it:
  a second name, a list, a bound method.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from hscc_search.errors import CompressionError, one_line

# Given a layer's input, builds the module that takes its place, and gives that module's output too.
Fit = Callable[[torch.Tensor], tuple[nn.Module, torch.Tensor]]

# Attributes that a class may add to a layer's without changing what it computes.
_HARMLESS = {
    "__init__",
    "__doc__",
    "__module__",
    "__qualname__",
    "__annotations__",
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__static_attributes__",
    "__firstlineno__",
    "__constants__",
    "__parameters__",
    "__orig_bases__",
    "extra_repr",
    "__repr__",
}
# Classes with a forward of their own that computes what their base class does, whatever the input.
_KNOWN = {"timm.layers.linear.Linear"}
# The classes of stand-ins by the class that computes and the class of the layer.
_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


class _StandIn:
    """The part of a stand-in's class that answers for the weights of the layer.

    Attributes:
        dense: shape, dtype and device of the layer's weight.
        has_bias: whether the layer has a bias.
    """

    __jit_unused_properties__ = ("weight", "bias")
    dense: tuple[torch.Size, torch.dtype, torch.device]
    has_bias: bool

    @property
    def weight(self) -> torch.Tensor:
        """NaN in the shape of the dense weight."""
        return self._nan(self.dense[0])

    @property
    def bias(self) -> torch.Tensor | None:
        """NaN in the shape of the dense bias, None where the layer had none."""
        return self._nan(self.dense[0][:1]) if self.has_bias else None

    def _nan(self, shape: torch.Size) -> torch.Tensor:
        assert isinstance(self, nn.Module)
        _, dtype, device = self.dense
        own = next(self.parameters(), None)  # moved and converted with the network
        dtype, device = (dtype, device) if own is None else (own.dtype, own.device)
        return torch.full((), math.nan, dtype=dtype, device=device).expand(shape)

    def __reduce_ex__(self, protocol: Any) -> Any:
        module_class, layer_class = type(self).__bases__[1:]
        return _empty, (module_class, layer_class), self.__dict__


def _empty(module_class: type[nn.Module], layer_class: type[nn.Module]) -> nn.Module:
    """An instance without attributes, which copying and unpickling fill."""
    both = _stand_in_class(module_class, layer_class)
    return both.__new__(both)


def _stand_in_class(module_class: type[nn.Module], layer_class: type[nn.Module]) -> type[nn.Module]:
    key = module_class, layer_class
    if key not in _CLASSES:
        _CLASSES[key] = type(module_class.__name__, (_StandIn, *key), {"__module__": __name__})
    return _CLASSES[key]


def stand_in(module: nn.Module, layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """Make a module pass for a layer, in place: of the layer's class, with its attributes.

    Args:
        module: computes in place of the layer; its own attributes stay.
        layer: a Conv2d or Linear that :func:`computes_otherwise` has nothing against.

    Returns:
        The module.
    """
    if isinstance(module, type(layer)):
        return module
    if type(module) in type(layer).__mro__:  # a dense layer for a dense layer, which has weights of its own
        module.__class__ = type(layer)
    else:
        module.__class__ = _stand_in_class(type(module), type(layer))
        weight = layer.weight
        module.__dict__.update(dense=(weight.shape, weight.dtype, weight.device), has_bias=layer.bias is not None)
    give_attributes(module, layer)
    return module


def give_attributes(module: nn.Module, layer: nn.Module) -> None:
    """Give a module the attributes of a layer that it has none of its own for."""
    held = vars(module)
    own = {*held, *held["_modules"], *held["_parameters"], *held["_buffers"]}
    held |= {name: value for name, value in vars(layer).items() if name not in own}


def adds_to(module: nn.Module, *bases: type[nn.Module]) -> bool:
    """Tell whether the class of a module may compute otherwise than the first of ``bases`` that it is derived from."""
    for module_class in type(module).__mro__:
        if module_class in bases:
            return False
        known = f"{module_class.__module__}.{module_class.__qualname__}" in _KNOWN
        if not known and set(vars(module_class)) - _HARMLESS:
            return True
    return True


def computes_otherwise(layer: nn.Conv2d | nn.Linear) -> str | None:
    """Why a layer may compute something else than a Conv2d or Linear with its weight does; None if it does not."""
    if adds_to(layer, nn.Conv2d, nn.Linear):
        return f"its class {type(layer).__name__} computes in its own way"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks of its own"
    if {"forward", "_conv_forward", "_call_impl"} & set(vars(layer)):
        return "its forward was replaced"
    own = {*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias"}
    if own or not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other tensors"
    return None


def copied(network: nn.Module) -> nn.Module:
    """Copy a network, in evaluation mode."""
    return replaced(network, {})


def replaced(network: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Copy a network, in evaluation mode, with other modules in place of the layers at the given paths.

    Whatever refers to a layer refers in the copy to the module in its place.

    Raises:
        CompressionError: the network holds something that cannot be copied.
    """
    in_place = {}
    for name, module in modules.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        in_place[name] = stand_in(module, layer)
    return copied_with(network, in_place)


def copied_with(network: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Copy a network, in evaluation mode, with other modules, as they are, in place of those at the given paths.

    Raises:
        CompressionError: the network holds something that cannot be copied.
    """
    # Each as the copy of the module in whose place it is, which is then not copied itself.
    memo: dict[int, Any] = {id(network.get_submodule(name)): module for name, module in modules.items()}
    for module in network.modules():
        held = {name: value for name, value in vars(module).items() if name[0] != "_"}
        for value in tree_leaves((held, module._buffers)):
            # Pruning and weight normalisation keep a weight with its graph, a running mean of activations as well;
            # torch does not copy them.
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(network, memo).eval()
    except Exception as error:  # whatever a network holds
        raise CompressionError(f"the network cannot be copied: {one_line(error, with_type=True)}") from error


@torch.no_grad()
def replaced_in_order(network: nn.Module, fits: Mapping[str, Fit], images: torch.Tensor) -> nn.Module:
    """Copy a network with modules in place of layers, each fitted to what the modules before it deliver.

    One forward pass over all images fits every module: each layer, when its turn comes, is given the input that the
    modules before it deliver, and passes on the output of its own. The network itself thus brings the layers into their
    order of execution, along branches and skip connections, and only the activations of the current layer are held in
    memory.

    Args:
        network: in evaluation mode; it is not changed.
        fits: for each layer by its name.
        images: float32 (images, channels, height, width).

    Raises:
        CompressionError: a layer is not called once with all images.
    """
    waiting = {name: _Waiting(name, fit, len(images)) for name, fit in fits.items()}
    # Of the images a copy, since a forward pass may normalise them in place.
    replaced(network, waiting)(images.clone())
    return replaced(network, {name: module.result() for name, module in waiting.items()})


class _Waiting(nn.Module):
    """A module that waits for a layer's input, and then fits the module that takes the layer's place."""

    def __init__(self, name: str, fit: Fit, images: int) -> None:
        super().__init__()
        self.name, self.fit, self.images = name, fit, images
        self.fitted: list[nn.Module] = []  # a list, so that torch does not take its entry for a submodule

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.fitted or not len(input) or len(input) % self.images:  # windows of an image pass like images
            raise CompressionError(f"layer {self.name} is not called once with all images, as in calibration it was")
        # What is built in a part that runs in inference mode could never be trained.
        with torch.inference_mode(False), torch.no_grad():
            module, output = self.fit(input.clone() if input.is_inference() else input)
        self.fitted.append(module)
        return output

    def result(self) -> nn.Module:
        if not self.fitted:
            raise CompressionError(f"layer {self.name} is not called where all images pass at once")
        return self.fitted[0]
