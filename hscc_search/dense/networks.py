"""The dense networks: build_network one by name, read its weights, find the device it runs on."""

import difflib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hscc_search.dense.torchvision_operators import make_importable
from hscc_search.errors import ModelError


class DigitsCNN(nn.Sequential):
    """A small network for small images: four 3 x 3 convolutions and two fully connected layers.

    Args:
        classes: number of outputs.
        image_size: side of the images in pixels, a multiple of 4.
    """

    def __init__(self, classes: int, image_size: int = 16) -> None:
        side = image_size // 4
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128 * side * side, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )


def build_network(name: str, classes: int, image_size: int, weights: str | None = None) -> nn.Module:
    """Build a classifier with random or published weights, in evaluation mode.

    Args:
        name: ``digits_cnn``, the name of a classifier of torchvision such as ``alexnet`` or else of timm such as
            ``ghostnetv2_100``, ``timm/NAME`` where both know the name and timm's is meant, or ``module:function``
            for a function of your own that takes the number of classes and returns a module.
        classes: number of outputs.
        image_size: side of the images in pixels.
        weights: ``DEFAULT``, the name of other torchvision weights or timm's tag, such as ``a1_in1k``; the last
            layer is then made anew for ``classes`` outputs.

    Raises:
        ModelError: there is no such network, function or weights, it fails to build_network, or it does not take such images.
    """
    network = _build(name, classes, image_size, weights).eval()
    try:
        with torch.no_grad():
            output = network(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # whatever a network raises
        message = f"{name} cannot take images of {image_size} x {image_size} pixels: {_one_line(error)}"
        raise ModelError(message) from error
    if not isinstance(output, torch.Tensor) or output.shape != (1, classes):
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(f"{name} must return scores of shape (images, {classes}), not {found} for one image")
    return network


def _build(name: str, classes: int, image_size: int, weights: str | None) -> nn.Module:
    if weights is not None and (":" in name or name == "digits_cnn"):
        raise ModelError(f"model.weights is for torchvision and timm networks, not for {name}: use model.checkpoint")
    if name == "digits_cnn":
        if image_size % 4:
            raise ModelError(f"digits_cnn needs an image size that is a multiple of 4, not {image_size}")
        return DigitsCNN(classes, image_size)
    if ":" in name:
        return _build_own(name, classes)
    make_importable()
    from torchvision import models

    known = models.list_models(module=models)
    if name in known:
        return _build_torchvision(name, classes, weights)
    import timm  # after torchvision has been asked, since it is slow to import

    known_to_timm = timm.list_models()
    if name.removeprefix("timm/") in known_to_timm:
        return _build_timm(name.removeprefix("timm/"), classes, image_size, weights)
    close = difflib.get_close_matches(name, known) + [
        f"timm/{other}" if other in known else other
        for other in difflib.get_close_matches(name.removeprefix("timm/"), known_to_timm)
    ]
    raise ModelError(
        f"no network named {name!r} in torchvision or timm: "
        + (f"did you mean {' or '.join(close)}? Else " if close else "")
        + "give digits_cnn, a classifier such as alexnet, or your own module:function"
    )


def _build_torchvision(name: str, classes: int, weights: str | None) -> nn.Module:
    from torchvision import models

    if weights is None:
        extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return models.get_model(name, weights=None, num_classes=classes, **extra)  # type: ignore[no-any-return]
    try:
        network: nn.Module = models.get_model(name, weights=weights)
    except Exception as error:
        raise ModelError(f"cannot get torchvision weights {weights!r} for {name}: {_one_line(error)}") from error
    _replace_last_layer(network, classes)
    return network


def _build_timm(name: str, classes: int, image_size: int, weights: str | None) -> nn.Module:
    import timm

    def create(**extra: Any) -> nn.Module:
        tagged = name if weights in (None, "DEFAULT") else f"{name}.{weights}"
        return timm.create_model(tagged, pretrained=weights is not None, num_classes=classes, **extra)

    try:
        try:
            return create(img_size=image_size)
        except TypeError as error:  # most convolutional networks take any size and no such argument
            if "img_size" not in str(error):
                raise
            return create()
    except Exception as error:
        wanted = f"get timm weights {weights!r} for" if weights is not None else "build_network timm network"
        raise ModelError(f"cannot {wanted} {name} at {image_size} pixels: {_one_line(error)}") from error


def _build_own(name: str, classes: int) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a console script does not look into the folder that it is started from
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        network = function(classes)
    except Exception as error:  # whatever the user's code raises
        raise ModelError(f"cannot build_network {name} with {classes} classes: {_one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} must return a torch.nn.Module, not {type(network).__name__}")
    return network


def _replace_last_layer(network: nn.Module, classes: int) -> None:
    name, layer = [
        (name, layer) for name, layer in network.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))
    ][-1]
    parent_name, _, child = name.rpartition(".")
    parent = network.get_submodule(parent_name)
    if isinstance(layer, nn.Linear):
        setattr(parent, child, nn.Linear(layer.in_features, classes))
    elif isinstance(layer, nn.Conv2d):
        setattr(parent, child, nn.Conv2d(layer.in_channels, classes, kernel_size=1))


def source_of_own(name: str) -> str | None:
    """The source text behind a ``module:function`` name, which decides whether cached weights still fit."""
    if ":" not in name:
        return None
    module_name, _, _ = name.partition(":")
    return inspect.getsource(importlib.import_module(module_name))


def kaiming_initialise(network: nn.Module) -> None:
    """Kaiming-normal weights and zero biases for the layers of a network that does not normalise.

    AlexNet with torch's default initialisation needs many epochs to leave its plateau. A network that normalises
    keeps its own initialisation: the scale of its convolutions matters little, while narrow attention weights and
    heads that begin at zero would be lost.
    """
    # By name, since timm has dozens of normalisations (and networks made to do without) that share no base class.
    if any("Norm" in type(layer).__name__ for layer in network.modules()):
        return
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
