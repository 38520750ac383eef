"""Read weights from files, load them into a network and identify them."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from hscc_search.errors import ModelError, one_line
from hscc_search.files import written_whole

# Name of the digest in the metadata of trained weights.
_DIGEST = "weights"


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file or a pickled state dict, executing nothing.

    Raises:
        ModelError: the file is missing or damaged, or holds anything but named tensors.
    """
    if not path.is_file():
        raise ModelError(f"no checkpoint at {path}: give a safetensors file or a saved state dict")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"checkpoint {path} is not a plain state dict, and nothing else is unpickled: "
            "save it with torch.save(model.state_dict(), path) or as safetensors"
        ) from error
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        raise ModelError(
            f"checkpoint {path} is damaged or of another format: {one_line(error, with_type=True)}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        content = f"keys {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) else type(state).__name__
        raise ModelError(
            f"checkpoint {path} holds more than named tensors ({content}): "
            "save the network alone with torch.save(model.state_dict(), path)"
        )
    return state


def load_weights(network: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Put weights into a network, all of them or none.

    Args:
        network: changed in place.
        state: tensors by name.
        origin: of the weights, as the error names it.

    Raises:
        ModelError: names or shapes differ; the error names the first differences.
    """
    expected = network.state_dict()
    problems = [f"{key} is missing" for key in expected.keys() - state.keys()]
    problems += [f"{key} is unknown to the network" for key in state.keys() - expected.keys()]
    problems += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if expected[key].shape != state[key].shape
    ]
    if problems:
        first_problems = "; ".join(sorted(problems)[:2])
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise ModelError(f"{origin} is of another architecture than {type(network).__name__}: {first_problems}{more}")
    network.load_state_dict(state)


def write_trained(network: nn.Module, path: Path) -> None:
    """Write the weights of a network with their digest, for :func:`read_trained`.

    Raises:
        UnwritableError: ``path`` cannot be written.
        DiskFullError: there is no room.
    """
    state = network.state_dict()
    with written_whole(path) as temporary:
        save_file({key: value.contiguous() for key, value in state.items()}, temporary, {_DIGEST: state_digest(state)})


def read_trained(path: Path) -> dict[str, torch.Tensor] | None:
    """Read what :func:`write_trained` wrote; None where there is no such file, or a damaged one.

    Weights of version 0.1.0 have no digest, and are taken as they are.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError):
        return None
    return state if metadata is None or metadata.get(_DIGEST) == state_digest(state) else None


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names, types and values of all weights and buffers, in hexadecimal."""
    return state_digest(network.state_dict())


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """As :func:`weights_digest`, for tensors by name."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
