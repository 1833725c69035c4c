"""Makes a graph smaller: what multiplies and adds constants is merged, and becomes part of what is before it.

So batch norm behind a convolution is a part of its kernel and bias, and the scale behind a dense layer of its matrix.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping

import numpy as np

from vision_jax.export.fusion import fuse
from vision_jax.export.graph import Graph, Node, Tensor

_AFFINE = ("Add", "Sub", "Mul", "Div", "Neg")


def optimize(graph: Graph) -> None:
    """Merges and folds what can be, in place; the results are the same but for rounding."""
    graph.drop_unused()
    _fold_affine(graph)
    if _before_pooling(graph):
        graph.drop_unused()
        _fold_affine(graph)
    fuse(graph)
    graph.drop_unused()


@dataclasses.dataclass
class _Affine:
    """The function x * scale + shift, with arrays that are broadcast against x.

    Attributes:
        scale, shift: in float64.
        end: the name of its result.
        nodes: that it consists of.
    """

    scale: np.ndarray
    shift: np.ndarray
    end: str
    nodes: list[Node]

    def followed_by(self, node: Node, graph: Graph) -> "_Affine | None":
        """Returns the function with an operator behind it; None: that is not of this kind."""
        scale, shift = self.scale, self.shift
        if node.op == "Cast":
            if graph.tensors[node.outputs[0]].dtype.kind != "f":
                return None
        elif node.op == "Neg":
            scale, shift = -scale, -shift
        else:
            first = node.inputs[0] in graph.constants
            array = graph.constants.get(node.inputs[0 if first else 1])
            if array is None or (node.op == "Div" and first):
                return None
            value = array.astype(np.float64)
            if not np.isfinite(value).all() or (node.op == "Div" and not value.all()):
                return None  # as of a mask of -inf, which scaled by 0 would be NaN
            if node.op == "Add":
                shift = shift + value
            elif node.op == "Sub":
                scale, shift = (-scale, value - shift) if first else (scale, shift - value)
            else:
                factor = value if node.op == "Mul" else 1 / value
                scale, shift = scale * factor, shift * factor
        return _Affine(scale, shift, node.outputs[0], [*self.nodes, node])


def _fold_affine(graph: Graph) -> None:
    """Replaces each chain of `_AFFINE` operators with constants by one multiplication and one addition at most."""
    count = Counter(graph.uses())
    consumers: dict[str, Node] = {name: node for node in graph.nodes for name in node.inputs}
    final = {tensor.name for tensor in graph.outputs}
    renamed: dict[str, str] = {}
    done: set[int] = set()
    nodes: list[Node] = []
    for node in graph.nodes:
        if id(node) in done:
            continue
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        if node.op in _AFFINE and (start := _chain_input(node, graph)) is not None:
            # What begins at an input of the graph, or at a tensor with several uses.
            chain = _longest(graph, start, node, consumers, count, channels=None)
            if not chain.nodes:
                nodes.append(node)
                continue
            new = _written(graph, start, chain, node.place)
            if chain.end in final and not new:
                new = [Node("Identity", [start], [chain.end], {}, node.place)]
            if not new:
                renamed[chain.end] = start
            nodes.extend(new)
            done.update(map(id, chain.nodes))
            continue
        nodes.append(node)
        axis = _channel_axis(graph, node)
        if axis is None or count[node.outputs[0]] != 1 or node.outputs[0] in final:
            continue
        follower = consumers[node.outputs[0]]
        chain = _longest(graph, node.outputs[0], follower, consumers, count, channels=axis)
        if chain.nodes:
            nodes[-1:] = _folded(graph, node, chain, axis)
            done.update(map(id, chain.nodes))
    graph.replace_nodes(nodes)


def _chain_input(node: Node, graph: Graph) -> str | None:
    """Returns the input of an operator that is no constant, if the others are; and if it keeps its shape and dtype."""
    given = [name for name in node.inputs if name not in graph.constants]
    if len(given) != 1 or graph.tensors[node.outputs[0]].dtype.kind != "f":
        return None
    if graph.tensors[given[0]].shape != graph.tensors[node.outputs[0]].shape:
        return None
    return None if node.op == "Div" and node.inputs[0] in graph.constants else given[0]


def _longest(
    graph: Graph,
    start: str,
    node: Node,
    consumers: Mapping[str, Node],
    count: Mapping[str, int],
    channels: int | None,
) -> _Affine:
    """Returns the longest chain behind a tensor whose parts have no other use.

    Args:
        graph: that they are in.
        start: the name of the tensor.
        node: the operator that uses it.
        consumers: an operator that uses each tensor.
        count: how often each tensor is used.
        channels: the axis along which alone its constants may differ, and conversions to another dtype and back are
            part of the chain; None: they may be any, and there are no conversions.
    """
    tensor = graph.tensors[start]
    chain = best = _Affine(np.ones(()), np.zeros(()), start, [])
    while True:
        if node.op not in (*_AFFINE, "Cast") or (node.op == "Cast" and channels is None):
            return best
        if node.op != "Cast" and _chain_input(node, graph) is None:
            return best
        longer = chain.followed_by(node, graph)
        if longer is None:
            return best
        if channels is not None and not all(
            _is_along(array, len(tensor.shape), channels) for array in (longer.scale, longer.shift)
        ):
            return best
        chain = longer
        if graph.tensors[chain.end].dtype == tensor.dtype:
            best = chain
        if count[chain.end] != 1 or chain.end not in consumers:
            return best
        node = consumers[chain.end]


def _is_along(array: np.ndarray, rank: int, axis: int) -> bool:
    """Returns whether an array that is broadcast against others of a rank differs along one axis at most."""
    sizes = (1,) * (rank - array.ndim) + array.shape
    return len(sizes) == rank and all(size == 1 for a, size in enumerate(sizes) if a != axis)


def _channel_axis(graph: Graph, node: Node) -> int | None:
    """Returns the axis of the output features of an operator with stored weights; None: it has none."""
    if len(node.inputs) < 2 or node.inputs[1] not in graph.constants:
        return None
    if node.op == "Conv":
        return 1
    if node.op == "MatMul" and graph.constants[node.inputs[1]].ndim == 2:
        return len(graph.tensors[node.outputs[0]].shape) - 1
    return None


def _folded(graph: Graph, node: Node, chain: _Affine, axis: int) -> list[Node]:
    """Returns operators that compute one with weights and the chain behind it."""
    weights = graph.constants[node.inputs[1]]
    features = graph.tensors[node.outputs[0]].shape[axis]
    scale, shift = (np.broadcast_to(array.reshape(-1), (features,)) for array in (chain.scale, chain.shift))
    if len(node.inputs) == 3:  # a convolution that has a bias
        shift = shift + scale * graph.constants[node.inputs[2]]
    inputs, kernel = list(node.inputs[:2]), node.inputs[1]
    if (scale != 1).any():
        shaped = scale.reshape(-1, *[1] * (weights.ndim - 1)) if node.op == "Conv" else scale
        kernel = graph.constant((weights * shaped).astype(weights.dtype), node.inputs[1]).name
    inputs[1] = kernel
    if not shift.any():
        return [Node(node.op, inputs, [chain.end], node.attributes, node.place)]
    bias = graph.constant(shift.astype(weights.dtype), f"{node.place}/bias")
    if node.op == "MatMul" and len(graph.tensors[node.outputs[0]].shape) == 2:
        return [Node("Gemm", [*inputs, bias.name], [chain.end], {}, node.place)]
    if node.op == "MatMul":
        product = Node("MatMul", inputs, node.outputs, {}, node.place)
        return [product, Node("Add", [node.outputs[0], bias.name], [chain.end], {}, node.place)]
    return [Node("Conv", [*inputs, bias.name], [chain.end], node.attributes, node.place)]


def _before_pooling(graph: Graph) -> bool:
    """Moves what is scaled and added behind max pooling before it, where that follows an operator with weights.

    The largest of values is also the largest of the scaled ones, if no factor is negative: see `BatchNorm`, which pools
    before it normalizes.

    Returns:
        whether there was anything to move.
    """
    count = Counter(graph.uses())
    consumers: dict[str, Node] = {name: node for node in graph.nodes for name in node.inputs}
    done: set[int] = set()
    nodes: list[Node] = []
    for node in graph.nodes:
        if id(node) in done:
            continue
        nodes.append(node)
        name = node.outputs[0]
        producer = graph.producer(node.inputs[0]) if node.op == "MaxPool" else None
        if producer is None or count[name] != 1 or count[node.inputs[0]] != 1 or name not in consumers:
            continue
        chain = _longest(graph, name, consumers[name], consumers, count, channels=1)
        if _channel_axis(graph, producer) is None or not chain.nodes or (chain.scale < 0).any():
            continue
        before = graph.tensors[node.inputs[0]]
        end = graph.tensor(f"{node.place}/Add", before.shape, before.dtype).name
        moved = _written(graph, before.name, dataclasses.replace(chain, end=end), node.place)
        pooled = end if moved else before.name
        nodes[-1:] = [*moved, Node("MaxPool", [pooled], [chain.end], node.attributes, node.place)]
        done.update(map(id, chain.nodes))
    graph.replace_nodes(nodes)
    return bool(done)


def _written(graph: Graph, start: str, chain: _Affine, place: str) -> list[Node]:
    """Returns the multiplication and the addition that a chain is; none for what changes nothing."""
    tensor: Tensor = graph.tensors[start]
    steps = []
    if (chain.scale != 1).any():
        steps.append(("Mul", chain.scale))
    if chain.shift.any():
        steps.append(("Add", chain.shift))
    nodes = []
    for number, (op, array) in enumerate(steps):
        constant = graph.constant(array.astype(tensor.dtype), f"{place}/constant" if place else "constant")
        last = number == len(steps) - 1
        name = chain.end if last else graph.tensor(f"{place}/{op}", tensor.shape, tensor.dtype).name
        nodes.append(Node(op, [start, constant.name], [name], {}, place))
        start = name
    return nodes
