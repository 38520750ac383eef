"""Layers that compute their weight anew in each pass, always to the same values, made plain.

A convolution that standardises its weight (Qiao et al. 2019, arXiv 1903.10520, in BiT and NFNets), weight and spectral
normalisation, a parametrisation, a pruning mask, a class of one's own around ``functional.conv2d``: in evaluation mode
each is a Conv2d or Linear with some weight. That weight is what torch's function is given, so that it is taken from
there, whatever computes it, and a plain layer that holds it takes the layer's place.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hscc_search.compression.calibration.agreement import Answers
from hscc_search.compression.form import PlainLayer
from hscc_search.compression.stand_ins import computes_otherwise, copied, copied_with, give_attributes
from hscc_search.errors import CompressionError


@torch.no_grad()
def make_plain(
    network: nn.Module, image: torch.Tensor, before: Answers | None = None
) -> tuple[nn.Module, tuple[PlainLayer, ...]]:
    """Replace each module by a plain layer that runs torch's convolution or linear function once, and nothing behind.

    The function must be given the module's own input, and weights that do not depend on it. Replacements that change
    the network's outputs are undone.

    Args:
        network: any network that returns tensors; it is not changed.
        image: as the network takes them, float32 (1, 3, height, width), on its device.
        before: answers that the changed network must give; by default those of the network to varied images.

    Returns:
        A copy in evaluation mode, and its plain layers in execution order, for :func:`apply_plain`.
    """
    result = copied(network)
    layers = _find(result, image)
    if not layers:
        return result, ()
    answers = before or Answers(network, image)

    def harmless(names: list[str]) -> list[str]:
        if not names or answers.holds(_with(result, layers, names)):
            return names
        middle = len(names) // 2
        return harmless(names[:middle]) + harmless(names[middle:]) if middle else []

    names = harmless(list(layers)) if answers.finite else []
    changed = _with(result, layers, names)
    if not names or not answers.holds(changed):
        return result, ()
    return changed, tuple(_described(name, layers[name]) for name in names)


@torch.no_grad()
def plain_again(network: nn.Module, image: torch.Tensor, plain: Iterable[PlainLayer]) -> nn.Module:
    """Copy a network with the layers plain that :func:`make_plain` has made so of one with the same weights."""
    names = [layer.layer for layer in plain]
    result = copied(network)
    return _with(result, _find(result, image), names) if names else result


def apply_plain(network: nn.Module, plain: Iterable[PlainLayer]) -> nn.Module:
    """Copy a newly built network with plain layers, whose weights are then loaded by name.

    Args:
        network: of the architecture that :func:`make_plain` was given.
        plain: from there.

    Raises:
        CompressionError: there is no such layer in this network.
    """
    layers = {}
    for form in plain:
        try:
            layer = network.get_submodule(form.layer)
        except AttributeError:
            raise CompressionError(f"no layer {form.layer} to take the weight of in {type(network).__name__}") from None
        layers[form.layer] = _built(form)
        give_attributes(layers[form.layer], layer)
    return copied_with(network, layers)


def _with(network: nn.Module, layers: dict[str, nn.Module], names: list[str]) -> nn.Module:
    return copied_with(network, {name: layers[name] for name in names})


@dataclass
class _Run:
    """A module that runs.

    Attributes:
        name: its path.
        input: the tensor that it was given, and the number of changes in place to it until then.
        calls: of torch's functions, directly by this module.
        layer: the plain layer that the last of them amounts to.
        output: what the last of them answered, and the number of changes to it until then.
    """

    name: str
    input: tuple[torch.Tensor, int] | None
    calls: int = 0
    layer: nn.Module | None = None
    output: tuple[torch.Tensor, int] | None = None


class _Calls(TorchFunctionMode):
    """Records which function each module runs.

    Attributes:
        runs: of the modules that run now, the innermost last.
        ended: of those that have run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[_Run] = []
        self.ended: list[_Run] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        layer_of = _FUNCTIONS.get(func)
        if layer_of is not None and self.runs:
            run = self.runs[-1]
            run.calls += 1
            run.layer, x = layer_of(*args, **(kwargs or {}))
            run.output = _as_it_is(result)
            if not _is_still(run.input, x):
                run.layer = None
        return result

    def before(self, name: str, inputs: tuple[Any, ...]) -> None:
        """Record that a module begins."""
        self.runs.append(_Run(name, _as_it_is(inputs[0] if len(inputs) == 1 else None)))

    def after(self, output: Any) -> None:
        """Record that the innermost module ends."""
        run = self.runs.pop()
        if run.calls != 1 or not _is_still(run.output, output):
            run.layer = None
        run.input = run.output = None
        self.ended.append(run)


