"""Rules for what is computed of each element by itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.export.graph import Node, Tensor
from vision_jax.export.layout import Constant, Operand, Value, arrange, common_order
from vision_jax.export.rules import Equation, Rule

_UNARY = {
    "abs": "Abs",
    "ceil": "Ceil",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "not": "Not",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "pow": "Pow"}
_COMPARISONS = {"eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"}
_NUMPY: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in ("abs", "ceil", "exp", "floor", "log", "sign", "sqrt", "square", "tanh")},
    "add": np.add,
    "div": np.divide,
    "eq": np.equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sub": np.subtract,
}


def _ranked(operand: Operand, rank: int) -> Operand:
    """Returns a scalar as a value of that many dimensions, and other values as they are."""
    if operand.shape:
        return operand
    if isinstance(operand, Constant):
        return Constant(operand.array.reshape((1,) * rank), (1,) * rank)
    return Value(operand.tensor, (None,) * rank, (1,) * rank)


def combine(equation: Equation, op: str, *operands: Operand, dtype: Any = None, **attributes: Any) -> Value:
    """Writes an operator of elements, whose operands are broadcast against each other.

    Args:
        equation: that it is for, whose result has the same shape.
        op: the operator.
        *operands: of which at least one depends on the images.
        dtype: of the result; None: the equation's.
        **attributes: of the operator.
    """
    graph, rank = equation.graph, len(equation.shape)
    ranked = [_ranked(operand, rank) for operand in operands]
    order = common_order(ranked, rank)
    tensors = [arrange(graph, operand, order, equation.place) for operand in ranked]
    shape = tuple(1 if dim is None else max(operand.stored(dim) for operand in ranked) for dim in order)
    tensor = graph.add(op, tensors, shape, dtype or equation.dtype, equation.place, **attributes)
    return Value(tensor, tuple(order.index(dim) if dim in order else None for dim in range(rank)), equation.shape)


def unary(equation: Equation, op: str, value: Value, dtype: Any = None, **attributes: Any) -> Value:
    """Writes an operator of the elements of one value."""
    tensor = equation.graph.add(
        op, [value.tensor], value.tensor.shape, dtype or value.dtype, equation.place, **attributes
    )
    return Value(tensor, value.axes, value.shape)


def _like(value: Value, number: float) -> Constant:
    """Returns a number to combine with a value."""
    return Constant(np.asarray(number, value.dtype).reshape((1,) * len(value.shape)), (1,) * len(value.shape))


def scalar_of(operand: Operand) -> float | None:
    """Returns the number that all elements of a constant are; None: there is none."""
    if isinstance(operand, Constant) and operand.array.size == 1:
        return float(operand.array.reshape(()))
    return None


def _max(equation: Equation, x: Operand, y: Operand) -> Sequence[Operand]:
    for value, other in ((x, y), (y, x)):
        if isinstance(value, Value) and scalar_of(other) == 0:
            return [unary(equation, "Relu", value)]
        if scalar_of(other) == -math.inf:  # where a maximum over axes begins
            return [value]
    return [combine(equation, "Max", x, y)]


def _min(equation: Equation, x: Operand, y: Operand) -> Sequence[Operand]:
    graph = equation.graph
    for value, other in ((x, y), (y, x)):
        bound = scalar_of(other)
        if isinstance(value, Value) and bound is not None and (relu := graph.produced_by(value.tensor, "Relu")):
            before = Value(graph.tensors[relu.inputs[0]], value.axes, value.shape)
            bounds = [graph.constant(np.asarray(number, value.dtype), "bound") for number in (0, bound)]
            shape = before.tensor.shape
            tensor = graph.add("Clip", [before.tensor, *bounds], shape, value.dtype, equation.place)
            return [Value(tensor, value.axes, value.shape)]
    return [combine(equation, "Min", x, y)]


def _div(equation: Equation, x: Operand, y: Operand) -> Sequence[Operand]:
    if isinstance(x, Value):
        found = _mean(equation, x, scalar_of(y)) if isinstance(y, Constant) else _softmax(equation, x, y)
        if found is not None:
            return [Value(found, x.axes, x.shape)]
    return [combine(equation, "Div", x, y)]


def _mean(equation: Equation, x: Value, count: float | None) -> Tensor | None:
    """Returns the mean that a sum over axes becomes when it is divided by the number of elements; None: it does not."""
    graph = equation.graph
    node = graph.produced_by(x.tensor, "ReduceSum")
    if node is None:
        return None
    source, axes = graph.tensors[node.inputs[0]], reduced_axes(graph, node)
    if math.prod(source.shape[axis] for axis in axes) != count:
        return None
    if axes == list(range(2, len(source.shape))) and len(axes) == 2:
        return graph.add("GlobalAveragePool", [source], x.tensor.shape, x.dtype, equation.place)
    return reduce_tensor(graph, "ReduceMean", source, axes, equation.place)


def _softmax(equation: Equation, x: Value, y: Value) -> Tensor | None:
    """Returns the softmax that a quotient is: exp(z - max z) divided by its sum; None: it is none."""
    graph = equation.graph
    exp, total = graph.produced_by(x.tensor, "Exp"), graph.produced_by(y.tensor, "ReduceSum")
    if exp is None or total is None or total.inputs[0] != x.tensor.name:
        return None
    difference = graph.produced_by(exp.inputs[0], "Sub")
    largest = graph.produced_by(difference.inputs[1], "ReduceMax") if difference else None
    if difference is None or largest is None or largest.inputs[0] != difference.inputs[0]:
        return None
    axes = reduced_axes(graph, total)
    if len(axes) != 1 or axes != reduced_axes(graph, largest):
        return None
    source = graph.tensors[difference.inputs[0]]
    return graph.add("Softmax", [source], source.shape, source.dtype, equation.place, axis=axes[0])


def reduce_tensor(graph: Any, op: str, tensor: Tensor, axes: Sequence[int], place: str) -> Tensor:
    """Reduces axes of a tensor, which then have size 1."""
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(tensor.shape))
    if op == "ReduceSum" or graph.opset >= 18:  # before, axes were an attribute, but for sums
        given = graph.constant(np.array(sorted(axes), np.int64), "axes")
        return graph.add(op, [tensor, given], shape, tensor.dtype, place, keepdims=1)
    return graph.add(op, [tensor], shape, tensor.dtype, place, keepdims=1, axes=sorted(axes))


def reduced_axes(graph: Any, node: Node) -> list[int]:
    """Returns the axes that an operator of `reduce_tensor` reduces."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"])
    return graph.constants[node.inputs[1]].tolist()


