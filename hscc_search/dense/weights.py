"""Weights of networks: read from files, put into a network, identified."""

import hashlib
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from hscc_search.dense.networks import _one_line
from hscc_search.errors import ModelError


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file or a pickled state dict, executing nothing.

    Raises:
        ModelError: the file is missing or damaged, or holds anything but named tensors.
    """
    if not path.is_file():
        raise ModelError(f"no checkpoint at {path}: give a safetensors file or a saved state dict")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"checkpoint {path} is no plain state dict, and nothing else is unpickled: "
            "save it with torch.save(model.state_dict(), path) or as safetensors"
        ) from error
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        raise ModelError(f"checkpoint {path} is damaged or of another format: {_one_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = f"keys {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) else type(state).__name__
        raise ModelError(
            f"checkpoint {path} holds more than named tensors ({found}): "
            "save the network alone with torch.save(model.state_dict(), path)"
        )
    return state


def load_weights(network: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Put weights into a network, all or none.

    Raises:
        ModelError: names or shapes differ; the first differences are named.
    """
    own = network.state_dict()
    problems = [f"{key} is missing" for key in own.keys() - state.keys()]
    problems += [f"{key} is unknown to the network" for key in state.keys() - own.keys()]
    problems += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:2])
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise ModelError(f"{origin} is of another architecture than {type(network).__name__}: {shown}{more}")
    network.load_state_dict(state)


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names, types and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
