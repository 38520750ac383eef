"""Refine a compressed network: all its weights at once, towards the dense network's answers, without labels.

The fit goes layer by layer, and what each layer misses adds up. Here all weights of the compressed network descend
together on images that need no labels. The loss is the Kullback-Leibler divergence of its answers from the dense
network's (Hinton et al. 2015), and the distance between both networks' responses in each compressed layer: a few scores
per image say too little about weights by the hundred thousand, which would learn these images by heart.

Some images are set aside. After each cycle of the learning rate, the network is kept if it is better on them, else it
becomes again what it was, and the next cycle is slower. So where no cycle helps, it stays as it was.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from hscc_search.compression.calibration.activation import Bounds
from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.setting import Refinement
from hscc_search.dense.device import fast_bfloat16
from hscc_search.dense.trainable import make_trainable
from hscc_search.errors import CompressionError, one_line
from hscc_search.progress import Progress, Report, silent

# Images per step, and per batch where answers are only computed.
_BATCH = 64
# One of so many images is set aside to judge by.
ONE_KEPT_OF = 10
# Weight of the distance in layers, on average over these, beside the divergence of answers.
_INNER_WEIGHT = 3.0
# Places of a layer's output that are compared: these many over all layers together, within bounds for one.
_PLACES, _FEWEST_PLACES, _MOST_PLACES = 16_384, 64, 2048
# Factor of the learning rate after a cycle that did not help, and the share of it at which nothing more is tried.
_SLOWER, _SLOWEST = 1 / 3, 1 / 30
# Share of a cycle in which the rate rises; and the least size of a weight, for those that begin at 0.
_RISING, _SMALLEST_SIZE = 0.2, 1e-3
# Gives the inputs of a network, float32 (images, channels, height, width), by their positions, int64 (images,).
Take = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Inner:
    """The dense network's responses in one layer, behind its clipping activation where it has one.

    Attributes:
        size: number of values of the output for one image.
        places: of the flattened output for one image, int64 (places,).
        bounds: of the activation; None where there is none.
        responses: bfloat16 (images, places).
        variance: of the responses at a place, mean over places.
    """

    size: int
    places: torch.Tensor
    bounds: Bounds | None
    responses: torch.Tensor
    variance: float

    def distance(self, output: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """The mean squared distance of a layer's output for some images, relative to the variance."""
        wanted = self.responses[batch].float()
        return (_at(output, len(batch), self.places, self.bounds) - wanted).square().mean() / self.variance


@dataclass(frozen=True, eq=False)
class Lessons:
    """Images with the answers that a compressed network should give to them: those of the dense network.

    Attributes:
        take: reads images by position.
        answers: scores before softmax, float32, shape (images, classes) or (images, classes, height, width).
        inner: responses by layer.
        learnt: positions of the images to learn from, int64.
        kept: positions of those that are set aside to judge by, int64.
    """

    take: Take
    answers: torch.Tensor
    inner: Mapping[str, Inner]
    learnt: torch.Tensor
    kept: torch.Tensor


@dataclass(frozen=True)
class Refined:
    """The course of a refinement.

    Attributes:
        before: mean divergence from the dense network's answers to the images that were set aside, in nats.
        after: the same of the refined network, at most ``before``.
        best_epoch: number of passes that it took to get there; 0 where none made it better.
    """

    before: float
    after: float
    best_epoch: int


