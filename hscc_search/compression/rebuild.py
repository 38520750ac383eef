"""Build a compressed network again. This needs nothing that learns regions or chooses ranks."""

from torch import nn

from hscc_search.compression.calibration.batch_norm import apply_folds
from hscc_search.compression.calibration.plain_layers import apply_plain
from hscc_search.compression.form import LayerForm, NetworkForm
from hscc_search.compression.layers import build
from hscc_search.compression.stand_ins import replaced
from hscc_search.errors import CompressionError


def rebuild(network: nn.Module, form: NetworkForm) -> nn.Module:
    """Copy a dense network in the form of a compressed one; its weights are then loaded by name.

    Args:
        network: of the architecture that was compressed; it is not changed.
        form: of the compressed network.

    Raises:
        CompressionError: a layer or batch norm of the form is not in the network, or does not have that form.
    """
    plain = apply_plain(network, form.plain)
    missing = [name for name in form.layers if name not in dict(plain.named_modules(remove_duplicate=False))]
    if missing:
        raise CompressionError(f"no layer {missing[0]} to compress in {type(network).__name__}")
    for name, layer in form.layers.items():
        _check(name, plain.get_submodule(name), layer)
    apply_folds(plain, form.folds)
    return replaced(plain, {name: build(plain.get_submodule(name), layer) for name, layer in form.layers.items()})


def _check(name: str, layer: nn.Module, form: LayerForm) -> None:
    """Check that a layer has as many groups as its form, and that one that is fully connected has one region."""
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        raise CompressionError(f"layer {name} is neither a convolution nor fully connected, and the form compresses it")
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    if len(form.ranks) != groups:
        raise CompressionError(f"layer {name} has {groups} groups of channels, and its form {len(form.ranks)}")
    if isinstance(layer, nn.Linear) and len(form.ranks[0]) != 1:
        raise CompressionError(f"layer {name} is fully connected, and its form has {len(form.ranks[0])} regions")
