"""Train the dense network, once: the user's cache folder holds finished weights and the state after each epoch."""

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from hscc_search.config import StudyConfig
from hscc_search.data import Parts
from hscc_search.dense.epochs import Descent, label_loss, run_epoch, start_descent
from hscc_search.dense.weights import save_weights
from hscc_search.errors import DiskFullError, UnwritableError, one_line
from hscc_search.evaluation.predictions import predict
from hscc_search.files import check_room, check_writable, written_whole
from hscc_search.progress import Notice, Progress, Report, silent

# Largest share of the time that goes into writing the state of an unfinished training.
_WRITING_SHARE = 0.05
# Suffix of the file of an unfinished training, beside the weights that it is to make.
_UNFINISHED = ".unfinished"
# Bytes of the digest that ends the file of an unfinished training.
_DIGEST_SIZE = hashlib.sha256().digest_size


def train(
    network: nn.Module,
    config: StudyConfig,
    parts: Parts,
    path: Path | None,
    device: torch.device,
    report: Report = silent,
) -> None:
    """Train on the train part and write the weights to ``path``, continuing after the last epoch that was written.

    The state is written after each epoch, or less often where that would take more than a twentieth of the time, as
    on a GPU; where it would leave no room for the weights, it is not, and that is said. Where it is damaged, the
    training begins anew, which gives the same weights.

    Args:
        network: changed in place, left in evaluation mode.
        config: of the study.
        parts: train part to learn from, validation part to report on.
        path: of the safetensors file; the unfinished state lies beside it. None keeps nothing.
        device: where to train.
        report: told after each epoch.

    Raises:
        ModelError: the training diverged.
        UnwritableError: the weights, or the state after an epoch, cannot be written.
        DiskFullError: there is no room for the weights; what the last state holds is not lost.
    """
    training = config.training
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    unfinished = _place_of_state(network, path) if path is not None else None

    def begin() -> Descent:
        return start_descent(network, config, parts.train, training.learning_rate, training.epochs, device)

    descent, finished_epochs = _resume(begin, unfinished, device, report)
    last_written, writing_seconds = time.monotonic(), 0.0
    for epoch in range(finished_epochs, training.epochs):
        loss = run_epoch(descent, epoch, label_loss(config))
        start = time.monotonic()
        if unfinished is not None and (start - last_written) * _WRITING_SHARE >= writing_seconds:
            unfinished = _keep_state(descent, epoch + 1, unfinished, report)
            last_written = time.monotonic()
            writing_seconds = last_written - start
        right = predict(network, parts.validation, config.data, device).argmax(1) == parts.validation.labels
        note = f"loss {loss:.3f}, validation accuracy {right.mean():.3f}"
        report(Progress("training the dense network", epoch + 1, training.epochs, note))
    # As weights from the cache lie in memory: sums in another order round differently, and would be calibrated again.
    network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if path is not None:
        _write_weights(network, path)


def _resume(
    begin: Callable[[], Descent], unfinished: Path | None, device: torch.device, report: Report
) -> tuple[Descent, int]:
    """Begin the training, or continue it where its state was written; also give the number of finished epochs."""
    descent = begin()
    if unfinished is None or not unfinished.exists():
        return descent, 0
    initial = {name: value.clone() for name, value in descent.network.state_dict().items()}
    try:
        return descent, _restore(descent, unfinished, device)
    except Exception as error:  # a damaged file makes the reader raise nearly anything
        reason = one_line(error, with_type=True)
        report(Notice(f"training: begins anew, since the unfinished one in {unfinished} is damaged ({reason})"))
        descent.network.load_state_dict(initial)
        return begin(), 0


def _restore(descent: Descent, path: Path, device: torch.device) -> int:
    """Read what :func:`_write_state` wrote, and return the number of finished epochs.

    Raises:
        ValueError: the file is not what was written.
        Exception: it was written by another version of torch, whatever that makes its readers raise.
    """
    content = path.read_bytes()
    content, digest = content[:-_DIGEST_SIZE], content[-_DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its content has changed since it was written")
    state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    descent.network.load_state_dict(state["network"])
    descent.optimizer.load_state_dict(state["optimizer"])
    descent.schedule.load_state_dict(state["schedule"])
    return int(state["epochs"])


def _size(network: nn.Module) -> int:
    """Bytes of the weights of a network, shared ones once."""
    storages = [value.untyped_storage() for value in network.state_dict().values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _place_of_state(network: nn.Module, path: Path) -> Path:
    """The path of the unfinished state beside weights, for which the disk is checked to have room."""
    check_writable(path.parent, path)
    check_room(path.parent, _size(network), f"the weights {path}")
    return path.with_suffix(_UNFINISHED)


def _keep_state(descent: Descent, epochs: int, path: Path, report: Report) -> Path | None:
    """Write the state of an unfinished training where it leaves room for the weights; else say so, and give None."""
    try:
        # The optimiser keeps one momentum for each weight.
        check_room(path.parent, 3 * _size(descent.network), "the state beside the weights")
        _write_state(descent, epochs, path)
    except DiskFullError as error:
        report(Notice(f"training: goes on without keeping its state after each epoch: {error}"))
        return None
    return path


def _write_state(descent: Descent, epochs: int, path: Path) -> None:
    """Write all that a training needs to go on, and a digest behind it."""
    state = {
        "network": descent.network.state_dict(),
        "optimizer": descent.optimizer.state_dict(),
        "schedule": descent.schedule.state_dict(),
        "epochs": epochs,
    }
    with _written(path) as temporary:
        torch.save(state, temporary)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        with temporary.open("ab") as file:
            file.write(digest)


def _write_weights(network: nn.Module, path: Path) -> None:
    """Write the weights, and remove the unfinished state, which they replace."""
    with _written(path) as temporary:
        save_weights(network.state_dict(), temporary)
    with suppress(OSError):
        path.with_suffix(_UNFINISHED).unlink(missing_ok=True)


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Write a file of the cache whole; the errors of torch and of safetensors, too, end in one line."""
    try:
        with written_whole(path) as temporary:
            yield temporary
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UnwritableError(
            f"cannot write to {path} ({one_line(error)}): set HSCC_CACHE to another folder"
        ) from error
