"""Batch normalisation folded into the layer before it.

In evaluation mode a batch norm is a fixed affine map per channel, ``z = s (y - mean) + beta`` with
``s = gamma / sqrt(variance + eps)``. After ``y = W x + b`` the weights absorb it: ``z = (s W) x + s (b - mean) + beta``
(Jacob et al. 2018, arXiv 1712.05877, section 3.2). The pairs are found by running the network and not by tracing it,
since many networks cannot be traced.
"""

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hscc_search.compression.form import Fold
from hscc_search.errors import CompressionError

# Difference of the outputs that rounding may explain, relative to the outputs.
_TOLERANCE = 1e-4


@torch.no_grad()
def fold_batch_norms(network: nn.Module, image: torch.Tensor) -> tuple[nn.Module, tuple[Fold, ...]]:
    """Fold each batch norm that is all that reads what a convolution answers.

    These are BatchNorm2d after Conv2d, grouped and depthwise ones as well, and BatchNorm1d after Linear, each
    registered under one name and called once per pass. Left alone is a batch norm without running statistics, one that
    insists on training mode, and one whose folded weights would not be finite. Folds after which the network answers
    otherwise are undone. All are, if it answers with values that are not finite.

    Args:
        network: any network that returns tensors; it is not changed.
        image: as the network takes them, float32 (1, 3, height, width), on its device.

    Returns:
        A copy in evaluation mode, and its folds in execution order, see :func:`apply_folds`.
    """
    result = copy.deepcopy(network).eval()
    # Near the images that the statistics were made from: far from them rounding alone may change an answer.
    inputs = [image, image.flip(-1), -image]
    expected = [_outputs(result, x) for x in inputs]
    if not all(value.isfinite().all() for values in expected for value in values):
        return result, ()
    folds = [fold for fold in _find(result, image) if _is_finite(_absorbed(*_modules(result, fold)))]
    kept = _keep(result, folds, inputs, expected)
    return result.eval(), tuple(kept)


def apply_folds(network: nn.Module, folds: Iterable[Fold]) -> None:
    """Give a freshly built network the form of a folded one, in place; the weights are then loaded by name.

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
        if not _fit(layer, norm):
            raise CompressionError(f"no convolution {fold.convolution} with a batch norm {fold.batch_norm} to fold")
        network.set_submodule(fold.convolution, _with_bias(layer))
        network.set_submodule(fold.batch_norm, _remainder(norm))


@torch.no_grad()
def absorb(network: nn.Module, folds: Iterable[Fold]) -> None:
    """Fold in place what :func:`fold_batch_norms` has found in a network with the same weights."""
    for fold in folds:
        layer, norm = _modules(network, fold)
        network.set_submodule(fold.convolution, _absorbed(layer, norm))
        network.set_submodule(fold.batch_norm, _remainder(norm))


def _keep(
    network: nn.Module, folds: list[Fold], inputs: list[torch.Tensor], expected: list[list[torch.Tensor]]
) -> list[Fold]:
    """Fold in place what leaves the outputs alone. By halves, since culprits are few if there are any."""
    if not folds:
        return []
    before = [_modules(network, fold) for fold in folds]
    absorb(network, folds)
    if _agrees(network, inputs, expected):
        return folds
    for fold, (layer, norm) in zip(folds, before, strict=True):
        network.set_submodule(fold.convolution, layer)
        network.set_submodule(fold.batch_norm, norm)
    if len(folds) == 1:
        return []
    middle = len(folds) // 2
    return [kept for half in (folds[:middle], folds[middle:]) for kept in _keep(network, half, inputs, expected)]


class _Readers(TorchDispatchMode):
    """Notes which batch norm reads the answer of which layer; None stands for everything else that reads one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.answers: dict[int, torch.Tensor] = {}  # kept, so that no other tensor gets the same id
        self.read_by: dict[int, set[str | None]] = {}
        self.running: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if id(value) in self.answers:
                self.read_by[id(value)].add(self.running)
        return func(*args, **(kwargs or {}))


def _find(network: nn.Module, image: torch.Tensor) -> list[Fold]:
    """The pairs in execution order, from one pass over one image (1, 3, height, width)."""
    readers = _Readers()
    calls: Counter[str] = Counter()
    answered: dict[int, str] = {}
    taken: dict[str, int] = {}

    def answer(name: str, output: torch.Tensor) -> None:
        calls[name] += 1
        answered[id(output)] = name
        readers.answers[id(output)], readers.read_by[id(output)] = output, set()

    def enter(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        calls[name] += 1
        readers.running = name
        taken[name] = id(inputs[0]) if inputs else 0

    def leave() -> None:
        readers.running = None

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: answer(name, output)))
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: enter(name, inputs)))
            hooks.append(module.register_forward_hook(lambda *_: leave()))
    try:
        with readers:
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    registered = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    folds = []
    for norm_name, read in taken.items():
        if readers.read_by.get(read) != {norm_name}:
            continue
        fold = Fold(answered[read], norm_name)
        layer, norm = _modules(network, fold)
        once = calls[fold.convolution] == calls[norm_name] == registered[id(layer)] == registered[id(norm)] == 1
        # A linear layer may answer (images, positions, features), of which a batch norm takes positions as channels.
        per_channel = isinstance(layer, nn.Conv2d) or readers.answers[read].dim() == 2
        if once and per_channel and _fit(layer, norm) and norm.running_mean is not None and not norm.training:
            folds.append(fold)
    return folds


def _fit(layer: Any, norm: Any) -> bool:
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
    """The layer that answers as the layer and the affine part of its batch norm together do."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()  # in double, since a dead channel's scale is large
    if norm.affine:
        scale = scale * norm.weight
    result = _with_bias(layer)
    bias = (result.bias - norm.running_mean.double()) * scale
    result.weight.copy_(layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    result.bias.copy_(bias + norm.bias if norm.affine else bias)
    return result


def _remainder(norm: Any) -> nn.Module:
    """What is left of a batch norm without its affine part: timm's has dropout and an activation inside."""
    act, drop = getattr(norm, "act", None), getattr(norm, "drop", None)
    if not isinstance(act, nn.Module):
        return nn.Identity()
    return act if drop is None or isinstance(drop, nn.Identity) else nn.Sequential(drop, act)


def _is_finite(layer: Any) -> bool:
    return bool(layer.weight.isfinite().all() and layer.bias.isfinite().all())


def _outputs(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return [value.double() for value in tree_leaves(network(x)) if isinstance(value, torch.Tensor)]


def _agrees(network: nn.Module, inputs: list[torch.Tensor], expected: list[list[torch.Tensor]]) -> bool:
    try:
        found = [_outputs(network, x) for x in inputs]
    except Exception:  # a network may ask a batch norm for what its remainder lacks, and raise anything
        return False
    return all(
        len(ours) == len(theirs)
        and all(
            one.shape == other.shape and bool((one - other).norm() <= _TOLERANCE * other.norm())
            for one, other in zip(ours, theirs, strict=True)
        )
        for ours, theirs in zip(found, expected, strict=True)
    )