def _rsqrt(equation: Equation, x: Value) -> Sequence[Operand]:
    return [unary(equation, "Reciprocal", unary(equation, "Sqrt", x))]


def _erfc(equation: Equation, x: Value) -> Sequence[Operand]:
    return [combine(equation, "Add", unary(equation, "Erf", unary(equation, "Neg", x)), _like(x, 1))]


def _integer_pow(equation: Equation, x: Value) -> Sequence[Operand]:
    exponent = equation.params["y"]
    if exponent == 2:
        return [combine(equation, "Mul", x, x)]
    if exponent == -1:
        return [unary(equation, "Reciprocal", x)]
    return [combine(equation, "Pow", x, _like(x, exponent))]


def _cast(equation: Equation, x: Value) -> Sequence[Operand]:
    return [x if x.dtype == equation.dtype else unary(equation, "Cast", x, equation.dtype, to=equation.dtype)]


def _select(equation: Equation, which: Operand, *cases: Operand) -> Sequence[Operand]:
    equation.require(which.dtype == bool and len(cases) == 2, f"it selects among {len(cases)} by {which.dtype}")
    return [combine(equation, "Where", which, cases[1], cases[0])]


def _clamp(equation: Equation, low: Operand, x: Operand, high: Operand) -> Sequence[Operand]:
    return [combine(equation, "Min", combine(equation, "Max", x, low), high)]


def _ne(equation: Equation, x: Operand, y: Operand) -> Sequence[Operand]:
    return [unary(equation, "Not", combine(equation, "Equal", x, y))]


def _logical(op: str) -> Rule:
    def rule(equation: Equation, x: Operand, y: Operand) -> Sequence[Operand]:
        equation.require(equation.dtype == bool, f"it is of {equation.dtype}, and only bool is known")
        return [combine(equation, op, x, y)]

    return rule


def _identity(equation: Equation, *operands: Operand) -> Sequence[Operand]:
    return operands


def _unary_rule(op: str) -> Rule:
    return lambda equation, x: [unary(equation, op, x)]


def _binary_rule(op: str) -> Rule:
    return lambda equation, x, y: [combine(equation, op, x, y)]


IDENTITIES = ("copy", "copy_p", "stop_gradient", "optimization_barrier", "sharding_constraint", "name")

RULES: Mapping[str, Rule] = {
    **{name: _unary_rule(op) for name, op in _UNARY.items()},
    **{name: _binary_rule(op) for name, op in {**_BINARY, **_COMPARISONS}.items()},
    **dict.fromkeys(IDENTITIES, _identity),
    "and": _logical("And"),
    "clamp": _clamp,
    "convert_element_type": _cast,
    "div": _div,
    "erfc": _erfc,
    "integer_pow": _integer_pow,
    "max": _max,
    "min": _min,
    "ne": _ne,
    "or": _logical("Or"),
    "rsqrt": _rsqrt,
    "select_n": _select,
    "square": lambda equation, x: [combine(equation, "Mul", x, x)],
}


def _fold(equation: Equation, *operands: Constant) -> Constant:
    """Computes an equation of constants, whose elements stay repeated where they are."""
    rank = len(equation.shape)
    arrays = [_ranked(operand, rank).array for operand in operands]  # type: ignore[union-attr]
    with np.errstate(all="ignore"):  # JAX says nothing of infinities either
        return Constant(np.asarray(_NUMPY[equation.name](*arrays), equation.dtype), equation.shape)


def _fold_cast(equation: Equation, operand: Constant) -> Constant:
    with np.errstate(all="ignore"):
        return Constant(operand.array.astype(equation.dtype), operand.shape)


def _fold_select(equation: Equation, which: Constant, *cases: Constant) -> Constant | None:
    if which.dtype != bool or len(cases) != 2:
        return None
    rank = len(equation.shape)
    condition, no, yes = (_ranked(operand, rank).array for operand in (which, *cases))  # type: ignore[union-attr]
    return Constant(np.where(condition, yes, no), equation.shape)


FOLDS: Mapping[str, Callable[..., Constant | None]] = {
    **dict.fromkeys(_NUMPY, _fold),
    **dict.fromkeys(IDENTITIES, lambda equation, operand: operand),
    "convert_element_type": _fold_cast,
    "select_n": _fold_select,
}
