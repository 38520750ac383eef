"""Build the dense network of a study, and decide whether the weights that it is built with are to be trained."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hscc_search.config import StudyConfig
from hscc_search.dense.networks import build_network, construct, kaiming_initialise
from hscc_search.dense.weights import weights_digest


@dataclass(frozen=True)
class Start:
    """The weights that a network is built with, and what becomes of them.

    Attributes:
        trained: whether they are to be trained.
        words: on what becomes of them, and why.
        repeatable: whether building it again gives the same weights.
    """

    trained: bool
    words: str
    repeatable: bool = True


def build(config: StudyConfig, classes: int, maps: tuple[int, ...] = ()) -> nn.Module:
    """Build the dense network of a study before any training; equal seeds give equal weights.

    Raises:
        ModelError: as :func:`hscc_search.dense.networks.build_network`.
    """
    with _seeded(config.seed):
        model = config.model
        network = build_network(model.name, classes, config.data.shape, model.weights, model.output, maps)
        # Published weights are kept, and so are those of a user's own function, which may have loaded them.
        if config.model.weights is None and ":" not in config.model.name:
            kaiming_initialise(network)
    return network


def start_of(config: StudyConfig, classes: int, network: nn.Module, better_than_guessing: Callable[[], bool]) -> Start:
    """Decide whether the weights that a network is built with are to be trained.

    Weights that come with the network of a user's own function are kept, unless ``training.when`` is ``always``. They
    come with it where the function returns the same ones under different seeds. A function that seeds torch itself
    does so in any case: its weights are kept if the network already knows something of the images.

    Args:
        config: of the study, without a checkpoint.
        classes: number of outputs.
        network: from :func:`build`.
        better_than_guessing: measures whether the network is right more often than the commonest class is.
    """
    name, training = config.model.name, config.training
    if training.epochs == 0:
        return Start(False, f"none: training.epochs is 0, so the weights of {name} are taken as they are")
    epochs = f"{training.epochs} epoch{'' if training.epochs == 1 else 's'}"
    if config.model.weights is not None:
        return Start(True, f"{epochs} from the published weights {config.model.weights} of {name}")
    if ":" not in name:
        return Start(True, f"{epochs} from random weights of {name}")
    again, _ = _constructed(config, classes, config.seed)
    repeatable = weights_digest(again) == weights_digest(network)
    if training.when == "always":
        return Start(True, f"{epochs} from the weights of {name}, since training.when is always", repeatable)
    (other, state), (_, state_again) = (_constructed(config, classes, config.seed + added) for added in (1, 2))
    drawn, kept = _compared(network, other)
    if drawn:
        listed = f"{', '.join(kept[:2])}{' and more' if len(kept) > 2 else ''}"
        given = f", except for {listed}, which come with it" if kept else ""
        return Start(True, f"{epochs} from random weights of {name}{given}", repeatable)
    if not torch.equal(state, state_again):
        reason = f"{name} returns the same weights under different seeds, so they come with it"
    elif better_than_guessing():
        reason = f"{name} seeds torch itself and knows the images already, so its weights come with it"
    else:
        return Start(
            True,
            f"{epochs} from the weights of {name}, which seeds torch itself and knows nothing of the images "
            "(training.epochs: 0 keeps them)",
        )
    return Start(False, f"none: {reason} and are kept (training.when: always trains them)")


def _constructed(config: StudyConfig, classes: int, seed: int) -> tuple[nn.Module, torch.Tensor]:
    """Construct a network under a seed; also give the state of torch's generator after that."""
    with _seeded(seed):
        network = construct(config.model.name, classes, config.data.shape, output=config.model.output)
        return network, torch.get_rng_state()


def _compared(one: nn.Module, other: nn.Module) -> tuple[list[str], list[str]]:
    """Name the tensors in which two networks differ, and the weights of layers in which they do not.

    Vectors that are alike, such as the ones and zeros of batch norms, are in neither list.
    """
    ours, theirs = one.state_dict(), other.state_dict()
    same = {
        name
        for name in ours.keys() & theirs.keys()
        if ours[name].shape == theirs[name].shape and torch.equal(ours[name].cpu(), theirs[name].cpu())
    }
    return sorted((ours.keys() | theirs.keys()) - same), sorted(name for name in same if ours[name].ndim > 1)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all generators that a function may draw weights from, and leave them as they were."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 (a user's function may draw from it)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
