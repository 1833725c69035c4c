"""Values of a model as it was traced, and where their dimensions lie in the tensors of the graph.

A model computes in (batch, height, width, channels), and ONNX's convolutions in (batch, channels, height, width). So a
value remembers which axis of its tensor each of its dimensions is: transposing it, and adding and dropping dimensions
of size 1, change this alone, and no operator is written before one needs another order.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vision_jax.export.graph import BATCH, Graph, Shape, Tensor


@dataclasses.dataclass(frozen=True)
class Value:
    """What depends on the images.

    Attributes:
        tensor: of the graph. Axes of it that are no dimension have size 1.
        axes: for each dimension its axis of the tensor; None: there is none, and the values are repeated along it.
        shape: of the value.
    """

    tensor: Tensor
    axes: tuple[int | None, ...]
    shape: Shape

    @property
    def dtype(self) -> np.dtype:
        """Of NumPy."""
        return self.tensor.dtype

    def stored(self, dim: int) -> int:
        """Returns the size of the tensor along a dimension; 1 where values are repeated."""
        axis = self.axes[dim]
        return 1 if axis is None else self.tensor.shape[axis]

    def dimensions(self) -> list[int | None]:
        """Returns for each axis of the tensor the dimension that it is; None: of size 1."""
        return [self.axes.index(axis) if axis in self.axes else None for axis in range(len(self.tensor.shape))]


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """What does not depend on the images.

    Attributes:
        array: with as many dimensions as the shape; where it has the size 1, it is repeated along the dimension.
        shape: of the value; may contain the batch.
    """

    array: np.ndarray
    shape: Shape

    @property
    def dtype(self) -> np.dtype:
        """Of NumPy."""
        return self.array.dtype

    def stored(self, dim: int) -> int:
        """Returns the size of the array along a dimension; 1 where values are repeated."""
        return self.array.shape[dim]

    def whole(self) -> np.ndarray | None:
        """Returns the array with nothing left to repeat; None: the shape contains the batch."""
        return None if is_symbolic(self.shape) else np.broadcast_to(self.array, self.shape)


Operand = Value | Constant


def is_symbolic(shape: Sequence[int]) -> bool:
    """Returns whether a shape contains the batch."""
    return any(size % BATCH == 0 for size in shape if size)


def whole(tensor: Tensor) -> Value:
    """Returns the value whose dimensions are the axes of a tensor."""
    return Value(tensor, tuple(range(len(tensor.shape))), tensor.shape)


def constant(array: Any) -> Constant:
    """Returns the constant of an array."""
    array = np.asarray(array)
    return Constant(array, array.shape)


def reshape_tensor(graph: Graph, tensor: Tensor, shape: Shape, place: str) -> Tensor:
    """Reshapes a tensor.

    Raises:
        ValueError: if more than one of the new dimensions depends on the batch.
    """
    if tensor.shape == shape:
        return tensor
    sizes = [-1 if is_symbolic([size]) else size for size in shape]
    if sizes.count(-1) > 1:
        raise ValueError("a shape has more than one dimension that depends on the batch")
    target = graph.constant(np.array(sizes, np.int64), "shape")
    return graph.add("Reshape", [tensor, target], shape, tensor.dtype, place)


def transpose_tensor(graph: Graph, tensor: Tensor, order: Sequence[int], place: str) -> Tensor:
    """Transposes a tensor: axis i of the result is axis order[i]."""
    if list(order) == sorted(order):
        return tensor
    shape = tuple(tensor.shape[axis] for axis in order)
    return graph.add("Transpose", [tensor], shape, tensor.dtype, place, perm=list(order))


def expand_tensor(graph: Graph, tensor: Tensor, shape: Shape, place: str) -> Tensor:
    """Repeats a tensor along axes of size 1, so that it has a shape."""
    if tensor.shape == shape:
        return tensor
    sizes = [1 if old == new else new for old, new in zip(tensor.shape, shape, strict=True)]
    if not is_symbolic(sizes):
        target = graph.constant(np.array(sizes, np.int64), "shape")
    else:
        batch = graph.add("Shape", [graph.inputs[0]], (1,), np.int64, start=0, end=1)
        parts = []
        for size in sizes:
            parts.append(
                batch if size == BATCH else graph.constant(np.array([size // BATCH or size], np.int64), "size")
            )
            if is_symbolic([size]) and size != BATCH:
                parts[-1] = graph.add("Mul", [batch, parts[-1]], (1,), np.int64)
        target = graph.add("Concat", parts, (len(sizes),), np.int64, axis=0) if len(parts) > 1 else parts[0]
    return graph.add("Expand", [tensor, target], shape, tensor.dtype, place)


def arrange(graph: Graph, value: Operand, order: Sequence[int | None], place: str, *, exact: bool = False) -> Tensor:
    """Returns a value as a tensor whose axes are dimensions in an order, to be broadcast against others of this order.

    Args:
        graph: where operators that this needs are added.
        value: the value.
        order: for each axis, the dimension that it is to be; None: an axis of size 1. Dimensions that are left out have
            no axis of more than one element.
        place: of the operator that needs it.
        exact: the tensor is to have all these axes; else those of size 1 in front may be missing.
    """
    if isinstance(value, Constant):
        dims = [dim for dim in order if dim is not None]
        rest = [dim for dim in range(len(value.shape)) if dim not in dims]
        array = value.array.transpose([*rest, *dims])
        sizes = iter(array.shape[len(rest) :])
        array = array.reshape([1 if dim is None else next(sizes) for dim in order])
        while not exact and array.ndim and array.shape[0] == 1:
            array = array.reshape(array.shape[1:])
        return graph.constant(array, f"{place}/constant")
    tensor = value.tensor
    current = [dim if tensor.shape[axis] != 1 else None for axis, dim in enumerate(value.dimensions())]
    wanted = [dim if dim in current else None for dim in order]
    missing = len(wanted) - len(current)
    if (missing == 0 or (missing > 0 and not exact)) and [None] * missing + current == wanted:
        return tensor
    present = [dim for dim in wanted if dim is not None]
    spare = [axis for axis, dim in enumerate(current) if dim is None]
    moved = [current.index(dim) for dim in present]
    if moved != sorted(moved):
        if len(current) == len(wanted):  # axes of size 1 fill what is left, and nothing is to be reshaped afterwards
            free = iter(spare)
            moves = [next(free) if dim is None else current.index(dim) for dim in wanted]
            return transpose_tensor(graph, tensor, moves, place)
        tensor = transpose_tensor(graph, tensor, [*moved, *spare], place)
    shape = tuple(1 if dim is None else value.shape[dim] for dim in wanted)
    return reshape_tensor(graph, tensor, shape, place)


def materialize(graph: Graph, value: Operand, place: str, order: Sequence[int] | None = None) -> Tensor:
    """Returns a value as a tensor with all its dimensions, nothing left to repeat, in an order (None: their own)."""
    order = range(len(value.shape)) if order is None else order
    tensor = arrange(graph, value, order, place, exact=True)
    shape = tuple(value.shape[dim] for dim in order)
    if isinstance(value, Constant) and not is_symbolic(shape):
        return graph.constant(np.broadcast_to(graph.constants[tensor.name], shape), tensor.name)
    return expand_tensor(graph, tensor, shape, place)


def common_order(operands: Sequence[Operand], rank: int) -> list[int | None]:
    """Returns the order of axes in which the elements of values are best combined: that of the largest tensor.

    Dimensions that it lacks and another has go where its tensor has an axis of size 1; if there are not enough of
    these, all are in their own order.
    """
    values = [operand for operand in operands if isinstance(operand, Value)]
    largest = max(values, key=lambda value: math.prod(value.tensor.shape))
    needed = {dim for operand in operands for dim in range(rank) if operand.stored(dim) != 1}
    order: list[int | None] = [None if dim is None or largest.stored(dim) == 1 else dim for dim in largest.dimensions()]
    missing = sorted(needed - set(order))
    free = [axis for axis, dim in enumerate(order) if dim is None]
    if len(missing) > len(free):
        return list(range(rank))
    for axis, dim in zip(free, missing, strict=False):
        order[axis] = dim
    return order


def regroup(graph: Graph, value: Value, shape: Shape, place: str) -> Value:
    """Reshapes a value.

    Dimensions are divided into the smallest groups that are reshaped by themselves; the axes of a group are brought
    together and into order, and groups stay where they are. So what flattens positions leaves channels in front, and a
    shuffle of channels is a transpose of its own.
    """
    if any(axis is None and size != 1 for axis, size in zip(value.axes, value.shape, strict=True)):
        value = whole(materialize(graph, value, place))
    groups = _groups(value.shape, shape)
    position = {dim: axis for dim, axis in enumerate(value.axes) if axis is not None and value.shape[dim] != 1}
    if all(len(old) == len(new) == 1 for old, new in groups):  # only dimensions of size 1 come or go
        views = {new[0]: position[old[0]] for old, new in groups}
        return Value(value.tensor, tuple(views.get(dim) for dim in range(len(shape))), shape)
    groups.sort(key=lambda group: min(position[dim] for dim in group[0]))
    order = [position[dim] for old, _ in groups for dim in old]
    rest = [axis for axis in range(len(value.tensor.shape)) if axis not in order]  # of size 1
    tensor = value.tensor if order == sorted(order) else transpose_tensor(graph, value.tensor, [*order, *rest], place)
    dims = [dim for _, new in groups for dim in new]
    tensor = reshape_tensor(graph, tensor, tuple(shape[dim] for dim in dims), place)
    return Value(tensor, tuple(dims.index(dim) if dim in dims else None for dim in range(len(shape))), shape)


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Returns pairs of runs of dimensions with the same product, as short as they can be; without those of size 1."""
    before = [dim for dim, size in enumerate(old) if size != 1]
    after = [dim for dim, size in enumerate(new) if size != 1]
    groups = []
    while before:
        left, right = [before.pop(0)], [after.pop(0)]
        while (a := math.prod(old[dim] for dim in left)) != (b := math.prod(new[dim] for dim in right)):
            if a < b:
                left.append(before.pop(0))
            else:
                right.append(after.pop(0))
        groups.append((left, right))
    return groups
