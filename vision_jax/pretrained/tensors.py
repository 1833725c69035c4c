"""The tensors of a model's tree of variables, and those of a state dict that they are."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import DataError
from vision_jax.models.registry import Entry, Naming, Shape, create_model

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
# Axes of ours that are torch's: (out, in, height, width) of (height, width, in, out), (out, in) of (in, out).
_KERNEL_AXES = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor of a state dict is in the tree of variables.

    Attributes:
        name: in the state dict of the model's own library.
        path: collection, modules, leaf.
        index: along the first axis, for layers that are stacked by `nn.scan`; None: all of it.
        axes: of ours that are torch's; None: they are the same.
        shape: torch's.
    """

    name: str
    path: tuple[str, ...]
    index: int | None
    axes: tuple[int, ...] | None
    shape: Shape

    def torch_shape(self, shape: Sequence[int]) -> Shape:
        """Returns torch's shape of an array of ours of this shape."""
        whole = tuple(shape if self.index is None else shape[1:])
        return whole if self.axes is None else tuple(whole[i] for i in self.axes)

    def to_torch(self, value: Any) -> np.ndarray:
        array = np.asarray(value if self.index is None else value[self.index])
        return np.asarray(array if self.axes is None else array.transpose(self.axes), order="C")

    def from_torch(self, value: np.ndarray) -> np.ndarray:
        return np.asarray(value if self.axes is None else value.transpose(np.argsort(self.axes)), order="C")


def tensors_of(variables: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors of a tree of variables, of arrays or of their shapes."""
    tensors = []
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables)):
        path = tuple(key.key for key in key_path)
        modules, last = path[1:-1], path[-1]
        # `nn.scan` stacks the layers of "blocks" along a first axis; otherwise each has a number for its name.
        stacked = modules[:1] == ("blocks",) and not modules[1].isdigit()
        shape = tuple(leaf.shape)[1 if stacked else 0 :]
        axes = _KERNEL_AXES.get(len(shape)) if last == "kernel" else None
        for index in range(leaf.shape[0]) if stacked else (None,):
            place = modules if index is None else ("blocks", str(index), *modules[1:])
            name = ".".join((*place, _LEAVES.get(last, last)))
            tensors.append(Tensor(name, path, index, axes, shape if axes is None else tuple(shape[i] for i in axes)))
    return tensors


def model_tensors(known: Entry, options: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors of a model with these options."""
    return tensors_of(jax.eval_shape(init_function(known, options), jax.random.key(0)))


def init_function(known: Entry, options: Mapping[str, Any]) -> Callable[[jax.Array], Any]:
    """Returns what makes the initial variables of a key."""
    model = create_model(known.name, **options)
    size = getattr(model, "img_size", None) or known.input.size
    images = jnp.zeros((1, size, size, model.in_channels))
    return lambda key: dict(model.init(key, images, train=False))


def namings(known: Entry) -> dict[str, Naming]:
    """Returns how other code bases name the tensors of a model, its own library's first."""
    return {
        known.library: lambda name, shape: (name, shape),
        **({} if known.torchvision is None else {"torchvision": known.torchvision}),
        **({} if known.authors is None else {"authors": known.authors}),
    }


def to_numpy(value: Any) -> np.ndarray:
    """Returns an array, or a tensor of torch or of a file, as NumPy's; floating-point numbers become float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    value = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    return value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value


def assemble(tensors: list[Tensor], values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Builds the tree of variables of values by name.

    Raises:
        DataError: if one of them is not of floating-point numbers.
    """
    parts: dict[tuple[str, ...], list[np.ndarray]] = {}
    stacked = set()
    for tensor in tensors:  # in the order of their indices
        value = values[tensor.name]
        if value.dtype != np.float32:
            raise DataError(f"{tensor.name} is {value.dtype}: quantized weights are not read; save them as float32.")
        parts.setdefault(tensor.path, []).append(tensor.from_torch(value))
        if tensor.index is not None:
            stacked.add(tensor.path)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, arrays in parts.items():
        node = variables
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.stack(arrays) if path in stacked else arrays[0]
    return variables
