"""What one pass of the dense network over calibration images leaves behind."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from hscc_search.compression.calibration.activation import activation_bounds
from hscc_search.compression.calibration.batch_norm import absorb, fold_batch_norms
from hscc_search.compression.calibration.eligible import _look
from hscc_search.compression.calibration.gather import _Keeper
from hscc_search.compression.calibration.record import LayerRecord
from hscc_search.compression.calibration.store import DAMAGE, Kept, key, read, write
from hscc_search.compression.form import Fold
from hscc_search.errors import CompressionError
from hscc_search.files import cache_folder, folder_written_whole, remove_abandoned, remove_unused, used
from hscc_search.progress import Progress, Report, silent

Found = TypeVar("Found")

# A calibration takes up to a gigabyte; one that nobody used for a month is made again when somebody does.
_KEPT_SECONDS = 30 * 86400


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration images and what the dense network answered to them.

    The responses of all layers together may be larger than the memory: they lie in files, in a folder that goes
    when this object does or is kept for others.

    Attributes:
        network: the dense network, its batch norms folded into the convolutions before them.
        folds: which ones were.
        images: as the network takes them, float32 (images, 3, height, width).
        records: the layers that can be compressed, in execution order.
        left_dense: every other convolution and fully connected layer: its multiply-adds per image and why.
        folder: of the records' files where it goes with this object, None where it is kept.
        memory: what was derived from all this so far, see :meth:`remember`.
    """

    network: nn.Module
    folds: tuple[Fold, ...]
    images: torch.Tensor
    records: tuple[LayerRecord, ...]
    left_dense: dict[str, tuple[int, str]]
    folder: "tempfile.TemporaryDirectory[str] | None" = None
    memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def record(self, name: str) -> LayerRecord:
        """The record of one layer."""
        return next(record for record in self.records if record.name == name)

    def remember(self, key: Hashable, derive: Callable[[], Found]) -> Found:
        """What ``derive`` gives, derived once: it must depend on this calibration and ``key`` alone."""
        if key not in self.memory:
            self.memory[key] = derive()
        found: Found = self.memory[key]
        return found

    @property
    def macs(self) -> int:
        """Multiply-adds per image of all convolutions and fully connected layers."""
        return sum(record.macs for record in self.records) + sum(macs for macs, _ in self.left_dense.values())


def calibrate(
    network: nn.Module,
    images: torch.Tensor,
    report: Report = silent,
    batch_size: int = 64,
    keep: bool = False,
) -> Calibration:
    """Run the dense network over calibration images, forwards and backwards, and keep its responses.

    The effect of a response is the root mean square of the gradient that it receives from the log-likelihood of a
    class drawn from the network's own prediction, which is the square root of its diagonal Fisher information: how
    strongly, to second order, an error there moves the prediction.

    Args:
        network: the dense network; it is not changed.
        images: as it takes them, float32 (images, 3, height, width).
        report: told after each batch.
        batch_size: images per batch.
        keep: whether to keep all of it in the user's cache and take it from there where it has been kept: then one
            process computes what all others on the machine read, and share in memory.

    Raises:
        CompressionError: a weight or a response is not finite, nothing can be compressed, or what was kept is damaged
            and cannot be made again.
        ConfigError: there is no cache folder.
    """
    if not keep:
        folder = tempfile.TemporaryDirectory(prefix="hscc-calibration-")
        folded, made = _pass(network, images, Path(folder.name), report, batch_size)
        return Calibration(folded, made.folds, images, made.records, made.left_dense, folder)
    cache = cache_folder("calibrations")
    final = cache / key(network, images, batch_size)
    found = _kept(final, network, images.device)
    if found is None:
        remove_abandoned(cache)
        remove_unused(cache, _KEPT_SECONDS)
        try:
            with folder_written_whole(final) as place:
                write(place, _pass(network, images, place, report, batch_size)[1])
        except OSError:
            # Another process was faster: what it has written is as good.
            if not final.is_dir():
                raise
        found = _kept(final, network, images.device)
    if found is None:
        raise CompressionError(f"what was just written to {final} cannot be read back: set HSCC_CACHE to a sound disk")
    return found


def _kept(folder: Path, network: nn.Module, device: torch.device) -> Calibration | None:
    """What a folder keeps of a network's calibration. None without a folder; a damaged one is removed."""
    try:
        kept = read(folder, device)
    except DAMAGE as damage:
        if folder.exists():
            try:
                # First out of the way of others, since removing takes its time; files that these have mapped stay.
                aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
                shutil.rmtree(folder.rename(aside), ignore_errors=True)
            except FileNotFoundError:
                pass  # another process removed it
            except OSError as error:
                raise CompressionError(
                    f"the calibration in {folder} is damaged ({damage}) and cannot be removed ({error.strerror})"
                ) from error
        return None
    used(folder)
    folded = copy.deepcopy(network).eval().requires_grad_(True)
    absorb(folded, kept.folds)
    return Calibration(folded, kept.folds, kept.images, kept.records, kept.left_dense)


def _pass(
    network: nn.Module, images: torch.Tensor, folder: Path, report: Report, batch_size: int
) -> tuple[nn.Module, Kept]:
    """The pass of :func:`calibrate`; the folded network, and all else with the responses in ``folder``."""
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise CompressionError(
                f"weights {name} of the dense network are not all finite: train it again or use another checkpoint"
            )
    network, folds = fold_batch_norms(network, images[:1])
    network.requires_grad_(False)  # the gradients of the responses are all that is needed
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    macs, reasons = _look(network, layers, images[:1])
    names = [name for name in macs if name not in reasons]
    if not names:
        raise CompressionError("the network has no convolution or fully connected layer that can be compressed")
    batches = images.split(batch_size)
    keepers = {name: _Keeper(name, layers[name], folder / f"{at}.npy", images) for at, name in enumerate(names)}
    generator = torch.Generator().manual_seed(0)
    done = 0
    for batch in batches:
        _run(network, batch, keepers, generator)
        done += len(batch)
        report(Progress("calibrating", done, len(images)))
    bounds = activation_bounds(network, {name: layers[name] for name in names}, images[:1])
    network.requires_grad_(True)
    records = tuple(keeper.record(macs[name], bounds.get(name)) for name, keeper in keepers.items())
    return network, Kept(
        images, folds, records, {name: (macs.get(name, 0), reason) for name, reason in reasons.items()}
    )


def _run(
    network: nn.Module,
    batch: torch.Tensor,
    keepers: "dict[str, _Keeper]",
    generator: torch.Generator,
) -> None:
    """One batch forwards and backwards."""

    def watch(keeper: "_Keeper", x: torch.Tensor, output: torch.Tensor) -> None:
        keeper.keep(output.detach())
        keeper.add_input(x.detach())
        # A hook on the tensor, since an activation in place would change what a module's own hook sees.
        if output.requires_grad:
            output.register_hook(keeper.add_gradient)

    hooks = [
        keeper.layer.register_forward_hook(lambda _, inputs, output, keeper=keeper: watch(keeper, inputs[0], output))
        for keeper in keepers.values()
    ]
    try:
        output = network(batch.detach().requires_grad_()).float()
        # One row per decision: per image, or per position where a network returns maps.
        scores = output.transpose(1, -1).flatten(0, -2).log_softmax(dim=1)
        # Drawn on the CPU, so that all devices draw alike.
        shares = scores.detach().exp().nan_to_num(0, 0, 0) + 1e-12
        drawn = torch.multinomial(shares.cpu(), 1, generator=generator).to(scores.device)
        scores.gather(1, drawn).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
