"""Recognizes what ONNX has one operator for, in what a model computes by several.

Such operators are faster, and tools that quantize models know them. Softmax and means are recognized as they are
written, in `elementwise`.
"""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from vision_jax.export.elementwise import reduced_axes
from vision_jax.export.graph import Graph, Node


def fuse(graph: Graph) -> None:
    """Replaces what is recognized, in place. What is left over is for `Graph.drop_unused`."""
    rules: list[Callable[[Graph, Node], list[Node] | None]] = [_layer_norm]
    if graph.opset >= 20:
        rules.append(_gelu)
    for rule in rules:
        graph.replace_nodes([new for node in graph.nodes for new in rule(graph, node) or [node]])
    graph.drop_unused()
    _join_bias(graph)
    _join_transposes(graph)
    graph.drop_unused()


def _operands(graph: Graph, node: Node | None, op: str) -> list[tuple[str, str]]:
    """Returns the two inputs of an operator in both orders; none if it is of another type."""
    if node is None or node.op != op:
        return []
    first, second = node.inputs
    return [(first, second), (second, first)]


def _layer_norm(graph: Graph, node: Node) -> list[Node] | None:
    """Returns the layer norm (Ba et al. 2016) that a product of x - mean x and the rest of it is, without its bias.

    ONNX normalizes the last axes. Where channels are in front, the norm is between two transposes.
    """
    for difference, factor in _operands(graph, node, "Mul"):
        centered = graph.produced_by(difference, "Sub")
        average = graph.produced_by(centered.inputs[1], "ReduceMean") if centered else None
        if centered is None or average is None or average.inputs[0] != centered.inputs[0]:
            continue
        x, axes = centered.inputs[0], reduced_axes(graph, average)
        if len(axes) != 1:
            continue
        rank, features, scale = len(graph.tensors[x].shape), graph.tensors[x].shape[axes[0]], None
        inverse = graph.produced_by(factor, "Reciprocal")
        for found, constant in _operands(graph, graph.producer(factor), "Mul"):
            array = graph.constants.get(constant)
            if array is not None and array.size == features and _is_along(array, rank, axes[0]):
                inverse, scale = graph.produced_by(found, "Reciprocal"), array.reshape(-1)
        root = graph.produced_by(inverse.inputs[0], "Sqrt") if inverse else None
        for variance, constant in _operands(graph, graph.producer(root.inputs[0]) if root else None, "Add"):
            epsilon = graph.scalar(constant)
            mean = graph.produced_by(variance, "ReduceMean")
            if epsilon is None or mean is None or not _is_square_of(graph, mean.inputs[0], difference):
                continue
            if not _is_mean_of(graph, variance, mean.inputs[0], axes):
                continue
            if scale is None:
                scale = np.ones(features, graph.tensors[x].dtype)
            name = graph.constant(scale, f"{node.place}/scale").name
            return _normalizing(
                graph, Node("LayerNormalization", [x, name], node.outputs, {}, node.place), axes[0], epsilon
            )
    return None


def _normalizing(graph: Graph, node: Node, axis: int, epsilon: float) -> list[Node]:
    """Returns the operators of a layer norm along an axis."""
    node.attributes = {"axis": -1, "epsilon": epsilon}
    source = graph.tensors[node.inputs[0]]
    rank = len(source.shape)
    if axis == rank - 1:
        return [node]
    order = [*(other for other in range(rank) if other != axis), axis]
    shape = tuple(source.shape[other] for other in order)
    names = [graph.tensor(f"{node.place}/{op}", shape, source.dtype).name for op in ("Transpose", node.op)]
    before = Node("Transpose", node.inputs[:1], [names[0]], {"perm": order}, node.place)
    back = Node("Transpose", [names[1]], node.outputs, {"perm": [order.index(i) for i in range(rank)]}, node.place)
    return [before, Node(node.op, [names[0], node.inputs[1]], [names[1]], node.attributes, node.place), back]


