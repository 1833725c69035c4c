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
    rules: list[Callable[[Graph, Node], Node | None]] = [_layer_norm]
    if graph.opset >= 20:
        rules.append(_gelu)
    for rule in rules:
        graph.replace_nodes([rule(graph, node) or node for node in graph.nodes])
    graph.drop_unused()
    _join_bias(graph)


def _operands(graph: Graph, node: Node | None, op: str) -> list[tuple[str, str]]:
    """Returns the two inputs of an operator in both orders; none if it is of another type."""
    if node is None or node.op != op:
        return []
    first, second = node.inputs
    return [(first, second), (second, first)]


def _layer_norm(graph: Graph, node: Node) -> Node | None:
    """Returns the layer norm (Ba et al. 2016) that a product of x - mean x and the rest of it is, without its bias."""
    for difference, factor in _operands(graph, node, "Mul"):
        centered = graph.produced_by(difference, "Sub")
        if centered is None or graph.produced_by(centered.inputs[1], "ReduceMean") is None:
            continue
        x = centered.inputs[0]
        axes = [len(graph.tensors[x].shape) - 1]
        if not _is_mean_of(graph, centered.inputs[1], x, axes):
            continue
        features, scale = graph.tensors[x].shape[-1], None
        inverse = graph.produced_by(factor, "Reciprocal")
        for found, constant in _operands(graph, graph.producer(factor), "Mul"):
            array = graph.constants.get(constant)
            if array is not None and array.size == features == array.shape[-1]:
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
            attributes = {"axis": -1, "epsilon": epsilon}
            return Node("LayerNormalization", [x, name], node.outputs, attributes, node.place)
    return None


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
            before, array = graph.produced_by(norm, "LayerNormalization"), graph.constants.get(constant)
            if before is None or array is None or count[norm] != 1 or len(before.inputs) != 2:
                continue
            if array.size != graph.tensors[norm].shape[-1] or array.shape[-1] != array.size:
                continue
            bias = graph.constant(array.reshape(-1), f"{before.place}/bias").name
            nodes[-1] = Node(before.op, [*before.inputs, bias], node.outputs, before.attributes, before.place)
            break
    graph.replace_nodes(nodes)


def _gelu(graph: Graph, node: Node) -> Node | None:
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
                        return Node("Gelu", [x], node.outputs, {"approximate": "none"}, node.place)
    return None
