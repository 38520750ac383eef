"""Read weights from files and write them, load them into a network, and identify them."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hscc_search.dense.checkpoint_names import Fitted, fit
from hscc_search.dense.trainable import of_numbers
from hscc_search.errors import ModelError, one_line, quoted

# Keys under which programs keep the state dict of a network beside other things, the likeliest first. An average of
# the weights is taken only where there is nothing else, since it may be one of a few steps.
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params"),
    *("ema", "ema_state_dict", "model_ema", "state_dict_ema", "params_ema"),
)
# Wrappers within wrappers that are looked into.
_DEEPEST = 8
# Bytes up to which a tensor may take more memory than what is stored of it, as one that was expanded does.
_MOST_REPEATED = 1 << 30
# Metadata of the safetensors files that are written here: a digest of all tensors, by which damage is noticed. Beside
# it stands, as in `safetensors.torch.save_model`, each name that was left out, with the name of the same tensor.
_DIGEST = "hscc_sha256"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights from a file.

    Attributes:
        tensors: by name, on the CPU.
        remarks: what was left aside to get at them, each a few words.
    """

    tensors: dict[str, torch.Tensor]
    remarks: tuple[str, ...] = ()


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Read a safetensors file or a pickled state dict, alone or among other plain values, executing nothing.

    Args:
        path: of the file.
        key: of the weights in it, or what their names begin with; None takes the likeliest.

    Raises:
        ModelError: the file is missing or damaged, holds no named tensors or objects of other kinds, or a value in it
            is not finite.
    """
    if not path.is_file():
        raise ModelError(f"no checkpoint at {path}: give a safetensors file or a saved state dict")
    try:
        if path.suffix == ".safetensors":
            content: Any = _read_safetensors(path)
        else:
            content = _read_pickled(path)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"checkpoint {path} is not a plain state dict, and nothing else is unpickled: "
            "save it with torch.save(model.state_dict(), path) or as safetensors"
        ) from error
    except Exception as error:  # a damaged file makes the readers raise nearly anything
        raise ModelError(
            f"checkpoint {path} is damaged or of another format: {one_line(error, with_type=True)}"
        ) from error
    checkpoint = _unwrapped(content if key is None else _below(content, key, path), path)
    check_values(checkpoint.tensors, f"checkpoint {path}")
    return checkpoint


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read named tensors, those too that were written once under several names.

    Raises:
        ValueError: the file was written here, and is not what was written.
    """
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    digest = metadata.pop(_DIGEST, None)
    state |= {name: state[kept] for name, kept in metadata.items() if name not in state and kept in state}
    if digest not in (None, tensors_digest(state)):
        raise ValueError("its content has changed since it was written")
    return state


def _below(content: Any, key: str, path: Path) -> Any:
    """The weights that a study names.

    Raises:
        ModelError: there are none of that key.
    """
    inner, parts = content, [key] if isinstance(content, dict) and key in content else key.split(".")
    for part in parts:
        inner = inner.get(part) if isinstance(inner, dict) else None
    if isinstance(inner, dict):
        return inner
    names = _unwrapped(content, path).tensors
    beginning = f"{key.rstrip('.')}."
    chosen = {name.removeprefix(beginning): value for name, value in names.items() if name.startswith(beginning)}
    if not chosen:
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise ModelError(f"checkpoint {path} has no weights under model.checkpoint_key {quoted(key)}: it holds {keys}")
    return chosen


def _read_pickled(path: Path) -> Any:
    """Read what torch.save wrote, executing nothing.

    Raises:
        ValueError: a part is not what was written; torch compares no checksums.
        Exception: it was not written by torch.save, whatever that makes the reader raise.
    """
    if zipfile.is_zipfile(path):  # files of torch before 1.6 are none, and have no checksums
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise ValueError(f"its content has changed since it was written ({damaged})")
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(content: Any, path: Path) -> Checkpoint:
    """Find the named tensors in what a file holds."""
    remarks: list[str] = []
    for _ in range(_DEEPEST):  # a pickle may hold itself
        if not isinstance(content, dict) or _is_state(content):
            break
        inner = [key for key, value in content.items() if _is_state(value)]
        inner += [key for key, value in content.items() if key in _WRAPPERS and key not in inner and _has_state(value)]
        known = [key for key in _WRAPPERS if key in inner] or (inner if len(inner) == 1 else [])
        if not known:
            break
        others = [repr(key) for key in inner if key != known[0]]
        remarks.append(f"took {known[0]!r}" + (f" and not {', '.join(others)}" if others else ""))
        content = content[known[0]]
    if not isinstance(content, dict) or not _is_state(content):
        holds = (
            f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
        )
        raise ModelError(
            f"checkpoint {path} holds more or other than named tensors ({holds}): "
            "save the network alone with torch.save(model.state_dict(), path)"
        )
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    ignored = [repr(key) for key in content if key not in tensors]
    if ignored:
        remarks.append(f"ignored {', '.join(ignored[:3])}{' and more' if len(ignored) > 3 else ''}")
    return Checkpoint(tensors, tuple(remarks))


