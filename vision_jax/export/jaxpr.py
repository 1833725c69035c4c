"""From a traced function to a graph: calls are inlined, and what does not depend on the images is computed."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from jax.extend import core

from vision_jax.errors import ConfigError
from vision_jax.export import elementwise, products, shapes
from vision_jax.export.graph import BATCH, Graph, Shape
from vision_jax.export.layout import Constant, Operand, constant, is_symbolic, materialize, whole
from vision_jax.export.rules import Equation, Rule, Unsupported

RULES: Mapping[str, Rule] = {**elementwise.RULES, **shapes.RULES, **products.RULES}

# Primitives that call a function, and the parameter that holds it. What they add for derivatives, memory and sharding
# does not matter here. Names change between versions of JAX: `pjit` has become `jit`, and `checkpoint` is `remat2`.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}


def trace(
    function: Callable[[jax.Array], Any],
    shape: Sequence[int],
    dtype: Any,
    opset: int,
    model: str,
    outputs: Sequence[str] = ("logits",),
) -> Graph:
    """Writes a function of images as a graph.

    Args:
        function: from images to one array, or a tuple of them, to be traced.
        shape: of the images; the first dimension is the batch: 0, if it is to be of any size.
        dtype: of the images.
        opset: the version of ONNX's operators.
        model: its name, for errors.
        outputs: the names of what the function gives.

    Returns:
        the graph, with these outputs.

    Raises:
        ConfigError: if an operation cannot be written; it names the operation, and where in the model it is.
    """
    batch = None if shape[0] else jax_export.symbolic_shape("batch")[0]
    images = jax.ShapeDtypeStruct((batch if batch is not None else shape[0], *shape[1:]), dtype)
    closed = jax.make_jaxpr(function)(images)
    writer = _Writer(Graph(opset), batch, model)
    given = writer.graph.input("images", writer.shape(images.shape), dtype)
    results = writer.run(closed.jaxpr, closed.consts, [whole(given)], "")
    for name, result in zip(outputs, results, strict=True):
        writer.graph.finish(materialize(writer.graph, result, name), name)
    return writer.graph


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes the equations of a function.

    Attributes:
        graph: to which their operators are added.
        batch: the symbol that stands for the batch; None: it is fixed.
        model: its name.
    """

    graph: Graph
    batch: Any
    model: str

    def shape(self, dimensions: Sequence[Any]) -> Shape:
        """Returns a shape of integers; see `BATCH`."""
        return tuple(self.size(dimension) for dimension in dimensions)

    def size(self, dimension: Any) -> int:
        """Returns a dimension as an integer."""
        if isinstance(dimension, int | np.integer):
            return int(dimension)
        factor = dimension // self.batch
        if not isinstance(factor, int | np.integer) or factor * self.batch != dimension:
            raise Unsupported(f"a dimension is {dimension}, which is no multiple of the batch")
        return int(factor) * BATCH

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Operand], place: str) -> list[Operand]:
        """Writes a function, and returns its results."""
        known: dict[Any, Operand] = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))

        def read(variable: Any) -> Operand:
            if isinstance(variable, core.Literal):
                return constant(np.asarray(variable.val, variable.aval.dtype))  # type: ignore[attr-defined]
            return known[variable]

        for equation in jaxpr.eqns:
            inner = _inside(place, str(equation.source_info.name_stack))
            try:
                results = self.write(equation, [read(variable) for variable in equation.invars], inner)
            except (Unsupported, NotImplementedError) as error:
                raise ConfigError(
                    f"{self.model} cannot be exported: {error} ({equation.primitive} in {inner or 'the model'})."
                ) from error
            known.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def write(self, equation: Any, operands: list[Operand], place: str) -> list[Operand]:
        """Writes an equation, and returns its results."""
        name = equation.primitive.name
        if name == "dim_as_value":
            raise Unsupported("it computes with the number of images, which has to be fixed, by --batch")
        if name in _CALLS:
            function = equation.params[_CALLS[name]]
            consts = getattr(function, "consts", ())
            return self.run(getattr(function, "jaxpr", function), consts, operands, place)
        if name == "scan":
            return self.unroll(equation.params, operands, place)
        outputs: list[Any] = [variable.aval for variable in equation.outvars]
        described = Equation(
            self.graph,
            name,
            {key: self.sizes(value) for key, value in equation.params.items()},
            tuple(self.shape(aval.shape) for aval in outputs),
            tuple(aval.dtype for aval in outputs),
            place,
        )
        if all(isinstance(operand, Constant) for operand in operands):
            folded = self.fold(equation, described, operands)
            if folded is not None:
                return folded
            operands = [whole(materialize(self.graph, operands[0], place)), *operands[1:]]
        if name not in RULES:
            raise Unsupported("there is no ONNX operator for it here")
        return list(RULES[name](described, *operands))

    def sizes(self, value: Any) -> Any:
        """Returns a parameter in which dimensions are integers."""
        if isinstance(value, tuple) and type(value) is tuple:
            return tuple(self.sizes(part) for part in value)
        return self.size(value) if self.batch is not None and jax_export.is_symbolic_dim(value) else value

    def fold(self, equation: Any, described: Equation, operands: Sequence[Any]) -> list[Operand] | None:
        """Computes an equation of constants; None: its result has as many elements as the batch says."""
        if described.name in elementwise.FOLDS or described.name in shapes.FOLDS:
            fold = elementwise.FOLDS.get(described.name) or shapes.FOLDS[described.name]
            result = fold(described, *operands)
            return None if result is None else [result]
        arrays = [operand.whole() for operand in operands]
        if described.name.startswith("reduce_window_"):  # of a map of ones, to count what a window holds
            arrays = [_of_one_example(described, operand) for operand in operands]
        elif any(map(is_symbolic, described.shapes)):
            return None
        if any(array is None for array in arrays):
            return None
        with jax.default_device(jax.devices("cpu")[0]):
            results = equation.primitive.bind(*arrays, **equation.params)
        results = results if equation.primitive.multiple_results else [results]
        return [Constant(np.asarray(x), shape) for x, shape in zip(results, described.shapes, strict=True)]

    def unroll(self, params: Mapping[str, Any], operands: list[Operand], place: str) -> list[Operand]:
        """Writes a loop whose number of steps is known, step by step, as `jax.lax.scan` describes it."""
        if "ft_in" in params:  # JAX 0.12
            fixed, carry, inputs = map(list, params["ft_in"].update(operands).unpack())
        else:
            first, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
            fixed, carry, inputs = operands[:first], operands[first:carried], operands[carried:]
        count, body = len(carry), params["jaxpr"]
        steps = range(params["length"])
        rows: list[list[Operand]] = []
        for step in reversed(steps) if params["reverse"] else steps:
            of_step = [shapes.row(self.graph, operand, step, place) for operand in inputs]
            results = self.run(body.jaxpr, body.consts, [*fixed, *carry, *of_step], f"{place}/{step}")
            carry = results[:count]
            rows.append(results[count:])
        if params["reverse"]:
            rows.reverse()
        stacked = [shapes.stack(self.graph, list(parts), place) for parts in zip(*rows, strict=True)]
        return [*carry, *stacked]


def _inside(place: str, scopes: str) -> str:
    """Returns a place within another. Names of classes, which flax adds for each method, are left out."""
    parts = [part for part in scopes.split("/") if part and not re.fullmatch(r"[A-Z]\w*(\.\w+)?", part)]
    return "/".join([*([place] if place else []), *parts])


def _of_one_example(equation: Equation, operand: Constant) -> np.ndarray | None:
    """Returns what is pooled, of one example if all of them are the same; None: windows extend over the batch."""
    for size, window in zip(operand.shape, equation.params["window_dimensions"], strict=True):
        if is_symbolic([size]) and window != 1:
            return None
    return np.broadcast_to(operand.array, [1 if is_symbolic([size]) else size for size in operand.shape])