def _is_along(array: np.ndarray, rank: int, axis: int) -> bool:
    """Returns whether the elements of an array that is broadcast against others of a rank are along one axis."""
    return array.ndim <= rank and array.ndim >= rank - axis and array.shape[axis - rank] == array.size


def _is_mean_of(graph: Graph, mean: str, source: str, axes: list[int]) -> bool:
    node = graph.produced_by(mean, "ReduceMean")
    return node is not None and node.inputs[0] == source and reduced_axes(graph, node) == axes


def _is_square_of(graph: Graph, square: str, source: str) -> bool:
    node = graph.produced_by(square, "Mul")
    return node is not None and node.inputs == [source, source]


def _join_bias(graph: Graph) -> None:
    """Gives layer norms the bias that is added behind them."""
    count = Counter(graph.uses())
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.append(node)
        for norm, constant in _operands(graph, node, "Add"):
            array, rank = graph.constants.get(constant), len(graph.tensors[norm].shape)
            back = graph.produced_by(norm, "Transpose")
            name, axis = (back.inputs[0], back.attributes["perm"].index(rank - 1)) if back else (norm, rank - 1)
            before = graph.produced_by(name, "LayerNormalization")
            if before is None or array is None or count[norm] != 1 or count[name] != 1 or len(before.inputs) != 2:
                continue
            if array.size != graph.tensors[norm].shape[axis] or not _is_along(array, rank, axis):
                continue
            inputs = [*before.inputs, graph.constant(array.reshape(-1), f"{before.place}/bias").name]
            if back is None:
                nodes[-1] = Node(before.op, inputs, node.outputs, before.attributes, before.place)
            else:
                before.inputs = inputs
                nodes[-1] = Node("Transpose", back.inputs, node.outputs, back.attributes, back.place)
            break
    graph.replace_nodes(nodes)


def _without_identities(graph: Graph, nodes: list[Node]) -> list[Node]:
    """Returns operators without those that change nothing, but for what names an output of the graph."""
    outputs, kept = {tensor.name for tensor in graph.outputs}, []
    renamed: dict[str, str] = {}
    for node in nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        if node.op == "Identity" and node.outputs[0] not in outputs:
            renamed[node.outputs[0]] = node.inputs[0]
        else:
            kept.append(node)
    return kept


def _join_transposes(graph: Graph) -> None:
    """Makes one transpose of two that follow each other, and none if it changes nothing."""
    nodes = []
    for node in graph.nodes:
        before = graph.produced_by(node.inputs[0], "Transpose") if node.op == "Transpose" else None
        if before is not None:
            order = [before.attributes["perm"][axis] for axis in node.attributes["perm"]]
            op, attributes = ("Identity", {}) if order == sorted(order) else ("Transpose", {"perm": order})
            node.op, node.inputs, node.attributes = op, before.inputs[:1], attributes
        nodes.append(node)
    graph.replace_nodes(_without_identities(graph, nodes))


def _gelu(graph: Graph, node: Node) -> list[Node] | None:
    """Returns the GELU that x / 2 * (1 + erf(x / sqrt(2))) is."""
    for half, rest in _operands(graph, node, "Mul"):
        for x, constant in _operands(graph, graph.producer(half), "Mul"):
            if graph.scalar(constant) != 0.5:
                continue
            for error, one in _operands(graph, graph.producer(rest), "Add"):
                erf = graph.produced_by(error, "Erf")
                if erf is None or graph.scalar(one) != 1:
                    continue
                for same, factor in _operands(graph, graph.producer(erf.inputs[0]), "Mul"):
                    number = graph.scalar(factor)
                    if same == x and number is not None and math.isclose(number, math.sqrt(0.5), rel_tol=1e-3):
                        return [Node("Gelu", [x], node.outputs, {"approximate": "none"}, node.place)]
    return None