def _is_state(value: Any) -> bool:
    """Tell whether a value is a state dict: named tensors, perhaps with a few plain values among them."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return False
    kinds = [isinstance(entry, torch.Tensor) for entry in value.values()]
    plain = all(entry is None or isinstance(entry, (torch.Tensor, int, float, str)) for entry in value.values())
    return any(kinds) and plain


def _has_state(value: Any) -> bool:
    """Tell whether a value is a state dict, or holds one in a few wrappers."""
    level = [value]
    for _ in range(_DEEPEST):
        if any(map(_is_state, level)):
            return True
        inner = [outer.get(key) for outer in level if isinstance(outer, dict) for key in _WRAPPERS]
        level = list({id(value): value for value in inner}.values())
    return False


def learnt(network: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a network and the statistics of its batch norms, by name: what training has made."""
    statistics = {
        name: value for name, value in network.named_buffers() if name.endswith(("running_mean", "running_var"))
    }
    return {**dict(network.named_parameters()), **statistics}


def check_values(tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Check that tensors hold plain, finite values.

    Raises:
        ModelError: one does not; the error begins with ``origin`` and names it.
    """
    for name, value in tensors.items():
        if value.is_nested or value.is_meta or value.is_quantized or value.layout != torch.strided:
            kinds = {"nested": value.is_nested, "meta": value.is_meta, "quantised": value.is_quantized, "sparse": True}
            kind = next(kind for kind, holds in kinds.items() if holds)
            raise ModelError(f"{origin} holds a {kind} tensor ({name}): save plain float32 weights")
        if max(value.untyped_storage().nbytes(), _MOST_REPEATED) < value.numel() * value.itemsize:
            raise ModelError(f"{origin} holds a tensor that repeats a few values {value.numel():,} times ({name})")
        if not all_finite(value.detach()):
            raise ModelError(f"{origin} holds values that are not finite ({name}): train it again or use another one")


def all_finite(value: torch.Tensor) -> bool:
    """Tell whether all values are finite. The sum takes a tenth of the time, and is finite only if they are."""
    if not of_numbers(value):
        return True
    # Narrow types of 8 bits have no `isfinite` of their own.
    wide = value.float() if value.is_floating_point() and value.itemsize < 4 else value
    return bool(torch.isfinite(wide.sum())) or bool(torch.isfinite(wide).all())


def load_weights(network: nn.Module, state: Mapping[str, torch.Tensor], origin: str) -> tuple[str, ...]:
    """Put weights into a network, all of them or none, also where wrappers have changed their names.

    Args:
        network: changed in place.
        state: tensors by name.
        origin: of the weights, as the error names it.

    Returns:
        What was done to names and values to make them fit, each a few words.

    Raises:
        ModelError: names or shapes differ; the error names the first differences.
    """
    fitted: Fitted = fit(state, network.state_dict())
    if fitted.problems:
        first_problems = "; ".join(sorted(fitted.problems)[:2])
        more = f" and {len(fitted.problems) - 2} more" if len(fitted.problems) > 2 else ""
        where = f" ({fitted.near})" if fitted.near else ""
        raise ModelError(
            f"{origin} is of another architecture than {type(network).__name__}: {first_problems}{more}{where}"
        )
    network.load_state_dict(fitted.state)
    return fitted.remarks


def load_checkpoint(network: nn.Module, path: Path, key: str | None = None) -> str | None:
    """Read a checkpoint into a network.

    Args:
        network: changed in place.
        path: of the checkpoint.
        key: as for :func:`read_checkpoint`.

    Returns:
        A line on what was left aside, stripped and converted; None where nothing was.

    Raises:
        ModelError: as :func:`read_checkpoint` and :func:`load_weights`.
    """
    checkpoint = read_checkpoint(path, key)
    remarks = (*checkpoint.remarks, *load_weights(network, checkpoint.tensors, f"checkpoint {path}"))
    return f"checkpoint {path}: {', '.join(remarks)}" if remarks else None


def save_weights(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write named tensors as safetensors; a tensor that has several names, as tied weights do, is written once.

    Raises:
        OSError, SafetensorError: the file cannot be written.
    """
    kept: dict[str, torch.Tensor] = {}
    left_out: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, value in state.items():
        storage = value.untyped_storage().data_ptr()
        key = (storage, value.device, value.storage_offset(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in names:
            left_out[name] = names[key]
            continue
        names[key] = name
        # A copy of its own: tensors may be views of one storage that overlap, which safetensors refuses.
        kept[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    save_file(kept, path, metadata={**left_out, _DIGEST: tensors_digest(state)})


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names, types and values of all weights and buffers, in hexadecimal."""
    return tensors_digest(network.state_dict())


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, in hexadecimal."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
