"""Give a dense network the form of a compressed one."""

from torch import nn

from hscc_search.compression.calibration.batch_norm import apply_folds
from hscc_search.compression.form import NetworkForm
from hscc_search.compression.layers import build


def rebuild(network: nn.Module, form: NetworkForm) -> None:
    """Give a dense network the form of a compressed one, in place; the weights are then loaded by name."""
    apply_folds(network, form.folds)
    for name, blueprint in form.layers.items():
        network.set_submodule(name, build(network.get_submodule(name), blueprint))
