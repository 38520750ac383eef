"""Batch normalisation folded into the layer before it.

In evaluation mode a batch norm is a fixed affine map per channel, ``z = s (y - mean) + beta`` with
``s = gamma / sqrt(variance + eps)``. After ``y = W x + b`` the weights absorb it: ``z = (s W) x + s (b - mean) + beta``
(Jacob et al. 2018, arXiv 1712.05877, section 3.2). The pairs are found by running the network rather than by tracing
it, since many networks cannot be traced.
"""

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hscc_search.compression.calibration.agreement import Answers
from hscc_search.compression.calibration.hooks import Inputs, hooked
from hscc_search.compression.form import Fold
from hscc_search.compression.stand_ins import adds_to, copied
from hscc_search.errors import CompressionError


@torch.no_grad()
def fold_batch_norms(
    network: nn.Module, image: torch.Tensor, before: Answers | None = None
) -> tuple[nn.Module, tuple[Fold, ...]]:
    """Fold each batch norm that is the only reader of a layer's output.

    These are BatchNorm2d after Conv2d, also grouped or depthwise, and BatchNorm1d after Linear, each registered under
    one name and called once per pass. Left as they are: a batch norm without running statistics, one that insists on
    training mode, and one whose folded weights would not be finite. Folds that change the network's outputs are undone.
    Nothing is folded where the outputs are not finite.

    Args:
        network: any network that returns tensors; it is not changed.
        image: as the network takes them, float32 (1, 3, height, width), on its device.
        before: answers that the folded network must give; by default those of the network to varied images.

    Returns:
        A copy in evaluation mode, and its folds in execution order, for :func:`apply_folds`.
    """
    result = copied(network)
    before = before or Answers(network, image)
    if not before.finite:
        return result, ()
    folds = [fold for fold in _find_folds(result, image) if _is_finite(_absorbed(*_modules(result, fold)))]
    harmless = _absorb_harmless(result, folds, before)
    return result.eval(), tuple(harmless)


def apply_folds(network: nn.Module, folds: Iterable[Fold]) -> None:
    """Give a newly built network the modules of a folded one, in place, so that its weights can be loaded by name.

    Args:
        network: of the architecture that was folded, before folding.
        folds: from :func:`fold_batch_norms`.

    Raises:
        CompressionError: a fold names no convolution or no batch norm of this network.
    """
    for fold in folds:
        try:
            layer, norm = _modules(network, fold)
        except AttributeError:
            layer = norm = None
        if not _match(layer, norm):
            raise CompressionError(f"no convolution {fold.convolution} with a batch norm {fold.batch_norm} to fold")
        network.set_submodule(fold.convolution, _with_bias(layer))
        network.set_submodule(fold.batch_norm, _remainder(norm))


@torch.no_grad()
def absorb(network: nn.Module, folds: Iterable[Fold]) -> None:
    """Fold in place the pairs that :func:`fold_batch_norms` has folded in a network with the same weights."""
    for fold in folds:
        layer, norm = _modules(network, fold)
        network.set_submodule(fold.convolution, _absorbed(layer, norm))
        network.set_submodule(fold.batch_norm, _remainder(norm))


def _absorb_harmless(network: nn.Module, folds: list[Fold], before: Answers) -> list[Fold]:
    """Fold in place all pairs whose folding leaves the outputs as they are, and return these.

    Folds that change the outputs are few, so they are searched by halving the list.
    """
    if not folds:
        return []
    modules = [_modules(network, fold) for fold in folds]
    absorb(network, folds)
    if before.holds(network):
        return folds
    for fold, (layer, norm) in zip(folds, modules, strict=True):
        network.set_submodule(fold.convolution, layer)
        network.set_submodule(fold.batch_norm, norm)
    if _same_in_double(network, folds, before):
        absorb(network, folds)
        return folds
    if len(folds) == 1:
        return []
    middle = len(folds) // 2
    first = _absorb_harmless(network, folds[:middle], before)
    return first + _absorb_harmless(network, folds[middle:], before)


def _same_in_double(network: nn.Module, folds: list[Fold], before: Answers) -> bool:
    """Tell whether folding changes nothing but the rounding of weights, which may show where answers hardly vary."""
    unfolded = copied(network).double()
    folded = copied(unfolded)
    absorb(folded, folds)
    return before.same_in_double(unfolded, folded)


@dataclass
class _Output:
    """The output of a layer.

    Attributes:
        layer: its path.
        value: held, so that no other tensor gets the same id.
        readers: the batch norms that read it, by path; None for anything else that reads it.
    """

    layer: str
    value: torch.Tensor
    readers: set[str | None] = field(default_factory=set)


