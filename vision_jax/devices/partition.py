"""Sharding rules, as data: which dimensions of which arrays are sharded over which axes of the mesh.

A layout is text such as "fsdp,tensor", or "-,fsdp+tensor": one word for each of an array's last dimensions, with +
between the axes that shard one dimension, and - for a dimension that is not sharded. Dimensions before those are not
sharded, so that the same rule works for blocks stacked by a scan.

The layout of a parameter is that of

1. the first of `config.mesh.rules` whose pattern matches its path; otherwise
2. the first match in `TENSOR_RULES`, if the mesh has a tensor axis: heads and hidden units are sharded, as in
   Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053), if the axis divides the dimension; and
3. with an fsdp axis, parameters of at least `config.mesh.fsdp_min_size` elements are sharded along their largest
   remaining dimension that the axis divides, as in stage 3 of ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054).

Arrays in `extra["rows"]`, which have a row for each example of the batch, are sharded as batches are. Everything else
is replicated. The EMA and the optimizer state are sharded like the parameters that they belong to.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vision_jax.devices.sharding import along_batch
from vision_jax.errors import ConfigError
from vision_jax.optim import masks

# For its product with the features, qkv's kernel is sharded by heads; see `QueryKeyValue` in models/transformer.py.
TENSOR_RULES = (
    (r"^([^/]+/)?blocks/(\d+/)?attn/(qkv|proj)/kernel$", "tensor,-"),  # of the backbone, or of a head with blocks
    (r"mlp(_tokens|_channels)?/fc1/kernel$", "-,tensor"),
    (r"mlp(_tokens|_channels)?/fc1/bias$", "tensor"),
    (r"mlp(_tokens|_channels)?/fc2/kernel$", "tensor,-"),
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """The sharding rules; see the top of this file.

    Attributes:
        axes: size of each axis of the mesh.
        given: (pattern, layout) pairs, which take precedence over all others.
        min_size: number of elements from which on arrays are sharded over fsdp.
    """

    axes: Mapping[str, int]
    given: tuple[tuple[str, str], ...] = ()
    min_size: int = 2**16

    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns the layout of one parameter.

        Raises:
            ConfigError: if a layout of `given` does not fit it.
        """
        for pattern, layout in self.given:
            if re.search(pattern, path):
                return self._as_given(pattern, layout, path, shape)
        dimensions: list[str | None] = [None] * len(shape)
        if self.axes.get("tensor", 1) > 1:
            layout = next((layout for pattern, layout in TENSOR_RULES if re.search(pattern, path)), "")
            words = layout.split(",") if layout else []
            for i, word in enumerate(words, len(shape) - len(words)):
                if word == "tensor" and shape[i] % self.axes["tensor"] == 0:
                    dimensions[i] = "tensor"
        self._divide_over_fsdp(dimensions, shape)
        return PartitionSpec(*dimensions) if any(dimensions) else PartitionSpec()

    def _divide_over_fsdp(self, dimensions: list[str | None], shape: tuple[int, ...]) -> None:
        """Shards the largest remaining dimension over fsdp, if the array is large and the axis divides it."""
        size = self.axes.get("fsdp", 1)
        if size == 1 or math.prod(shape) < self.min_size:
            return
        free = [i for i, name in enumerate(dimensions) if name is None and shape[i] % size == 0]
        if free:
            dimensions[max(free, key=lambda i: shape[i])] = "fsdp"

    def _as_given(self, pattern: str, layout: str, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns the layout of a rule in the configuration."""
        words = parse_layout(layout, tuple(self.axes))
        if len(words) > len(shape):
            raise ConfigError(
                f"mesh.rules: the layout {layout!r} of the pattern {pattern!r} has {len(words)} dimensions, but {path} "
                f"has {len(shape)}: anchor the pattern to the intended paths, with ^ and $."
            )
        for size, axes in zip(shape[len(shape) - len(words) :], words, strict=True):
            number = math.prod(self.axes[axis] for axis in axes)
            if size % number:
                raise ConfigError(
                    f"mesh.rules: the layout {layout!r} of the pattern {pattern!r} divides a dimension of {size} by "
                    f"{number}, in {path} of shape {shape}: use other axes for that dimension, or - to leave it whole."
                )
        whole = [None] * (len(shape) - len(words))
        return PartitionSpec(*whole, *(axes if len(axes) > 1 else axes[0] if axes else None for axes in words))


def parse_layout(layout: str, axes: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns, for each dimension of a layout in words, the axes that shard it.

    Raises:
        ConfigError: if an axis is unknown or used twice.
    """
    words = [() if word.strip() == "-" else tuple(word.strip().split("+")) for word in layout.split(",")]
    names = [name for word in words for name in word]
    if unknown := [name for name in names if name not in axes]:
        raise ConfigError(f"mesh.rules: {layout!r} names the axis {unknown[0]!r}; there are {', '.join(axes)}, and -.")
    if len(set(names)) < len(names):
        raise ConfigError(f"mesh.rules: {layout!r} uses an axis twice; it can shard only one dimension.")
    return words


def layouts(rules: Rules, mesh: Mesh, params: Any, tree: Any) -> Any:
    """Returns the sharding of each array in a tree, such as a TrainState.

    Args:
        rules: the sharding rules.
        mesh: of the shardings.
        params: the parameters, or their shapes.
        tree: any pytree of arrays or shapes. An array that has the shape of a parameter, and whose path ends with that
            parameter's, is sharded like it; other arrays like parameters that match no pattern.

    Returns:
        the tree with NamedShardings in place of arrays.

    Raises:
        ConfigError: if a pattern of the configuration matches no parameter, or its layout does not fit.
    """
    shapes = {masks.path_string(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}
    masks.check_patterns("mesh.rules", [pattern for pattern, _ in rules.given], list(shapes))
    specs = {path: rules.spec(path, shape) for path, shape in shapes.items()}
    others = dataclasses.replace(rules, given=())

    def layout(path: Any, x: Any) -> NamedSharding:
        parts = masks.path_string(path).split("/")
        if parts[:2] == ["extra", "rows"]:
            return along_batch(mesh)
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        owner = next((end for end in ends if shapes.get(end) == x.shape), None)
        return NamedSharding(mesh, specs[owner] if owner is not None else others.spec("", x.shape))

    return jax.tree_util.tree_map_with_path(layout, tree)


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes per device of a tree of arrays, or of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def format_spec(spec: PartitionSpec, ndim: int) -> str:
    """Returns a sharding as a layout in words, one for each dimension."""
    entries = [*spec, *[None] * (ndim - len(spec))]
    words = ["-" if entry is None else entry if isinstance(entry, str) else "+".join(entry) for entry in entries]
    return ",".join(words)
