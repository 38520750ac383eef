"""Build and fit the module that takes a layer's place."""

import torch
from torch import nn

from hscc_search.compression.calibration.calibrate import Calibration
from hscc_search.compression.calibration.maps import by_image
from hscc_search.compression.fitting.maps import MapsFit
from hscc_search.compression.fitting.target import FitTarget
from hscc_search.compression.fitting.vectors import axis_filters, fit_dense_vectors, fit_factored_vectors
from hscc_search.compression.layers import build, group_modules
from hscc_search.compression.ranks.design import LayerDesign
from hscc_search.dense.weights import all_finite
from hscc_search.errors import CompressionError


def fit_layer(
    calibration: Calibration, name: str, design: LayerDesign, step: int, x: torch.Tensor
) -> tuple[nn.Module, torch.Tensor]:
    """Compress one layer.

    Args:
        calibration: of the dense network.
        name: of the layer, Conv2d or Linear.
        design: its regions, clusters and ranks.
        step: 1 where ``x`` has all calibration images, 2 where it has every second one, and so on.
        x: the layer's input in the partly compressed network, float (images, Cin, height, width), (images, features),
            (images, tokens, features), (images, height, width, features), or what
            :func:`~hscc_search.compression.calibration.maps.by_image` brings to one of them.

    Returns:
        The module that takes the layer's place, and its output for ``x``.
    """
    if not all_finite(x):
        raise CompressionError(
            f"layer {name} is given values that are not finite in the partly compressed network: for some images, "
            "a part of the network computes with a weight of a layer before it"
        )
    layer = calibration.network.get_submodule(name)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    target = FitTarget(layer, calibration.record(name), step)
    if isinstance(layer, nn.Linear) and by_image(x, target.images).shape != x.shape:
        module, output = fit_layer(calibration, name, design, step, by_image(x, target.images))
        return module, output.reshape(*x.shape[:-1], -1)
    module = build(layer, design.form).to(device=x.device, dtype=layer.weight.dtype).eval()
    if isinstance(layer, nn.Linear) and x.dim() == 2:
        return module, _fit_vectors(calibration, target, design, module, x)
    if isinstance(layer, nn.Linear) and x.dim() == 3:  # tokens are a map of one column
        return module, _fit_maps(target, design, module, x[:, :, None]).squeeze(2)
    return module, _fit_maps(target, design, module, x)


def _fit_vectors(
    calibration: Calibration, target: FitTarget, design: LayerDesign, module: nn.Module, x: torch.Tensor
) -> torch.Tensor:
    ((block,),), ((ranks,),) = design.partition.blocks, design.form.ranks
    if ranks is None:
        return fit_dense_vectors(target, block, module, x)
    key = ("filters", target.record.name)
    filters = calibration.remember(key, lambda: axis_filters(target.layer, block))
    return fit_factored_vectors(target, block, sum(ranks), filters, module, x)


def _fit_maps(target: FitTarget, design: LayerDesign, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    groups = group_modules(module)
    if len(groups) == 1:
        return MapsFit(target, design, 0, module).run(x)
    shares = x.chunk(len(groups), dim=1)
    outputs = [MapsFit(target, design, group, groups[group]).run(share) for group, share in enumerate(shares)]
    return torch.cat(outputs, dim=1)
