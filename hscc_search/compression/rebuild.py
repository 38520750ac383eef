"""Build a compressed network again. This needs nothing that learns regions or chooses ranks."""

from torch import nn

from hscc_search.compression.calibration.batch_norm import apply_folds
from hscc_search.compression.form import NetworkForm
from hscc_search.compression.layers import build


def rebuild(network: nn.Module, form: NetworkForm) -> None:
    """Give a dense network the form of a compressed one, in place; the weights are then loaded by name.

    Args:
        network: of the architecture that was compressed.
        form: of the compressed network.

    Raises:
        CompressionError: a batch norm that was folded is not in the network.
    """
    apply_folds(network, form.folds)
    for name, layer_form in form.layers.items():
        network.set_submodule(name, build(network.get_submodule(name), layer_form))
