"""Check that a network can be trained, compressed and exported, before anything takes long."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hscc_search.dense.answers import described, picked
from hscc_search.dense.trainable import of_numbers
from hscc_search.errors import ModelError, one_line

# Largest difference between two passes over the same images, and between an image alone and in a batch, both relative
# to how far answers to different images lie apart; and what rounding may add, relative to the largest answer.
_SAME_IMAGES, _SAME_IMAGE, _ROUNDING = 1e-3, 1e-2, 1e-5


def check_network(
    network: nn.Module, image: torch.Tensor, name: str, classes: int | None = None, maps: tuple[int, ...] = ()
) -> None:
    """Check that a network is a plain module of float32 weights whose answer to an image depends on that image alone.

    It runs in evaluation mode and without gradients. The network's modes, buffers and attributes and all random
    generators are as before afterwards.

    Args:
        network: may be anything that a user gives.
        image: at least two different images as the network takes them, float32, shape (images, channels, height,
            width).
        name: of the network, as errors begin with it.
        classes: number of scores that it must answer each image with; None for any, and for maps of them.
        maps: height and width of the maps of scores that it must answer with; empty for one score for each class.

    Raises:
        ModelError: it is not such a network; the line says why, and what would work.
    """
    _check_kind(network, name)
    _check_state(network, image.device, name)
    one = None if classes is None else (classes, *maps)
    modules = [place for place, _ in network.named_modules()]
    with left_alone(network), torch.no_grad():
        network.eval()
        answer = _scores(network, image, name, one)
        again = _scores(network, image, name, one)
        alone = _scores(network, image[:1], name, one)
        made = [place for place, _ in network.named_modules() if place not in modules]
    if made:
        raise ModelError(
            f"{name} makes modules while it runs ({made[0]}): call it on an image before it is returned, or make them "
            "in its __init__"
        )
    if _differ(answer, again, answer, _SAME_IMAGES):
        raise ModelError(
            f"{name} answers the same images differently on each pass in evaluation mode: what is random must stop "
            "there, as nn.Dropout does and functional.dropout(x, p, training=self.training)"
        )
    if _differ(answer[:1], alone, answer, _SAME_IMAGE):
        raise ModelError(
            f"{name} answers an image differently when other images are in its batch, in evaluation mode: batch norms "
            "must use their running statistics there (track_running_stats=True, functional.batch_norm(..., "
            "training=self.training))"
        )


def check_in_training(network: nn.Module, images: torch.Tensor, name: str, one: tuple[int, ...]) -> None:
    """Check that a network answers images with scores in training mode, too, where some answer with something else.

    Args:
        network: that :func:`check_network` has checked.
        images: two or more.
        name: of the network, as errors begin with it.
        one: shape of the scores of one image.

    Raises:
        ModelError: it does not.
    """
    with left_alone(network), torch.no_grad():
        network.train()
        _scores(network, images, f"{name}, in training mode,", one)


def _check_kind(network: Any, name: str) -> None:
    """Refuse what is no module, and modules whose code or weights cannot be reached."""
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} must be a torch.nn.Module, not {type(network).__name__}")
    for place, module in network.named_modules():
        kind = type(module).__name__
        where = f"{name} is" if not place else f"{name} holds, as {place},"
        # Told by its name, since its module takes seconds to import.
        if kind == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise ModelError(f"{where} a network that torch.compile has made: give the network from before that")
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{where} a ScriptModule, whose layers cannot be replaced: give the network in Python")
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise ModelError(f"{where} wrapped in {kind}: give its .module")


def _check_state(network: nn.Module, device: torch.device, name: str) -> None:
    """Refuse weights that are not there yet, not of float32, or elsewhere, and state that is no tensor."""
    for kind, tensors in (("weights", network.named_parameters()), ("a buffer", network.named_buffers())):
        for place, tensor in tensors:
            if is_lazy(tensor):
                raise ModelError(
                    f"{name} has lazy layers without weights ({place}): call it on an image before it is returned"
                )
            if tensor.is_meta:
                raise ModelError(
                    f"{name} has {kind} on the meta device, which holds no values ({place}): "
                    "build it on the CPU and load its weights"
                )
            if tensor.device != device:
                raise ModelError(
                    f"{name} has {kind} on {tensor.device} ({place}), and its images are on {device}: "
                    f"bring it there with network.to({str(device)!r})"
                )
            if kind == "weights" and of_numbers(tensor) and tensor.dtype != torch.float32:
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise ModelError(
                    f"{name} has {dtype} weights ({place}): give network.float(), whose weights are float32"
                )
    for place, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"{name} keeps state that is no tensor ({place}, {type(value).__name__}), as quantised layers do: "
                "give a network of plain float32 layers"
            )


def _scores(network: nn.Module, images: torch.Tensor, name: str, one: tuple[int, ...] | None) -> torch.Tensor:
    """Run a network, and refuse an answer that is not a tensor of scores for each image."""
    count, size = len(images), " x ".join(map(str, images.shape[2:]))
    try:
        answer = network(images.clone())  # a forward may change its input in place
    except ModelError:  # of the function that picks the scores
        raise
    except (Exception, SystemExit) as error:  # whatever a network raises
        reason = one_line(error, with_type=True)
        message = f"{name} cannot take images of {size} pixels{_channels(images)}, {count} at a time: {reason}"
        raise ModelError(message) from error
    wanted = f"scores of shape (images, {'classes' if one is None else ', '.join(map(str, one))})"
    if not isinstance(answer, torch.Tensor):
        raise ModelError(
            f"{name} must return {wanted}, not {described(answer)}: name a function that picks them with "
            f"model.output: package.module:function, such as one that returns {picked(answer, one and (count, *one))}"
        )
    shape = tuple(answer.shape)
    fits = len(shape) > 1 and shape[0] == count if one is None else shape == (count, *one)
    if not fits:
        images_text = "one image" if count == 1 else f"{count} images"
        maps = " (classes, height and width, since the targets are maps)" if one is not None and len(one) > 1 else ""
        raise ModelError(f"{name} must return {wanted}{maps}, not {shape} for {images_text}")
    if answer.dtype != torch.float32:
        dtype = str(answer.dtype).removeprefix("torch.")
        raise ModelError(
            f"{name} must return {wanted} in float32, not in {dtype}: convert them in forward with .float()"
        )
    return answer.detach().clone()


def _channels(images: torch.Tensor) -> str:
    """Words on the channels of images that are not RGB."""
    channels = images.shape[1]
    return "" if channels == 3 else " and 1 channel" if channels == 1 else f" and {channels} channels"


def _differ(one: torch.Tensor, other: torch.Tensor, answers: torch.Tensor, tolerance: float) -> bool:
    """Tell whether two answers to the same image differ by more than rounding explains; equal NaN do not."""
    spread = (answers - answers.mean(0)).abs().nan_to_num(0, 0, 0).max()
    allowed = tolerance * spread + _ROUNDING * answers.abs().nan_to_num(0, 0, 0).max()
    return not torch.allclose(one, other, rtol=0, atol=float(allowed), equal_nan=True)


@contextmanager
def left_alone(network: nn.Module) -> Iterator[None]:
    """Bring modes, buffers and attributes of a network and all random generators back to what they are now."""
    modules = list(network.modules())
    attributes = [dict(vars(module)) for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    values = {
        id(buffer): (buffer, buffer.clone()) for held in buffers for buffer in held.values() if buffer is not None
    }
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 (whatever a user's forward draws from)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
        for module, before, held in zip(modules, attributes, buffers, strict=True):
            vars(module).clear()
            vars(module).update(before)
            module._buffers.clear()
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, value in values.values():
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
