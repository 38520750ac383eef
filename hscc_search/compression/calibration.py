"""What one pass of the dense network over calibration images leaves behind."""

import copy
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from hscc_search.compression.activation import Bounds, activation_bounds
from hscc_search.compression.folding import Fold, absorb, fold_batch_norms
from hscc_search.compression.lattice import choose_lattice, positions_first
from hscc_search.compression.records import DAMAGE, Inputs, Kept, LayerRecord, key, read, write
from hscc_search.errors import CompressionError
from hscc_search.files import cache_folder, folder_written_whole, remove_abandoned, remove_unused, used
from hscc_search.progress import Progress, Report, silent

Found = TypeVar("Found")

# A calibration takes up to a gigabyte; one that nobody used for a month is made again when somebody does.
_KEPT_SECONDS = 30 * 86400

# Groups of a convolution run one after the other once they are compressed.
MOST_GROUPS = 8


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


class _Keeper:
    """What is gathered of one layer while the calibration images pass."""

    def __init__(self, name: str, layer: nn.Conv2d | nn.Linear, file: Path, images: torch.Tensor) -> None:
        self.name = name
        self.layer, self.file, self.images = layer, file, len(images)
        self.seen = 0
        self.moments: _Moments | None = None

    def _maps(self, output: torch.Tensor) -> torch.Tensor:
        """Responses as (images, Cout, height, width); a fully connected layer has them last."""
        if not isinstance(self.layer, nn.Linear):
            return output
        return output.movedim(-1, 1) if output.dim() == 4 else output[:, :, None, None]

    def _on_lattice(self, maps: torch.Tensor) -> torch.Tensor:
        rows = slice(self.lattice.start, None, self.lattice.step)
        return positions_first(maps[:, :, rows, rows])

    def keep(self, output: torch.Tensor) -> None:
        """Write responses to the file, and add up activations."""
        maps = self._maps(output)
        if self.seen == 0:
            self.lattice = choose_lattice(*maps.shape[2:])
            self.profiles = torch.zeros(maps.shape[1:], dtype=torch.float64, device=maps.device)
            shape = (self.lattice.positions, self.images, maps.shape[1])
            self.squares = torch.zeros(shape[0], shape[2], dtype=torch.float64, device=output.device)
            self.written = np.lib.format.open_memmap(self.file, "w+", np.float32, shape)
        self.profiles += maps.relu().sum(dim=0)
        kept = self._on_lattice(maps)
        if not torch.isfinite(kept).all():
            raise CompressionError(
                f"layer {self.name} answers with values that are not finite: the dense network is broken"
            )
        self.written[:, self.seen : self.seen + len(output)] = kept.float().cpu().numpy()
        self.seen += len(output)

    def add_gradient(self, gradient: torch.Tensor) -> None:
        """Add up squared gradients."""
        self.squares += self._on_lattice(self._maps(gradient)).square().sum(dim=1)

    def add_input(self, x: torch.Tensor) -> None:
        """Add up products of input channels, at one position and with the next one."""
        if not isinstance(self.layer, nn.Conv2d) or self.layer.kernel_size == (1, 1) or x.shape[3] < 2:
            return
        step = choose_lattice(*x.shape[2:]).step
        here = x[:, :, ::step, :-1:step].movedim(1, -1).flatten(0, 2)
        right = x[:, :, ::step, 1::step].movedim(1, -1).flatten(0, 2)
        if self.moments is None:
            self.moments = _Moments((x.shape[2], x.shape[3]), x.shape[1], x.device)
        self.moments.add(here, right)

    def record(self, macs: int, bounds: Bounds | None) -> LayerRecord:
        """All of it, with the file complete."""
        self.written.flush()
        effects = (self.squares / self.seen).sqrt().float()
        if not effects.sum() > 0:  # the loss depends on nothing here: all count alike
            effects = torch.ones_like(effects)
        return LayerRecord(
            name=self.name,
            lattice=self.lattice,
            effects=effects,
            profiles=(self.profiles / self.seen).float().cpu(),
            inputs=self.moments.inputs() if self.moments is not None else None,
            macs=macs,
            groups=getattr(self.layer, "groups", 1),
            fully_connected=isinstance(self.layer, nn.Linear),
            bounds=bounds,
            file=self.file,
        )


class _Moments:
    """Sums over input positions that give an :class:`Inputs`."""

    def __init__(self, size: tuple[int, int], channels: int, device: torch.device) -> None:
        self.size, self.count = size, 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self.squares = torch.zeros(2, channels, dtype=torch.float64, device=device)
        self.products = torch.zeros(channels, dtype=torch.float64, device=device)
        self.outer = torch.zeros(channels, channels, dtype=torch.float64, device=device)

    def add(self, here: torch.Tensor, right: torch.Tensor) -> None:
        """Add positions and their right neighbours, both (positions, Cin)."""
        self.count += len(here)
        self.outer += here.T @ here
        self.products += (here * right).sum(dim=0)
        for index, values in enumerate((here, right)):
            self.sums[index] += values.sum(dim=0)
            self.squares[index] += values.square().sum(dim=0)

    def inputs(self) -> Inputs:
        """The statistics."""
        means = self.sums / self.count
        variances = (self.squares / self.count - means.square()).clamp(min=0)
        shared = self.products / self.count - means[0] * means[1]
        scale = variances.prod(dim=0).sqrt().sum()
        correlation = float(shared.sum() / scale) if scale > 0 else 0.0
        covariance = self.outer / self.count - torch.outer(means[0], means[0])
        return Inputs(self.size, covariance, min(1.0, max(0.0, correlation)))


@torch.no_grad()
def _look(
    network: nn.Module, candidates: dict[str, nn.Conv2d | nn.Linear], image: torch.Tensor
) -> tuple[dict[str, int], dict[str, str]]:
    """Multiply-adds of each layer in execution order, and why some cannot be compressed, from one image."""
    macs: dict[str, int] = {}
    reasons: dict[str, str] = {}

    names = Counter(id(layer) for _, layer in network.named_modules(remove_duplicate=False))

    def look(name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        if name in macs:
            reasons[name] = "called more than once in one pass"
        positions = output.numel() // layer.weight.shape[0]
        macs[name] = macs.get(name, 0) + positions * layer.weight.numel()
        if name == "":
            reasons.setdefault(name, "it is the whole network")
        if names[id(layer)] > 1:
            reasons.setdefault(name, "registered under more than one name")
        if len(output) != len(image):
            reasons.setdefault(name, "called on more than one position as if they were images")
        if isinstance(layer, nn.Linear) and output.dim() not in (2, 4):
            reasons.setdefault(name, f"called on {output.dim()} dimensions")
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            if layer.groups == layer.in_channels:
                reasons.setdefault(name, "depthwise")
            elif layer.groups > MOST_GROUPS:
                reasons.setdefault(name, f"{layer.groups} groups, too narrow each")
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            reasons.setdefault(name, f"padding mode {layer.padding_mode}")

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: look(name, layer, inputs, output))
        for name, layer in candidates.items()
    ]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    for name in candidates.keys() - macs.keys():
        reasons[name] = "never called"
    return macs, reasons
