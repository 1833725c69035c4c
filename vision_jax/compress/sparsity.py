"""How many weights of a model are zero, in which pattern, and what it would take to store the others alone."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vision_jax.optim.masks import path_string

PATTERNS = ((1, 4), (2, 4), (4, 8))  # (n, m) that are looked for, the sparsest first
_LAYER_TABLE = 0.01  # the share of zeros from which on the table of layers says something


@dataclasses.dataclass(frozen=True)
class Layer:
    """The zeros of a kernel.

    Attributes:
        path: of the parameter.
        shape: of the array.
        zeros: how many of its weights are exactly zero.
        pattern: "n:m" of PATTERNS if of every m consecutive inputs of each output at most n are not zero; "": none.
    """

    path: str
    shape: tuple[int, ...]
    zeros: int
    pattern: str = ""

    @property
    def size(self) -> int:
        """The number of its weights."""
        return math.prod(self.shape)

    @property
    def stored_bits(self) -> int:
        """Bits that it takes in float32: dense, as a bit for each weight and the values, or as its pattern.

        A pattern n:m takes n values a group, and their places, of ceil(log2 m) bits each: as NVIDIA stores 2:4 (Mishra
        et al. 2021, arXiv:2104.08378). The smallest counts.
        """
        ways = [32 * self.size, self.size + 32 * (self.size - self.zeros)]
        if self.pattern:
            n, m = map(int, self.pattern.split(":"))
            ways.append(self.size // m * n * (32 + math.ceil(math.log2(m))))
        return min(ways)


def layers(params: Mapping[str, Any]) -> list[Layer]:
    """Returns the zeros of each kernel, in the order of `jax.tree.leaves`.

    Args:
        params: of a model, nested dicts of arrays.
    """
    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name, values = path_string(path), np.asarray(x)
        if name.rpartition("/")[2] == "kernel" and values.ndim > 1:
            zeros = int((values == 0).sum())
            found.append(Layer(name, values.shape, zeros, pattern_of(values)))
    return found


def pattern_of(kernel: np.ndarray) -> str:
    """Returns which of PATTERNS holds along the inputs, the last axis but one; "": none, or the kernel is all zero."""
    inputs = kernel.shape[-2]
    if not kernel.any():
        return ""
    for n, m in PATTERNS:
        if inputs % m == 0:
            groups = kernel.reshape(*kernel.shape[:-2], inputs // m, m, kernel.shape[-1])
            if ((groups != 0).sum(-2) <= n).all():
                return f"{n}:{m}"
    return ""


def summary(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is said of the zeros of a model, as JSON.

    Returns:
        `sparsity`: the share of the weights of all kernels that are zero; `parameters`: of the whole model;
        `dense_bytes` and `sparse_bytes`: of all of them in float32, as they are and with zeros left out where that is
        shorter, see `Layer.stored_bits`; `layers`: of each kernel, `path`, `shape`, `zeros`, `sparsity` and `pattern`.
    """
    found = layers(params)
    total = sum(x.size for x in jax.tree.leaves(params))
    weights = sum(layer.size for layer in found)
    sparse_bits = 32 * (total - weights) + sum(layer.stored_bits for layer in found)
    return {
        "sparsity": sum(layer.zeros for layer in found) / max(1, weights),
        "parameters": total,
        "dense_bytes": 4 * total,
        "sparse_bytes": math.ceil(sparse_bits / 8),
        "layers": [{**dataclasses.asdict(layer), "sparsity": layer.zeros / max(1, layer.size)} for layer in found],
    }


def text(found: Mapping[str, Any]) -> str:
    """Returns `summary` as Markdown: a sentence, and if there is something to say of them, a table of the layers."""
    rows: Sequence[Mapping[str, Any]] = found["layers"]
    if found["sparsity"] < _LAYER_TABLE:
        return f"{100 * found['sparsity']:.2f} % of the weights of kernels are zero."
    lines = ["| kernel | shape | zero | pattern |", "|---|---|---|---|"]
    for row in rows:
        shape = " x ".join(map(str, row["shape"]))
        lines.append(f"| {row['path']} | {shape} | {100 * row['sparsity']:.2f} % | {row['pattern'] or 'none'} |")
    return "\n".join(
        [
            *lines,
            "",
            f"{100 * found['sparsity']:.2f} % of the weights of kernels are zero. In float32, the parameters take "
            f"{found['dense_bytes']:,} bytes, and {found['sparse_bytes']:,} with zeros left out where that is shorter. "
            "These files are dense: onnxruntime computes with zeros as with other numbers.",
        ]
    )
