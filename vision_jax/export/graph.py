"""A graph of ONNX operators as plain data, while it is being written."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# Where the batch is symbolic, a dimension that is k times it has this size times k: a prime number, which is a factor
# of no dimension that a model has. So shapes are integers throughout, and products of them still tell the batch apart.
BATCH = 2**31 - 1
# A dimension whose size depends on what is in the images: how many objects are found.
FOUND = -1

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What an operator gives.

    Attributes:
        name: within the graph.
        shape: as the file will have it; see `BATCH` and `FOUND`.
        dtype: of NumPy.
    """

    name: str
    shape: Shape
    dtype: np.dtype


@dataclasses.dataclass(eq=False)
class Node:
    """An operator.

    Attributes:
        op: its type, as "Conv".
        inputs: names of tensors; "": an optional input that is not given.
        outputs: names of tensors.
        attributes: as `onnx.helper.make_node` takes them.
        place: of the model's module that it is a part of.
    """

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    place: str


class Graph:
    """Operators in an order in which they can be computed.

    The same operator of the same inputs is there once.

    Args:
        opset: the version of ONNX's operators.

    Attributes:
        nodes: the operators.
        constants: the tensors that are stored, by their names.
        tensors: all tensors, by their names.
        inputs, outputs: of the graph.
    """

    def __init__(self, opset: int):
        self.opset = opset
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.tensors: dict[str, Tensor] = {}
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self._producers: dict[str, Node] = {}
        self._known: dict[Any, list[Tensor]] = {}
        self._names: dict[str, int] = {}

    def input(self, name: str, shape: Shape, dtype: Any) -> Tensor:
        """Adds an input of the graph."""
        tensor = self.tensor(name, shape, dtype)
        self.inputs.append(tensor)
        return tensor

    def finish(self, tensor: Tensor, name: str) -> None:
        """Makes a tensor the output of the graph, with a name of its own."""
        output = self.tensor(name, tensor.shape, tensor.dtype)
        node = self.producer(tensor)
        if node is None:
            self.nodes.append(Node("Identity", [tensor.name], [output.name], {}, ""))
        else:
            for other in self.nodes:
                other.inputs = [output.name if given == tensor.name else given for given in other.inputs]
            node.outputs = [output.name if given == tensor.name else given for given in node.outputs]
        self.outputs.append(output)
        self.replace_nodes(self.nodes)

    def constant(self, array: Any, name: str = "constant") -> Tensor:
        """Returns the tensor of a stored array; one of the same values that is there already is used again."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        key = ("", array.dtype.str, array.shape, array.tobytes()) if array.nbytes <= 4096 else ("", id(array))
        if key not in self._known:
            tensor = self.tensor(name, array.shape, array.dtype)
            self.constants[tensor.name] = array  # which keeps it alive, and so its id its own
            self._known[key] = [tensor]
        return self._known[key][0]

    def add(
        self, op: str, inputs: Sequence[Tensor | None], shape: Shape, dtype: Any, place: str = "", **attributes: Any
    ) -> Tensor:
        """Adds an operator with one output, and returns that."""
        return self.add_several(op, inputs, [shape], dtype, place, **attributes)[0]

    def add_several(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        shapes: Sequence[Shape],
        dtype: Any,
        place: str = "",
        **attributes: Any,
    ) -> list[Tensor]:
        """Adds an operator with several outputs, and returns them; `dtype` is that of all, or a tuple with each's."""
        names = ["" if tensor is None else tensor.name for tensor in inputs]
        key = (op, tuple(names), tuple(shapes), str(dtype), repr(sorted(attributes.items())))
        if key not in self._known:
            dtypes = dtype if isinstance(dtype, tuple) else (dtype,) * len(shapes)
            label = f"{place}/{op}" if place else op
            outputs = [self.tensor(label, shape, kind) for shape, kind in zip(shapes, dtypes, strict=True)]
            node = Node(op, names, [tensor.name for tensor in outputs], attributes, place)
            self.nodes.append(node)
            self._producers.update(dict.fromkeys(node.outputs, node))
            self._known[key] = outputs
        return self._known[key]

    def producer(self, tensor: Tensor | str) -> Node | None:
        """Returns the operator that gives a tensor; None: it is an input or stored."""
        return self._producers.get(tensor if isinstance(tensor, str) else tensor.name)

    def produced_by(self, tensor: Tensor | str, op: str) -> Node | None:
        """Returns the operator that gives a tensor if it is of a type, else None."""
        node = self.producer(tensor)
        return node if node is not None and node.op == op else None

    def scalar(self, name: str) -> float | None:
        """Returns the value of a stored tensor with one element; None: it is not one."""
        array = self.constants.get(name)
        return float(array.reshape(())) if array is not None and array.size == 1 else None

    def replace_nodes(self, nodes: Sequence[Node]) -> None:
        """Takes other operators, in the order in which they are to be computed."""
        self.nodes = list(nodes)
        self._producers = {name: node for node in nodes for name in node.outputs}

    def drop_unused(self) -> None:
        """Leaves out what no output depends on."""
        wanted = {tensor.name for tensor in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                wanted.update(node.inputs)
                kept.append(node)
        self.replace_nodes(kept[::-1])
        self.constants = {name: array for name, array in self.constants.items() if name in wanted}
        self._known.clear()  # of which some is no longer there

    def uses(self) -> Iterator[str]:
        """Yields the name of each tensor as often as it is used."""
        for node in self.nodes:
            yield from node.inputs
        yield from (tensor.name for tensor in self.outputs)

    def tensor(self, name: str, shape: Shape, dtype: Any) -> Tensor:
        """Returns a tensor of a new name, for the output of an operator that is not added by `add`."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        unique = f"{name}_{count}" if count else name
        if unique in self.tensors:  # a place may end in a number as well
            return self.tensor(unique, shape, dtype)
        tensor = Tensor(unique, tuple(int(size) for size in shape), np.dtype(dtype))
        self.tensors[unique] = tensor
        return tensor