@torch.no_grad()
def lessons(
    dense: nn.Module,
    take: Take,
    count: int,
    kept: torch.Tensor,
    layers: Mapping[str, Bounds | None],
    report: Report = silent,
) -> Lessons:
    """Ask the dense network for its answers to all images, and for its responses in some layers.

    Args:
        dense: in evaluation mode.
        take: reads images by position.
        count: number of images.
        kept: positions of those to set aside, int64.
        layers: names of modules with the bounds of the activation behind each, see
            :class:`hscc_search.compression.calibration.record.LayerRecord`.
        report: told of each batch.

    Raises:
        CompressionError: the network answers with a single score, which tells nothing about classes.
    """
    positions, answers = torch.arange(count).split(_BATCH), []
    responses: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    sizes: dict[str, int] = {}
    places: dict[str, torch.Tensor] = {}
    most = max(_FEWEST_PLACES, min(_MOST_PLACES, _PLACES // max(1, len(layers))))
    generator = torch.Generator().manual_seed(0)
    with _outputs(dense, layers) as outputs:
        for done, batch in enumerate(positions, 1):
            answers.append(dense(take(batch)).float())
            if answers[0].shape[1] < 2:
                raise CompressionError(
                    "refining compares scores of two classes or more, and this network answers with a single score"
                )
            for name, bounds in layers.items():
                if name not in places:
                    sizes[name] = outputs[name].numel() // len(batch)
                    places[name] = torch.randperm(sizes[name], generator=generator)[:most].to(outputs[name].device)
                responses[name].append(_at(outputs[name], len(batch), places[name], bounds).bfloat16())
            report(Progress("asking the dense network", done, len(positions)))
    learnt = torch.ones(count, dtype=torch.bool)
    learnt[kept] = False
    inner = {
        name: _inner(sizes[name], places[name], bounds, torch.cat(responses[name])) for name, bounds in layers.items()
    }
    return Lessons(take, torch.cat(answers), inner, learnt.nonzero()[:, 0], kept)


def _inner(size: int, places: torch.Tensor, bounds: Bounds | None, responses: torch.Tensor) -> Inner:
    variance = float(responses.float().var(dim=0, unbiased=False).mean())
    return Inner(size, places, bounds, responses, variance or 1.0)


@contextmanager
def _outputs(network: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the outputs of some layers in each pass; what an activation changed in place is clipped already."""
    outputs: dict[str, torch.Tensor] = {}

    def collect(name: str, output: torch.Tensor) -> None:
        outputs[name] = output

    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: collect(name, output))
        for name in layers
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _at(output: torch.Tensor, images: int, places: torch.Tensor, bounds: Bounds | None) -> torch.Tensor:
    """The values of a layer's output at some places of each image, behind its activation, float32 (images, places)."""
    if len(output) == images and output.ndim == 4 and not output.is_contiguous():
        # Taken in the order that channels-last maps have in memory, so that gradients come back in it: in another order
        # each operation on them is several times slower.
        channels, positions = output.shape[1], output.shape[2] * output.shape[3]
        places = places % positions * channels + places // positions
        output = output.permute(0, 2, 3, 1)
    values = output.reshape(images, -1)[:, places].float()
    return values if bounds is None else values.clamp(*bounds)


@torch.enable_grad()
def refine(network: nn.Module, taught: Lessons, refinement: Refinement, report: Report = silent) -> Refined:
    """Refine a compressed network in place; it never ends farther from the dense network on images set aside.

    Args:
        network: a compressed one, by whatever method, in evaluation mode, in which it stays: nothing is dropped at
            random.
        taught: images and the dense network's answers.
        refinement: how long.
        report: told after each pass.

    Raises:
        CompressionError: no gradient reaches the weights.
    """
    taught = _comparable(network, taught)
    before = best = divergence(network, taught)
    best_state, best_epoch, epoch = _state(network), 0, 0
    rate, generator = refinement.learning_rate, torch.Generator().manual_seed(refinement.seed)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    make_trainable(network)
    for length in _cycle_lengths(refinement.epochs):
        for _ in _cycle(network, taught, length, rate, generator):
            epoch += 1
            report(Progress("refining", epoch, refinement.epochs, f"divergence {best:.4f}, at first {before:.4f}"))
        reached = divergence(network, taught)
        if reached < best:  # never where it is not a number
            best, best_state, best_epoch = reached, _state(network), epoch
            continue
        network.load_state_dict(best_state)
        rate *= _SLOWER
        if rate < refinement.learning_rate * _SLOWEST:
            break
    network.load_state_dict(best_state)
    network.zero_grad()
    network.requires_grad_(False)
    for parameter in trained:  # as it came: a user may train it further
        parameter.requires_grad_(True)
    return Refined(before, best, best_epoch)


@torch.no_grad()
def _comparable(network: nn.Module, taught: Lessons) -> Lessons:
    """Leave out layers that a network lacks, or in which it has fewer responses, as where channels are pruned."""
    modules, few = dict(network.named_modules()), taught.kept[:2]
    with _outputs(network, [name for name in taught.inner if name in modules]) as outputs:
        network(taught.take(few))
    same = {name for name, output in outputs.items() if output.numel() == taught.inner[name].size * len(few)}
    return replace(taught, inner={name: inner for name, inner in taught.inner.items() if name in same})


def _cycle_lengths(epochs: int) -> list[int]:
    """Divide epochs into cycles, each as long as all before it: of 8 epochs 1, 1, 2 and 4."""
    lengths: list[int] = []
    while (done := sum(lengths)) < epochs:
        lengths.append(min(max(1, done), epochs - done))
    return lengths


def _cycle(network: nn.Module, taught: Lessons, epochs: int, rate: float, generator: torch.Generator) -> Iterator[None]:
    """Descend for some epochs, with a rate that rises and falls once; give way after each.

    Steps are relative to the size of each weight: those of regions are small and many, and a rate that suits one region
    makes nine worse.
    """
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rates = [rate * max(_SMALLEST_SIZE, float(weight.detach().square().mean().sqrt())) for weight in weights]
    optimizer = torch.optim.Adam(
        [{"params": [weight], "lr": own} for weight, own in zip(weights, rates, strict=True)], fused=True
    )
    steps = max(1, len(taught.learnt) // _BATCH)
    schedule = OneCycleLR(optimizer, rates, total_steps=epochs * steps, pct_start=_RISING)
    for _ in range(epochs):
        order = taught.learnt[torch.randperm(len(taught.learnt), generator=generator)]
        for batch in order[: steps * _BATCH].split(_BATCH):
            optimizer.zero_grad()
            _descend(network, taught, batch)
            optimizer.step()
            schedule.step()
        yield


def refine_on_calibration(network: nn.Module, calibration: Calibration, refinement: Refinement) -> Refined:
    """Refine a compressed network in place on the calibration images, of which every tenth is set aside.

    It is one that layers are not fitted to, where they are fitted to every second image.

    Args:
        network: from this calibration, in evaluation mode.
        calibration: of the dense network.
        refinement: its number of images is that of the calibration at most.
    """
    images = calibration.images[: refinement.images]
    kept = torch.arange(1, len(images), ONE_KEPT_OF)
    layers = compared_layers(calibration)
    return refine(network, lessons(calibration.network, images.__getitem__, len(images), kept, layers), refinement)


def compared_layers(calibration: Calibration) -> dict[str, Bounds | None]:
    """The layers in which a refinement compares both networks: all that can be compressed."""
    return {record.name: record.bounds for record in calibration.records}


@torch.no_grad()
def divergence(network: nn.Module, taught: Lessons) -> float:
    """The mean divergence of a network's answers from the dense network's to the images set aside, in nats."""
    total = 0.0
    for batch in taught.kept.split(_BATCH):
        total += float(mean_divergence(network(taught.take(batch)).float(), taught.answers[batch])) * len(batch)
    return total / len(taught.kept) if math.isfinite(total) else math.inf


def _descend(network: nn.Module, taught: Lessons, batch: torch.Tensor) -> None:
    """Compute the gradient of the loss on a batch."""
    try:
        _total_loss(network, taught, batch).backward()
    except RuntimeError as error:  # a forward pass that runs without gradients, or in inference mode
        raise CompressionError(
            f"no gradient reaches the weights of the compressed network ({one_line(error)}), so it cannot be refined: "
            "say refine: {trials: none}"
        ) from error


def _total_loss(network: nn.Module, taught: Lessons, batch: torch.Tensor) -> torch.Tensor:
    """The divergence of a batch's answers, and the distance of its responses in the layers."""
    with _outputs(network, taught.inner) as outputs:
        loss = mean_divergence(_answers(network, taught.take(batch)), taught.answers[batch])
        for name, inner in taught.inner.items():
            loss = loss + _INNER_WEIGHT / len(taught.inner) * inner.distance(outputs[name], batch)
    return loss


def _answers(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=fast_bfloat16(images.device)):
        answers: torch.Tensor = network(images)
    return answers.float()


def mean_divergence(answers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The mean divergence over images and, of maps, over positions."""
    terms = functional.kl_div(answers.log_softmax(1), wanted.log_softmax(1), reduction="none", log_target=True)
    return terms.sum(dim=1).mean()


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())
