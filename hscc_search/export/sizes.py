"""Check the sizes that an exported folder states against its weights file, before anything of that size is made."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from hscc_search.compression.form import LayerForm, NetworkForm, total_rank
from hscc_search.errors import ExportError, one_line, quoted
from hscc_search.export.manifest import refusing
from hscc_search.export.run import regular

Shapes = Mapping[str, tuple[int, ...]]

# Numbers in the weight of a layer, and positions along a side of a map, that no network of images has.
_MOST_NUMBERS, _LARGEST_SIDE = 1 << 30, 1 << 14
# Bytes of the header of a weights file: a tensor takes about 120, and a large network has a few thousand.
_LARGEST_HEADER = 1 << 23
# Where the layers of a network stand in the weights file, and that of a group; version 0.1.0 wrote the second.
_NETWORK, _GROUPS = "network.", ("of_group", "groups")


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file by name, from its header alone.

    Raises:
        ExportError: the file is none, damaged, or its header larger than that of any network.
    """
    with refusing():
        regular(path)
    try:
        with path.open("rb") as content:
            header = int.from_bytes(content.read(8), "little")
        if header > _LARGEST_HEADER:
            raise ValueError(f"its header has {header:,} bytes, and may have {_LARGEST_HEADER:,}")
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
            others = {name: kept for name, kept in (file.metadata() or {}).items() if kept in shapes}
    except (OSError, SafetensorError, ValueError, OverflowError, MemoryError) as error:
        raise ExportError(f"{path} is damaged: {one_line(error)}") from error
    return {**{name: shapes[kept] for name, kept in others.items()}, **shapes}


def check_form(form: NetworkForm, shapes: Shapes) -> None:
    """Check that each rank of a form is that of a tensor, and that pieces cover the map that they divide.

    Raises:
        ExportError: one is not, or they do not.
    """
    for layer in form.plain:
        if not all(side > 0 for side in layer.weight) or math.prod(layer.weight) > _MOST_NUMBERS:
            raise ExportError(f"no layer has a weight of shape {quoted(layer.weight)}, as layer {layer.layer} would")
        stored = shapes.get(f"{_NETWORK}{layer.layer}.weight", layer.weight)
        if stored != layer.weight and layer.layer not in form.layers:
            raise _other_size(f"{layer.layer}.weight", layer.weight, stored)
    for name, compressed in form.layers.items():
        _check_pieces(name, compressed)
        for tensor, rank in _ranks(name, compressed, shapes):
            if tensor not in shapes or shapes[tensor][:1] != (rank,):
                raise _other_size(tensor, (rank,), shapes.get(tensor, ())[:1])


def check_module(module: nn.Module, shapes: Shapes) -> None:
    """Check that a module without memory has the tensors of a weights file.

    Raises:
        ExportError: one is missing, or of another shape.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    renamed = any(f".{_GROUPS[1]}." in name for name in shapes)
    for name, shape in own.items():
        if shapes.get(name, shape if renamed else None) != shape:
            raise _other_size(name, shape, shapes.get(name, ()))


def _ranks(name: str, form: LayerForm, shapes: Shapes) -> Iterator[tuple[str, int]]:
    """The tensors of a layer whose first dimension is a rank that the form states, each with that rank."""
    layer = f"{_NETWORK}{name}"
    for number, (regions, input_rank) in enumerate(zip(form.ranks, form.input_ranks, strict=True)):
        grouped = [f"{layer}.{word}.{number}" for word in _GROUPS]
        group = next((path for path in grouped if any(tensor.startswith(f"{path}.") for tensor in shapes)), layer)
        if input_rank is not None:
            yield f"{group}.encoder.weight", input_rank
        for region, ranks in enumerate(regions):
            linear, convolution = f"{layer}.0.weight", f"{group}.regions.{region}.0.weight"
            if (rank := total_rank(ranks)) is not None:
                yield (linear if linear in shapes else convolution), rank


def _check_pieces(name: str, form: LayerForm) -> None:
    height, width = form.output_size
    regions = {len(regions) for regions in form.ranks}
    inside = all(
        0 <= piece.top < piece.bottom <= height
        and 0 <= piece.left < piece.right <= width
        and 0 <= piece.region < min(regions, default=0)
        for piece in form.pieces
    )
    covered = sum((piece.bottom - piece.top) * (piece.right - piece.left) for piece in form.pieces)
    if max(height, width) > _LARGEST_SIDE or not inside or covered != height * width or len(regions) != 1:
        raise ExportError(f"the pieces of layer {name} do not cover its map of {height} x {width} positions")


def _other_size(name: str, stated: tuple[int, ...], stored: tuple[int, ...]) -> ExportError:
    words = f"it has {stored or 'no such tensor'}"
    return ExportError(f"the folder states the size {quoted(stated)} of {name}, and in its weights file {words}")
