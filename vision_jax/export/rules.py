"""What a rule is: the function that writes one primitive of JAX as operators of ONNX."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.export.graph import Graph, Shape
from vision_jax.export.layout import Operand


class Unsupported(Exception):
    """An operation has no counterpart here; the message says what of it."""


@dataclasses.dataclass(frozen=True)
class Equation:
    """An equation of a traced function, without its operands.

    Attributes:
        graph: to which operators are added.
        name: of the primitive.
        params: of the primitive, with dimensions as integers.
        shapes, dtypes: of the results.
        place: of the module of the model, such as "layer1_0/conv1".
    """

    graph: Graph
    name: str
    params: Mapping[str, Any]
    shapes: tuple[Shape, ...]
    dtypes: tuple[Any, ...]
    place: str

    @property
    def shape(self) -> Shape:
        """Of the first result."""
        return self.shapes[0]

    @property
    def dtype(self) -> np.dtype:
        """Of the first result."""
        return np.dtype(self.dtypes[0])

    def require(self, condition: bool, what: str) -> None:
        """Checks what a rule relies on.

        Raises:
            Unsupported: if it does not hold; `what` says what was found.
        """
        if not condition:
            raise Unsupported(what)


Rule = Callable[..., Sequence[Operand]]
