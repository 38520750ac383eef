"""Build a compressed network again. This needs nothing that learns regions or chooses ranks."""

from torch import nn

from hscc_search.compression.calibration.batch_norm import apply_folds
from hscc_search.compression.form import NetworkForm
from hscc_search.compression.layers import build
from hscc_search.compression.stand_ins import replaced


def rebuild(network: nn.Module, form: NetworkForm) -> nn.Module:
    """Copy a dense network in the form of a compressed one; its weights are then loaded by name.

    Args:
        network: of the architecture that was compressed; its batch norms are folded in place.
        form: of the compressed network.

    Raises:
        CompressionError: a batch norm that was folded is not in the network.
    """
    apply_folds(network, form.folds)
    return replaced(network, {name: build(network.get_submodule(name), layer) for name, layer in form.layers.items()})
