"""Rules for convolutions, products of matrices, pooling and reductions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.export.elementwise import reduce_tensor
from vision_jax.export.graph import Tensor
from vision_jax.export.layout import Constant, Operand, Value, materialize, reshape_tensor
from vision_jax.export.rules import Equation, Rule


def _typed(equation: Equation, tensor: Tensor) -> Tensor:
    """Returns a tensor in the dtype of the equation's result."""
    if tensor.dtype == equation.dtype:
        return tensor
    return equation.graph.add("Cast", [tensor], tensor.shape, equation.dtype, equation.place, to=equation.dtype)


def _conv(equation: Equation, images: Operand, kernel: Operand) -> Sequence[Operand]:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    equation.require(all(factor == 1 for factor in params["lhs_dilation"]), "it is a transposed convolution")
    equation.require(params["batch_group_count"] == 1, "it groups the batch")
    equation.require(all(low >= 0 and high >= 0 for low, high in params["padding"]), "its padding is negative")
    equation.require(images.dtype == kernel.dtype, f"it combines {images.dtype} and {kernel.dtype}")
    inputs = [
        materialize(equation.graph, images, equation.place, numbers.lhs_spec),
        materialize(equation.graph, kernel, f"{equation.place}/kernel", numbers.rhs_spec),
    ]
    tensor = equation.graph.add(
        "Conv",
        inputs,
        tuple(equation.shape[dim] for dim in numbers.out_spec),
        images.dtype,
        equation.place,
        kernel_shape=list(inputs[1].shape[2:]),
        strides=list(params["window_strides"]),
        pads=[low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    axes = tuple(numbers.out_spec.index(dim) for dim in range(len(equation.shape)))
    return [Value(_typed(equation, tensor), axes, equation.shape)]


def _dot(equation: Equation, left: Operand, right: Operand) -> Sequence[Operand]:
    (contract_left, contract_right), (batch_left, batch_right) = equation.params["dimension_numbers"]
    if isinstance(left, Constant) and isinstance(right, Value) and not batch_left:  # constants are best on the right
        result = _product(equation, right, left, (contract_right, contract_left), ((), ()))
        count = len(right.shape) - len(contract_right)
        axes = [*range(count, len(equation.shape)), *range(count)]
        return [Value(result, tuple(axes), equation.shape)]
    contract, batch = (contract_left, contract_right), (batch_left, batch_right)
    free = [
        [dim for dim in range(len(operand.shape)) if dim not in contract[side] and dim not in batch[side]]
        for side, operand in enumerate((left, right))
    ]

    def fitting(first: int, second: int) -> int:
        """Returns how many operands need not be transposed if these are left and right."""
        orders = ((first, [*free[first], *contract[first]]), (second, [*contract[second], *free[second]]))
        return sum(_is_in_order((left, right)[side], [*batch[side], *order]) for side, order in orders)

    if isinstance(right, Value) and fitting(1, 0) > fitting(0, 1):  # the transposed product
        tensor = _product(equation, right, left, contract[::-1], batch[::-1])
        groups, rows, columns = len(batch[0]), len(free[1]), len(free[0])
        axes = [*range(groups), *range(groups + rows, groups + rows + columns), *range(groups, groups + rows)]
        return [Value(tensor, tuple(axes), equation.shape)]
    tensor = _product(equation, left, right, contract, batch)
    return [Value(tensor, tuple(range(len(equation.shape))), equation.shape)]


def _is_in_order(operand: Operand, order: Sequence[int]) -> bool:
    """Returns whether the axes of a value's tensor are its dimensions in an order."""
    if isinstance(operand, Constant):
        return True
    axes = [axis for dim in order if (axis := operand.axes[dim]) is not None]
    return axes == sorted(axes)


def _product(equation: Equation, left: Operand, right: Operand, contract: Any, batch: Any) -> Tensor:
    """Returns a product, whose axes are those of the batch, then what is free on the left, then on the right."""
    graph, place = equation.graph, equation.place
    free = [
        [dim for dim in range(len(operand.shape)) if dim not in contract[side] and dim not in batch[side]]
        for side, operand in enumerate((left, right))
    ]
    tensors = [
        materialize(graph, left, place, [*batch[0], *free[0], *contract[0]]),
        materialize(graph, right, f"{place}/kernel", [*batch[1], *contract[1], *free[1]]),
    ]
    groups = tuple(left.shape[dim] for dim in batch[0])
    rows, columns = (tuple(x.shape[dim] for dim in dims) for x, dims in zip((left, right), free, strict=True))
    depth = math.prod(left.shape[dim] for dim in contract[0])
    # A matrix on the right serves any number of dimensions on the left.
    merged = rows if not groups and rows else (math.prod(rows),)
    tensors[0] = reshape_tensor(graph, tensors[0], (*groups, *merged, depth), place)
    if isinstance(right, Constant):
        array = graph.constants[tensors[1].name].reshape(*groups, depth, math.prod(columns))
        tensors[1] = graph.constant(array, f"{place}/kernel") if array.shape != tensors[1].shape else tensors[1]
    else:
        tensors[1] = reshape_tensor(graph, tensors[1], (*groups, depth, math.prod(columns)), place)
    product = graph.add("MatMul", tensors, (*groups, *merged, math.prod(columns)), left.dtype, place)
    return reshape_tensor(graph, _typed(equation, product), (*groups, *rows, *columns), place)


def _reduction(op: str) -> Rule:
    def rule(equation: Equation, value: Value) -> Sequence[Operand]:
        dims = equation.params["axes"]
        axes = [axis for dim in dims if (axis := value.axes[dim]) is not None and value.shape[dim] != 1]
        repeated = [value.shape[dim] for dim in dims if value.axes[dim] is None]
        equation.require(op != "ReduceSum" or math.prod(repeated) == 1, "it adds up what is repeated")
        tensor = reduce_tensor(equation.graph, op, value.tensor, axes, equation.place) if axes else value.tensor
        kept = [axis for dim, axis in enumerate(value.axes) if dim not in dims]
        return [Value(tensor, tuple(kept), equation.shape)]

    return rule


def _pool(equation: Equation, value: Value, op: str, **attributes: Any) -> Value:
    params = equation.params
    window, pads, strides = params["window_dimensions"], params["padding"], params["window_strides"]
    outer = [dim for dim, size in enumerate(window) if size == 1 and strides[dim] == 1 and tuple(pads[dim]) == (0, 0)]
    equation.require(all(factor == 1 for factor in params["base_dilation"]), "it spreads its input")
    equation.require(len(outer) >= 2, "it pools over the batch or channels")
    position = [-1 if axis is None else axis for axis in value.axes]
    outer = (
        sorted(outer, key=lambda dim: position[dim])[:2] if len(outer) > 2 else sorted(outer, key=position.__getitem__)
    )
    inner = [dim for dim in range(len(window)) if dim not in outer]
    order = [*outer, *inner]
    tensor = equation.graph.add(
        op,
        [materialize(equation.graph, value, equation.place, order)],
        tuple(equation.shape[dim] for dim in order),
        equation.dtype,
        equation.place,
        kernel_shape=[window[dim] for dim in inner],
        strides=[strides[dim] for dim in inner],
        pads=[pads[dim][0] for dim in inner] + [pads[dim][1] for dim in inner],
        **attributes,
    )
    return Value(tensor, tuple(order.index(dim) for dim in range(len(order))), equation.shape)


def _max_pool(equation: Equation, value: Value) -> Sequence[Operand]:
    dilations = [factor for factor in equation.params["window_dilation"] if factor != 1]
    equation.require(not dilations, "its window is dilated")
    return [_pool(equation, value, "MaxPool")]


def _sum_pool(equation: Equation, value: Value) -> Sequence[Operand]:
    """The sum over a window is its mean times its size, padding included."""
    equation.require(all(factor == 1 for factor in equation.params["window_dilation"]), "its window is dilated")
    mean = _pool(equation, value, "AveragePool", count_include_pad=1)
    size = equation.graph.constant(np.asarray(math.prod(equation.params["window_dimensions"]), mean.dtype), "size")
    tensor = equation.graph.add("Mul", [mean.tensor, size], mean.tensor.shape, mean.dtype, equation.place)
    return [Value(tensor, mean.axes, mean.shape)]


RULES: Mapping[str, Rule] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_window_max": _max_pool,
    "reduce_window_sum": _sum_pool,
}