def _as_it_is(value: Any) -> tuple[torch.Tensor, int] | None:
    """A tensor with the number of changes in place to it; None for anything else, and where torch does not count."""
    return (value, value._version) if isinstance(value, torch.Tensor) and not value.is_inference() else None


def _is_still(before: tuple[torch.Tensor, int] | None, value: Any) -> bool:
    """Tell whether a value is the same tensor as before, and has not been changed in place."""
    return before is not None and before[0] is value and before[1] == value._version


def _find(network: nn.Module, image: torch.Tensor) -> dict[str, nn.Module]:
    """Find the layers that can be made plain, in execution order, with the plain layer of each."""
    modules = {name: module for name, module in network.named_modules() if name and _may_compute_its_weight(module)}
    if not modules:
        return {}
    first, second = (_layers(network, modules, x) for x in (image, -image.flip(-1)))
    same = {name: layer for name, layer in first.items() if name in second and _equal(layer, second[name])}
    for name, layer in same.items():
        give_attributes(layer, modules[name])
    return same


def _may_compute_its_weight(module: nn.Module) -> bool:
    """Tell whether a module may be more than a plain layer, and watching or replacing it loses nothing else."""
    if isinstance(module, (nn.Conv2d, nn.Linear)) and computes_otherwise(module) is None:
        return False
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    own = all(type(hook).__module__.startswith("torch.nn.utils.") for hook in hooks)
    return own and type(module).forward is not nn.Sequential.forward


def _layers(network: nn.Module, modules: dict[str, nn.Module], image: torch.Tensor) -> dict[str, nn.Module]:
    """Run an image through the network: the plain layer of each module that amounts to one and runs once."""
    calls = _Calls()
    with ExitStack() as stack:
        for name, module in modules.items():

            def before(_: nn.Module, inputs: Any, keywords: Any, name: str = name) -> None:
                calls.before(name, (*inputs, *keywords.values()))

            def after(_: nn.Module, __: Any, output: Any) -> None:
                calls.after(output)

            # First and last, so that what a weight normalisation does in its hook happens while the module runs.
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        with calls:
            network(image.clone())
    times = Counter(run.name for run in calls.ended)
    return {run.name: run.layer for run in calls.ended if run.layer is not None and times[run.name] == 1}


def _convolution(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[nn.Module | None, Any]:
    """The Conv2d that a call amounts to, if it is one of maps in a batch, and the call's input."""
    if weight.dim() != 4 or input.dim() != 4:
        return None, input
    convolution = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    pairs = {name: value if isinstance(value, (str, int)) else _pair(value) for name, value in convolution.items()}
    return _filled(PlainLayer("", tuple(weight.shape), bias is not None, pairs), weight, bias), input


def _pair(values: Any) -> tuple[int, ...]:
    """Two numbers; torch takes a single one in a tuple for both."""
    return tuple(values) * (2 // len(values))


def _linear(input: Any, weight: Any, bias: Any = None) -> tuple[nn.Module | None, Any]:
    """The Linear that a call amounts to, and the call's input."""
    if weight.dim() != 2:
        return None, input
    return _filled(PlainLayer("", tuple(weight.shape), bias is not None, {}), weight, bias), input


_FUNCTIONS: dict[Any, Callable[..., tuple[nn.Module | None, Any]]] = {
    torch.conv2d: _convolution,
    functional.conv2d: _convolution,
    functional.linear: _linear,
}


def _filled(form: PlainLayer, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """A plain layer with copies of a weight and a bias."""
    layer: Any = _built(form)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer  # type: ignore[no-any-return]


def _built(form: PlainLayer) -> nn.Module:
    """A plain layer with weights that are still to be set."""
    with torch.device("meta"):
        if len(form.weight) == 2:
            layer: nn.Module = nn.Linear(form.weight[1], form.weight[0], form.bias)
        else:
            outputs, inputs, *kernel_size = form.weight
            convolution: Any = form.convolution
            inputs *= convolution["groups"]
            layer = nn.Conv2d(inputs, outputs, tuple(kernel_size), bias=form.bias, **convolution)  # type: ignore[arg-type]
    return layer.to_empty(device="cpu").eval()


def _described(name: str, layer: Any) -> PlainLayer:
    convolution = {}
    if isinstance(layer, nn.Conv2d):
        convolution = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
    return PlainLayer(name, tuple(layer.weight.shape), layer.bias is not None, convolution)


def _equal(one: Any, other: Any) -> bool:
    """Tell whether two plain layers are the same, to the last bit."""
    same_bias = one.bias is other.bias is None or (
        one.bias is not None and other.bias is not None and torch.equal(one.bias, other.bias)
    )
    return _described("", one) == _described("", other) and torch.equal(one.weight, other.weight) and same_bias
