"""Load an exported folder as a torch module. Needs neither the search nor what learns regions, clusters and factors."""

from pathlib import Path

from torch import nn

from hscc_search.compression.rebuild import rebuild
from hscc_search.compression.stand_ins import copied
from hscc_search.dense.networks import build_network
from hscc_search.dense.output import picking
from hscc_search.dense.weights import load_weights, read_checkpoint
from hscc_search.export.folder import ARCHITECTURE, WEIGHTS, read_architecture, read_manifest
from hscc_search.runtime.deployed import Deployed


def load(folder: str | Path, network: nn.Module | None = None) -> Deployed:
    """Load an exported folder as a torch module in evaluation mode.

    Args:
        folder: that ``hscc-search export`` or a study in Python has written.
        network: of the architecture that was compressed; None builds it by its name. One that was in memory where its
            study was searched must be given. It is not changed.

    Returns:
        A module that takes float32 images with values 0 to 1, shape (images, channels, height, width), and
        returns scores before softmax, shape (images, classes), or (images, classes, height, width) for maps.

    Raises:
        ExportError: the folder is not an export, has a format that this version does not read, or a file in it was
            changed or damaged.
        ModelError: the network that it was compressed from cannot be built.
    """
    folder = Path(folder)
    read_manifest(folder).check(folder, (ARCHITECTURE, WEIGHTS))
    return build_module(folder, network)


def build_module(folder: Path, network: nn.Module | None = None) -> Deployed:
    """Build the torch module of an exported folder without checking its digests.

    Raises:
        ExportError: the folder has a format that this version does not read.
        ModelError: the network that it was compressed from cannot be built.
    """
    architecture = read_architecture(folder)
    if network is None:
        network = build_network(
            architecture.model,
            len(architecture.classes),
            architecture.pictures.shape,
            output=architecture.output,
            maps=architecture.maps,
        )
    elif architecture.output is not None:
        network = picking(copied(network), architecture.output)
    network = rebuild(network, architecture.form)
    module = Deployed(network, architecture.mean, architecture.std, architecture.pictures.shape)
    load_weights(module, read_checkpoint(folder / WEIGHTS).tensors, f"{folder / WEIGHTS}")
    return module.eval()
