"""Rewrites of an exported graph that save copies where maps are cut into pieces and joined again."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

# Bounds of a Slice, which follow its data: starts, ends, axes, steps.
_BOUNDS = 4


def save_copies(model: ir.Model) -> None:
    """Rewrite a graph in place; its answers stay the same bit by bit.

    A piece of a map is cut out at once, where the exporter cuts its rows first and then its columns: each cut is a
    copy. A ReLU behind a join moves to the joined pieces: runtimes fuse it into a convolution but not into a join. A
    pool of single positions, as adaptive pooling to the size of the map is, is left out.
    """
    graph = model.graph
    for node in tuple(graph):
        if node.op_type == "Slice":
            _merge_with_cut_before(graph, node)
        elif node.op_type == "Relu" and _is_join(node.inputs[0]):
            _move_before_join(graph, node)
        elif node.op_type in ("AveragePool", "MaxPool") and _pools_nothing(node):
            _leave_out(graph, node)
    RemoveUnusedNodesPass()(model)


def _merge_with_cut_before(graph: ir.Graph, cut: ir.Node) -> None:
    """Let a cut behind another one, along other axes, make both cuts of the uncut map."""
    assert cut.inputs[0] is not None
    before = cut.inputs[0].producer()
    if before is None or before.op_type != "Slice":
        return
    first, second = _constant_bounds(before), _constant_bounds(cut)
    if first is None or second is None:
        return
    axes = [*first[2].tolist(), *second[2].tolist()]
    if min(axes) < 0 or len(set(axes)) < len(axes):
        return
    cut.replace_input_with(0, before.inputs[0])
    for position, bounds in enumerate(zip(first, second, strict=True), start=1):
        name = f"{cut.outputs[0].name}_bounds_{position}"
        value = ir.val(name, const_value=ir.tensor(np.concatenate(bounds), name=name))
        graph.register_initializer(value)
        cut.replace_input_with(position, value)


def _pools_nothing(pool: ir.Node) -> bool:
    """Tell whether a pool takes single positions, each once, and adds nothing around them."""
    only = {"kernel_shape": 1, "strides": 1, "pads": 0}
    values = [(name, pool.attributes.get(name)) for name in only]
    given = all(found is None or set(found.as_ints()) == {only[name]} for name, found in values)
    return given and len(pool.outputs) == 1 and pool.inputs[0] is not None and not pool.outputs[0].is_graph_output()


def _leave_out(graph: ir.Graph, node: ir.Node) -> None:
    """Let what reads a node read its input."""
    assert node.inputs[0] is not None
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    graph.remove(node, safe=True)


def _constant_bounds(cut: ir.Node) -> list[np.ndarray] | None:
    """The starts, ends, axes and steps of a Slice; None where one of them is missing or not constant."""
    tensors = [ir.convenience.get_const_tensor(value) for value in cut.inputs[1:] if value]
    constants = [tensor.numpy() for tensor in tensors if tensor is not None]
    return constants if len(constants) == _BOUNDS else None


def _move_before_join(graph: ir.Graph, relu: ir.Node) -> None:
    """Replace a ReLU behind a join by one on each joined piece."""
    joined = relu.inputs[0]
    assert joined is not None
    _clip_pieces(graph, joined)
    name = relu.outputs[0].name
    relu.outputs[0].replace_all_uses_with(joined, replace_graph_outputs=True)
    graph.remove(relu, safe=True)
    joined.name = name  # it may be the output of the graph


def _clip_pieces(graph: ir.Graph, joined: ir.Value) -> None:
    """Put a ReLU on each piece of a join; a piece that is a join itself is entered."""
    join = joined.producer()
    assert join is not None
    for position, piece in enumerate(join.inputs):
        assert piece is not None
        if _is_join(piece):
            _clip_pieces(graph, piece)
            continue
        relu = ir.node("Relu", inputs=[piece])
        relu.outputs[0].name = f"{joined.name}_clipped_{position}"
        relu.outputs[0].type, relu.outputs[0].shape = piece.type, piece.shape
        graph.insert_before(join, relu)
        join.replace_input_with(position, relu.outputs[0])


def _is_join(value: ir.Value | None) -> bool:
    """Tell whether a value is joined from pieces and used by a single node."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != "Concat":
        return False
    return len(value.uses()) == 1 and not value.is_graph_output()
