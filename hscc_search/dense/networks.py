"""Build a network by the name that a study file gives it."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hscc_search.config import IN_MEMORY, Shape, shape_of
from hscc_search.dense.checked import check_in_training, check_network
from hscc_search.dense.names import unknown_network
from hscc_search.dense.output import picking
from hscc_search.errors import ModelError, one_line
from hscc_search.torchvision_operators import make_importable
from hscc_search.user_code import load_function


class DigitsCNN(nn.Sequential):
    """A small network for small images: four 3 x 3 convolutions and two fully connected layers.

    Args:
        classes: number of outputs.
        shape: of one image, see :func:`hscc_search.config.pictures.shape_of`; its sides are multiples of 4 pixels.
    """

    def __init__(self, classes: int, shape: int | Shape = 16) -> None:
        channels, height, width = shape_of(shape)
        super().__init__(
            nn.Conv2d(channels, 32, 3, padding=1),
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
            nn.Linear(128 * (height // 4) * (width // 4), 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )


def build_network(
    name: str,
    classes: int,
    shape: int | Shape,
    weights: str | None = None,
    output: str | None = None,
    maps: tuple[int, ...] = (),
) -> nn.Module:
    """Build a network with random or published weights, in evaluation mode.

    Args:
        name: ``digits_cnn``, the name of a classifier of torchvision such as ``alexnet`` or else of timm such as
            ``ghostnetv2_100``, ``timm/NAME`` where both know the name and timm's is meant, or ``module:function``
            for a function of your own that takes the number of classes and returns a module.
        classes: number of outputs.
        shape: of one image, see :func:`hscc_search.config.pictures.shape_of`. timm builds the first layer of a network
            for as many channels, torchvision for 3 alone; that of your own function must take them.
        weights: ``DEFAULT``, the name of other torchvision weights or timm's tag, such as ``a1_in1k``; a new last
            layer then gives ``classes`` outputs.
        output: function that picks the scores out of the network's answer, see
            :func:`hscc_search.dense.output.picking`; None where the answer is the scores.
        maps: height and width of the maps that it answers with; empty where it scores whole images.

    Raises:
        ModelError: there is no such network, function or weights, it cannot be built, it cannot take such images, or
            :func:`hscc_search.dense.checked.check_network` refuses it.
    """
    network = construct(name, classes, shape, weights, output).eval()
    images = _different_images(shape_of(shape))
    check_network(network, images, name, classes, maps)
    if output is not None:
        check_in_training(network, images, name, (classes, *maps))
    return network


def _different_images(shape: Shape) -> torch.Tensor:
    """Two images of random content that have little in common: float32, shape (2, channels, height, width)."""
    generator = torch.Generator().manual_seed(0)
    coarse = functional.interpolate(
        torch.randn(2, shape[0], 4, 4, generator=generator), size=shape[1:], mode="bilinear"
    )
    return coarse + 0.5 * torch.randn(2, *shape, generator=generator)


def construct(
    name: str, classes: int, shape: int | Shape, weights: str | None = None, output: str | None = None
) -> nn.Module:
    """Construct a network as :func:`build_network` does, without running it on an image.

    Raises:
        ModelError: as :func:`build_network`.
    """
    network = _construct(name, classes, shape_of(shape), weights)
    return network if output is None else picking(network, output)


def _construct(name: str, classes: int, shape: Shape, weights: str | None) -> nn.Module:
    if weights is not None and (":" in name or name == "digits_cnn"):
        raise ModelError(f"model.weights is for torchvision and timm networks, not for {name}: use model.checkpoint")
    if name == IN_MEMORY:
        raise ModelError(
            "the dense network was an object in memory where the study was searched: give it to "
            "hscc_search.load(folder, network), or go on with hscc_search.search"
        )
    if name == "digits_cnn":
        if any(side % 4 for side in shape[1:]):
            raise ModelError(f"digits_cnn needs an image size that is a multiple of 4, not {_pixels(shape)}")
        return DigitsCNN(classes, shape)
    if ":" in name:
        return _build_by_function(name, classes)
    make_importable()
    from torchvision import models

    torchvision_names = models.list_models(module=models)
    if name in torchvision_names:
        if shape[0] != 3:
            raise ModelError(
                f"torchvision builds {name} for 3 channels, not for {shape[0]}: leave data.channels out, which reads "
                "grey images as three equal channels, or name a network of timm or a module:function of your own"
            )
        return _build_torchvision(name, classes, weights)
    import timm  # after torchvision has been asked, since it is slow to import

    timm_names = timm.list_models()
    if name.removeprefix("timm/") in timm_names:
        return _build_timm(name.removeprefix("timm/"), classes, shape, weights)
    raise unknown_network(name, torchvision_names, timm_names)


def _build_torchvision(name: str, classes: int, weights: str | None) -> nn.Module:
    from torchvision import models

    if weights is None:
        extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return models.get_model(name, weights=None, num_classes=classes, **extra)  # type: ignore[no-any-return]
    try:
        network: nn.Module = models.get_model(name, weights=weights)
    except Exception as error:
        raise ModelError(
            f"cannot get torchvision weights {weights!r} for {name}: {one_line(error, with_type=True)}"
        ) from error
    _replace_last_layer(network, classes)
    return network


def _build_timm(name: str, classes: int, shape: Shape, weights: str | None) -> nn.Module:
    import timm

    tagged_name = name if weights in (None, "DEFAULT") else f"{name}.{weights}"

    # Not all of timm's networks know this argument.
    channels = {} if shape[0] == 3 else {"in_chans": shape[0]}

    def create(**extra: Any) -> nn.Module:
        extra |= channels
        return timm.create_model(tagged_name, pretrained=weights is not None, num_classes=classes, **extra)

    try:
        try:
            return create(img_size=shape[1] if shape[1] == shape[2] else shape[1:])
        except TypeError as error:  # most convolutional networks take any size and no such argument
            if "img_size" not in str(error):
                raise
            return create()
    except Exception as error:
        task = f"get timm weights {weights!r} for" if weights is not None else "build timm network"
        raise ModelError(
            f"cannot {task} {name} for {shape[0]} channels at {_pixels(shape)} pixels: "
            f"{one_line(error, with_type=True)}"
        ) from error


def _pixels(shape: Shape) -> str:
    return " x ".join(map(str, shape[1:]))


def _build_by_function(name: str, classes: int) -> nn.Module:
    try:
        network = load_function(name)(classes)
    except (Exception, SystemExit) as error:  # whatever the user's code raises, to leave the program too
        raise ModelError(f"cannot build {name} with {classes} classes: {one_line(error, with_type=True)}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} must return a torch.nn.Module, not {type(network).__name__}")
    return network


def _replace_last_layer(network: nn.Module, classes: int) -> None:
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    name, last = layers[-1]
    parent_name, _, child = name.rpartition(".")
    parent = network.get_submodule(parent_name)
    if isinstance(last, nn.Linear):
        setattr(parent, child, nn.Linear(last.in_features, classes))
    else:
        setattr(parent, child, nn.Conv2d(last.in_channels, classes, kernel_size=1))


def kaiming_initialise(network: nn.Module) -> None:
    """Draw Kaiming-normal weights and set biases to zero, in place, unless the network normalises.

    AlexNet with torch's default initialisation needs many epochs to leave its plateau. A network that normalises
    keeps its own initialisation: the scale of its convolutions matters little, and its narrow attention weights and
    heads that begin at zero must not be overwritten.
    """
    # Recognised by name: timm has dozens of normalisation layers that share no base class.
    if any("Norm" in type(layer).__name__ for layer in network.modules()):
        return
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