class _Readers(TorchDispatchMode):
    """Records during one pass which operations read the outputs of layers.

    Attributes:
        outputs: of the layers, by the id of the tensor.
        norm_inputs: the id of the tensor that each batch norm was given last, in execution order.
        calls: of each layer and batch norm.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: dict[int, _Output] = {}
        self.norm_inputs: dict[str, int] = {}
        self.calls: Counter[str] = Counter()
        self._running: str | None = None  # the batch norm that runs now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if id(value) in self.outputs:
                self.outputs[id(value)].readers.add(self._running)
        return func(*args, **(kwargs or {}))

    def after_layer(self, name: str, inputs: Inputs, output: torch.Tensor) -> None:
        """Record the output of a layer."""
        self.calls[name] += 1
        self.outputs[id(output)] = _Output(name, output)

    def before_norm(self, name: str, inputs: Inputs) -> None:
        """Record the input of a batch norm, which reads it until it has run."""
        self.calls[name] += 1
        self.norm_inputs[name] = id(inputs[0]) if inputs else 0
        self._running = name

    def after_norm(self, name: str, inputs: Inputs, output: torch.Tensor) -> None:
        """Record that the batch norm has run."""
        self._running = None

    def pairs(self) -> list[tuple[_Output, str]]:
        """Outputs that a batch norm alone reads, with that batch norm, in execution order."""
        pairs = []
        for norm, tensor in self.norm_inputs.items():
            output = self.outputs.get(tensor)
            if output is not None and output.readers == {norm}:
                pairs.append((output, norm))
        return pairs


def _find_folds(network: nn.Module, image: torch.Tensor) -> list[Fold]:
    """Find the batch norms that can be folded, in execution order, in one pass over one image (1, 3, height, width)."""
    modules = dict(network.named_modules())
    layers = {name: module for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear))}
    norms = {name: module for name, module in modules.items() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))}
    readers = _Readers()
    watching_layers = hooked(layers, after=readers.after_layer)
    watching_norms = hooked(norms, before=readers.before_norm, after=readers.after_norm)
    with watching_layers, watching_norms, readers:
        network(image.clone())
    registered = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    folds = []
    for output, norm_name in readers.pairs():
        layer, norm = layers[output.layer], norms[norm_name]
        called_once = readers.calls[output.layer] == readers.calls[norm_name] == 1
        one_name = registered[id(layer)] == registered[id(norm)] == 1
        # Of an output (images, positions, features) of a linear layer, a batch norm takes the positions as channels.
        per_channel = isinstance(layer, nn.Conv2d) or output.value.dim() == 2
        if called_once and one_name and per_channel and _match(layer, norm) and _is_fixed(norm):
            folds.append(Fold(output.layer, norm_name))
    return folds


def _is_fixed(norm: Any) -> bool:
    """Tell whether a batch norm is the same affine map for every image, and nothing else."""
    own_hooks = norm._forward_hooks or norm._forward_pre_hooks
    plain = not adds_to(norm, nn.BatchNorm1d, nn.BatchNorm2d) or type(norm).__module__.startswith("timm.layers.")
    return norm.running_mean is not None and not norm.training and plain and not own_hooks


def _match(layer: Any, norm: Any) -> bool:
    """Tell whether the batch norm is of the kind that takes the layer's output."""
    return (isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)) or (
        isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
    )


def _modules(network: nn.Module, fold: Fold) -> tuple[Any, Any]:
    return network.get_submodule(fold.convolution), network.get_submodule(fold.batch_norm)


def _with_bias(layer: Any) -> Any:
    """A copy of a layer that has a bias and parameters of its own."""
    result = copy.deepcopy(layer)
    if result.bias is None:
        result.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    return result


def _absorbed(layer: Any, norm: Any) -> Any:
    """The layer with the affine part of its batch norm in its weights and bias."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()  # in double, since a dead channel's scale is large
    if norm.affine:
        scale = scale * norm.weight
    result = _with_bias(layer)
    bias = (result.bias - norm.running_mean.double()) * scale
    result.weight.copy_(layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    result.bias.copy_(bias + norm.bias if norm.affine else bias)
    return result


def _remainder(norm: Any) -> nn.Module:
    """A batch norm without its affine part. Those of timm have dropout and an activation inside."""
    activation, dropout = getattr(norm, "act", None), getattr(norm, "drop", None)
    if not isinstance(activation, nn.Module):
        return nn.Identity()
    return activation if dropout is None or isinstance(dropout, nn.Identity) else nn.Sequential(dropout, activation)


def _is_finite(layer: Any) -> bool:
    return bool(layer.weight.isfinite().all() and layer.bias.isfinite().all())
