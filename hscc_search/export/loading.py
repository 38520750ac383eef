"""Load an exported folder as a torch module. Needs neither the search nor what learns regions, clusters and factors."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from hscc_search.compression.rebuild import rebuild
from hscc_search.compression.stand_ins import copied
from hscc_search.dense.networks import construct
from hscc_search.dense.output import picking
from hscc_search.dense.weights import load_weights, read_checkpoint
from hscc_search.errors import ExportError, HsccError, one_line, quoted
from hscc_search.export.folder import ARCHITECTURE, WEIGHTS, Architecture, read_architecture
from hscc_search.export.manifest import check_digests
from hscc_search.export.sizes import check_form, check_module, stored_shapes
from hscc_search.runtime.deployed import Deployed


def load(folder: str | Path, network: nn.Module | None = None, trust: bool = False) -> Deployed:
    """Load an exported folder as a torch module in evaluation mode.

    Nothing of the folder is executed, and no more memory is taken than its weights file is large and the dense network
    that it names takes.

    Args:
        folder: that ``hscc-search export`` or a study in Python has written.
        network: of the architecture that was compressed; None builds it by its name. One that was in memory where its
            study was searched must be given. It is not changed.
        trust: whether functions of the user's own that the folder names, ``package.module:function``, are imported:
            the network's, and the one that picks its scores.

    Returns:
        A module that takes float32 images with values 0 to 1, shape (images, channels, height, width), and
        returns scores before softmax, shape (images, classes), or (images, classes, height, width) for maps.

    Raises:
        ExportError: the folder is not an export, has a format that this version does not read, names functions that
            are not trusted or sizes that its weights do not have, or a file in it was changed or damaged.
        ModelError: the network that it was compressed from cannot be built.
    """
    folder = Path(folder)
    check_digests(folder, (ARCHITECTURE, WEIGHTS))
    return build_module(folder, network, trust)


def build_module(folder: Path, network: nn.Module | None = None, trust: bool = False) -> Deployed:
    """Build the torch module of an exported folder without checking its digests; else as :func:`load`."""
    architecture = read_architecture(folder)
    if not trust:
        _check_trusted(folder, architecture, network is not None)
    shapes = stored_shapes(folder / WEIGHTS)
    try:
        check_form(architecture.form, shapes)
        if network is None and not names_own_code(architecture):
            check_module(_empty(architecture), shapes)
        module = _built(architecture, network)
    except HsccError:
        raise
    except Exception as error:  # whatever a form that was made up leads to
        raise ExportError(f"{folder} cannot be loaded: {one_line(error, with_type=True)}") from error
    load_weights(module, read_checkpoint(folder / WEIGHTS).tensors, f"{folder / WEIGHTS}")
    return module.eval()


def names_own_code(architecture: Architecture) -> list[str]:
    """The functions of the user's own that a folder names, and that loading it imports."""
    model = [architecture.model] if ":" in architecture.model else []
    return model if architecture.output is None else [*model, architecture.output]


def _check_trusted(folder: Path, architecture: Architecture, given: bool) -> None:
    """Check that a folder names no function that would be imported.

    Raises:
        ExportError: it does.
    """
    for name in names_own_code(architecture):
        if given and name == architecture.model:
            continue
        raise ExportError(
            f"{folder} names {quoted(name)}, a function of somebody's own, and to load it is to run it: say trust=True "
            "(on the command line --trust) if you trust the folder, or give load() the network"
        )


def _empty(architecture: Architecture) -> nn.Module:
    """The module with shapes alone, which take no memory."""
    try:
        with torch.device("meta"):
            return _built(architecture)
    except HsccError:
        raise
    except Exception:  # torchvision's RegNet computes while it is built: it rounds its widths by torch
        with _empty_parameters():
            return _built(architecture)


@contextmanager
def _empty_parameters() -> Iterator[None]:
    """Let each module that this thread builds forget the values of its parameters as soon as it is given one."""
    thread = threading.get_ident()

    def forget(_: nn.Module, __: str, value: nn.Parameter | None) -> nn.Parameter | None:
        if value is None or threading.get_ident() != thread:
            return None  # which leaves it as it is
        return nn.Parameter(value.detach().to("meta"), value.requires_grad)

    hook = register_module_parameter_registration_hook(forget)  # type: ignore[arg-type]  # it may return a parameter
    try:
        yield
    finally:
        hook.remove()


def _built(architecture: Architecture, network: nn.Module | None = None) -> Deployed:
    pictures = architecture.pictures
    if network is None:
        classes = len(architecture.classes)
        network = construct(architecture.model, classes, pictures.shape, output=architecture.output).eval()
    elif architecture.output is not None:
        network = picking(copied(network), architecture.output)
    network = rebuild(network, architecture.form)
    return Deployed(network, architecture.mean, architecture.std, pictures.shape)
