"""Rewrites of an exported graph that save copies where maps are cut into pieces and joined again."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def save_copies(model: ir.Model) -> None:
    """Cut a piece out of a map at once, in place of its rows first, and clip pieces before they are joined.

    Each cut is a copy, and runtimes fuse a ReLU into the convolution before it but not into a join. Changes the model
    in place; what it computes stays the same, bit by bit.
    """
    graph = model.graph
    for node in tuple(graph):
        if node.op_type == "Slice":
            _cut_at_once(graph, node)
        elif node.op_type == "Relu" and _joins(node.inputs[0]):
            joined = node.inputs[0]
            assert joined is not None
            _clip(graph, joined)
            name = node.outputs[0].name
            node.outputs[0].replace_all_uses_with(joined, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            joined.name = name  # it may be the output of the graph
    RemoveUnusedNodesPass()(model)


def _cut_at_once(graph: ir.Graph, node: ir.Node) -> None:
    """Let a cut behind another one, along other axes, cut what that one cuts."""
    assert node.inputs[0] is not None
    before = node.inputs[0].producer()
    if before is None or before.op_type != "Slice" or len(before.inputs) != 5 or len(node.inputs) != 5:
        return
    known = [[ir.convenience.get_const_tensor(value) for value in cut.inputs[1:] if value] for cut in (before, node)]
    first, second = ([tensor.numpy() for tensor in tensors if tensor is not None] for tensors in known)
    if len(first) < 4 or len(second) < 4:
        return
    axes = [*first[2].tolist(), *second[2].tolist()]
    if min(axes) < 0 or len(set(axes)) < len(axes):
        return
    node.replace_input_with(0, before.inputs[0])
    for place, bounds in enumerate(zip(first, second, strict=True), start=1):
        name = f"{node.outputs[0].name}_bounds_{place}"
        value = ir.val(name, const_value=ir.tensor(np.concatenate(bounds), name=name))
        graph.register_initializer(value)
        node.replace_input_with(place, value)


def _joins(value: ir.Value | None) -> bool:
    """Whether a value is a join that nothing else sees."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != "Concat":
        return False
    return len(value.uses()) == 1 and not value.is_graph_output()


def _clip(graph: ir.Graph, joined: ir.Value) -> None:
    """Put a ReLU before a join, on each of its parts."""
    join = joined.producer()
    assert join is not None
    for place, part in enumerate(join.inputs):
        assert part is not None
        if _joins(part):
            _clip(graph, part)
            continue
        relu = ir.node("Relu", inputs=[part])
        relu.outputs[0].name = f"{joined.name}_clipped_{place}"
        relu.outputs[0].type, relu.outputs[0].shape = part.type, part.shape
        graph.insert_before(join, relu)
        join.replace_input_with(place, relu.outputs[0])
