"""Rules for what rearranges, cuts and joins values."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.export.graph import Graph, Shape, Tensor
from vision_jax.export.layout import Constant, Operand, Value, constant, is_symbolic, materialize, regroup, whole
from vision_jax.export.rules import Equation, Rule, Unsupported


def full_order(value: Value) -> list[int]:
    """Returns an order of all dimensions of a value, in which its tensor need not be transposed, if that can be."""
    dims = value.dimensions()
    missing = [dim for dim in range(len(value.shape)) if dim not in dims]
    if missing and len(missing) != dims.count(None):
        return list(range(len(value.shape)))
    left = iter(missing)
    return [next(left) if dim is None else dim for dim in dims if dim is not None or missing]


def in_order(tensor: Tensor, order: Sequence[int]) -> Value:
    """Returns the value of a tensor whose axes are its dimensions in an order."""
    return Value(
        tensor,
        tuple(order.index(dim) for dim in range(len(order))),
        tuple(tensor.shape[order.index(dim)] for dim in range(len(order))),
    )


def with_axes(graph: Graph, value: Operand, place: str) -> Value:
    """Returns a value that has an axis for each dimension, and nothing that is left to repeat."""
    order = full_order(value) if isinstance(value, Value) else list(range(len(value.shape)))
    return in_order(materialize(graph, value, place, order), order)


def cut(graph: Graph, value: Value, dim: int, start: int, stop: int, place: str, step: int = 1) -> Value:
    """Returns the part of a value from `start` to `stop` of a dimension, each `step`."""
    shape = list(value.shape)
    shape[dim] = -(-(stop - start) // step)
    axis = value.axes[dim]
    if axis is None or shape[dim] == value.shape[dim]:
        return dataclasses.replace(value, shape=tuple(shape))
    sizes = list(value.tensor.shape)
    sizes[axis] = shape[dim]
    numbers = [graph.constant(np.array([number], np.int64), "slice") for number in (start, stop, axis, step)]
    tensor = graph.add("Slice", [value.tensor, *numbers], tuple(sizes), value.dtype, place)
    return Value(tensor, value.axes, tuple(shape))


def drop(value: Value, dims: Sequence[int]) -> Value:
    """Returns a value without dimensions of size 1."""
    kept = [dim for dim in range(len(value.shape)) if dim not in dims]
    return Value(value.tensor, tuple(value.axes[dim] for dim in kept), tuple(value.shape[dim] for dim in kept))


def row(graph: Graph, operand: Operand, number: int, place: str) -> Operand:
    """Returns an element of the first dimension."""
    if isinstance(operand, Value):
        return drop(cut(graph, operand, 0, number, number + 1, place), [0])
    array = operand.array[number if operand.array.shape[0] > 1 else 0]
    return Constant(array, operand.shape[1:])


def stack(graph: Graph, rows: list[Operand], place: str) -> Operand:
    """Returns values one after the other, by a new first dimension."""
    arrays = [item.whole() for item in rows if isinstance(item, Constant)]
    if len(arrays) == len(rows) and all(array is not None for array in arrays):
        return constant(np.stack(arrays))  # type: ignore[arg-type]
    tensors = []
    for item in rows:
        value = item if isinstance(item, Value) else with_axes(graph, item, place)
        longer = Value(value.tensor, (None, *value.axes), (1, *value.shape))
        tensors.append(materialize(graph, longer, place))
    shape = (len(rows), *tensors[0].shape[1:])
    return whole(graph.add("Concat", tensors, shape, tensors[0].dtype, place, axis=0))


def _reshape(equation: Equation, value: Value) -> Sequence[Operand]:
    equation.require(equation.params.get("dimensions") is None, "it transposes as it reshapes")
    try:
        return [regroup(equation.graph, value, equation.shape, equation.place)]
    except (ValueError, IndexError) as error:
        raise Unsupported(f"{value.shape} becomes {equation.shape}: {error}") from error


def _transpose(equation: Equation, value: Value) -> Sequence[Operand]:
    order = equation.params["permutation"]
    return [Value(value.tensor, tuple(value.axes[dim] for dim in order), equation.shape)]


def _broadcast(equation: Equation, value: Value) -> Sequence[Operand]:
    axes: list[int | None] = [None] * len(equation.shape)
    for dim, target in enumerate(equation.params["broadcast_dimensions"]):
        if value.shape[dim] != 1:
            axes[target] = value.axes[dim]
    return [Value(value.tensor, tuple(axes), equation.shape)]


def _squeeze(equation: Equation, value: Value) -> Sequence[Operand]:
    return [drop(value, equation.params["dimensions"])]


def _concatenate(equation: Equation, *operands: Operand) -> Sequence[Operand]:
    values = [operand for operand in operands if isinstance(operand, Value)]
    order = full_order(max(values, key=lambda value: np.prod(value.tensor.shape, dtype=float)))
    tensors = [materialize(equation.graph, operand, equation.place, order) for operand in operands]
    axis = order.index(equation.params["dimension"])
    shape = tuple(equation.shape[dim] for dim in order)
    tensor = equation.graph.add("Concat", tensors, shape, equation.dtype, equation.place, axis=axis)
    return [in_order(tensor, order)]


def _stack(equation: Equation, *operands: Operand) -> Sequence[Operand]:
    """Writes a concatenation along a new dimension."""
    axis = equation.params["axis"]

    def with_axis(operand: Operand) -> Operand:
        shape = (*operand.shape[:axis], 1, *operand.shape[axis:])
        if isinstance(operand, Constant):
            return Constant(np.expand_dims(operand.array, axis), shape)
        return Value(operand.tensor, (*operand.axes[:axis], None, *operand.axes[axis:]), shape)

    described = dataclasses.replace(equation, name="concatenate", params={"dimension": axis})
    return _concatenate(described, *map(with_axis, operands))


def _split(equation: Equation, value: Value) -> Sequence[Operand]:
    graph, dim, sizes = equation.graph, equation.params["axis"], [int(size) for size in equation.params["sizes"]]
    axis = value.axes[dim]
    if axis is None:
        return [Value(value.tensor, value.axes, shape) for shape in equation.shapes]
    shapes = [tuple(size if a == axis else s for a, s in enumerate(value.tensor.shape)) for size in sizes]
    given = graph.constant(np.array(sizes, np.int64), "sizes")
    tensors = graph.add_several("Split", [value.tensor, given], shapes, value.dtype, equation.place, axis=axis)
    return [Value(tensor, value.axes, shape) for tensor, shape in zip(tensors, equation.shapes, strict=True)]


def _slice(equation: Equation, value: Value) -> Sequence[Operand]:
    strides = equation.params["strides"] or (1,) * len(value.shape)
    bounds = zip(equation.params["start_indices"], equation.params["limit_indices"], strides, strict=True)
    for dim, (start, stop, step) in enumerate(bounds):
        value = cut(equation.graph, value, dim, start, stop, equation.place, step)
    return [value]


def _starts(equation: Equation, indices: Any, shape: Shape, sizes: Sequence[int]) -> list[int]:
    """Returns where a slice begins, which is moved so that it lies within the value."""
    return [min(max(int(index), 0), shape[dim] - sizes[dim]) for dim, index in enumerate(indices)]


def _dynamic_slice(equation: Equation, value: Operand, *starts: Operand) -> Sequence[Operand]:
    equation.require(isinstance(value, Value) and all(isinstance(x, Constant) for x in starts), "it starts anywhere")
    sizes = equation.params["slice_sizes"]
    indices = [x.array.reshape(()) for x in starts]  # type: ignore[union-attr]
    for dim, start in enumerate(_starts(equation, indices, value.shape, sizes)):
        value = cut(equation.graph, value, dim, start, start + sizes[dim], equation.place)  # type: ignore[arg-type]
    return [value]


def _gather(equation: Equation, value: Operand, indices: Operand) -> Sequence[Operand]:
    """Indices that are known: of one slice, or of rows along one dimension."""
    equation.require(isinstance(value, Value) and isinstance(indices, Constant), "its indices depend on the images")
    assert isinstance(value, Value)
    assert isinstance(indices, Constant)
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    found = np.broadcast_to(indices.array, indices.shape)
    equation.require(not numbers.operand_batching_dims and found.ndim <= 2, "its indices have several dimensions")
    columns = dict(zip(numbers.start_index_map, found.reshape(-1, found.shape[-1]).T, strict=True))
    along = [dim for dim, column in columns.items() if (column != column[0]).any()]
    if found.ndim == 2 and not along:
        along = [dim for dim in columns if dim in numbers.collapsed_slice_dims][:1]
    starts = [0 if dim in along or dim not in columns else columns[dim][0] for dim in range(len(sizes))]
    for dim, start in enumerate(_starts(equation, starts, value.shape, sizes)):
        if dim not in along:
            value = cut(equation.graph, value, dim, start, start + sizes[dim], equation.place)
    if found.ndim == 1:
        return [drop(value, numbers.collapsed_slice_dims)]
    equation.require(len(along) == 1 and along[0] in numbers.collapsed_slice_dims, "it is not along one dimension")
    return [_rows(equation, value, along[0], columns[along[0]])]


def _rows(equation: Equation, value: Value, dim: int, numbers: np.ndarray) -> Value:
    """Returns the rows of given numbers along a dimension, where a gather has them."""
    value = with_axes(equation.graph, value, equation.place)
    axis = value.axes[dim]
    given = equation.graph.constant(np.clip(numbers, 0, value.shape[dim] - 1).astype(np.int64), "indices")
    shape = tuple(len(numbers) if a == axis else size for a, size in enumerate(value.tensor.shape))
    tensor = equation.graph.add("Gather", [value.tensor, given], shape, value.dtype, equation.place, axis=axis)
    layout = equation.params["dimension_numbers"]
    others = iter(a for d, a in enumerate(value.axes) if d not in layout.collapsed_slice_dims)
    axes = [next(others) if d in layout.offset_dims else axis for d in range(len(equation.shape))]
    return Value(tensor, tuple(axes), equation.shape)


def _pad(equation: Equation, value: Operand, filling: Operand) -> Sequence[Operand]:
    config = equation.params["padding_config"]
    equation.require(isinstance(value, Value) and isinstance(filling, Constant), "what it pads with is not known")
    assert isinstance(value, Value)
    assert isinstance(filling, Constant)
    equation.require(all(interior == 0 for _, _, interior in config), "it pads between elements")
    if any(value.axes[dim] is None and (low or high) for dim, (low, high, _) in enumerate(config)):
        value = with_axes(equation.graph, value, equation.place)
    for dim, (low, high, _) in enumerate(config):
        if low < 0 or high < 0:
            value = cut(equation.graph, value, dim, max(0, -low), value.shape[dim] + min(0, high), equation.place)
    pads = np.zeros((2, len(value.tensor.shape)), np.int64)
    for dim, (low, high, _) in enumerate(config):
        if low > 0 or high > 0:
            pads[:, value.axes[dim]] = max(0, low), max(0, high)
    if not pads.any():
        return [value]
    shape = tuple(
        size if is_symbolic([size]) else size + int(pads[:, a].sum()) for a, size in enumerate(value.tensor.shape)
    )
    given = [
        equation.graph.constant(pads.reshape(-1), "pads"),
        equation.graph.constant(filling.array.reshape(()), "pad"),
    ]
    tensor = equation.graph.add("Pad", [value.tensor, *given], shape, value.dtype, equation.place, mode="constant")
    return [Value(tensor, value.axes, equation.shape)]


RULES: Mapping[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
}


def _fold_reshape(equation: Equation, operand: Constant) -> Constant | None:
    if equation.params.get("dimensions") is not None:
        return None
    array = operand.whole()
    if array is not None:
        return constant(array.reshape(equation.shape))
    sizes = [size for size in operand.shape if size != 1]
    if sizes != [size for size in equation.shape if size != 1]:
        return None
    kept = iter(operand.array.shape[dim] for dim, size in enumerate(operand.shape) if size != 1)
    return Constant(operand.array.reshape([1 if size == 1 else next(kept) for size in equation.shape]), equation.shape)


def _fold_broadcast(equation: Equation, operand: Constant) -> Constant:
    sizes = [1] * len(equation.shape)
    for dim, target in enumerate(equation.params["broadcast_dimensions"]):
        sizes[target] = operand.array.shape[dim]
    return Constant(operand.array.reshape(sizes), equation.shape)


def _fold_transpose(equation: Equation, operand: Constant) -> Constant:
    return Constant(operand.array.transpose(equation.params["permutation"]), equation.shape)


def _fold_squeeze(equation: Equation, operand: Constant) -> Constant:
    return Constant(operand.array.squeeze(tuple(equation.params["dimensions"])), equation.shape)


FOLDS: Mapping[str, Callable[..., Constant | None]] = {
    "broadcast_in_dim": _fold_broadcast,
    "reshape": _fold_reshape,
    "squeeze": _fold_squeeze,
    "transpose": _fold_transpose,
}
