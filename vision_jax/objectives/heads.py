"""Heads of self-supervised methods: projectors and predictors, beside the backbone's own children in `params`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import BatchNorm, dense_init

# The initializers of dense kernels that the methods' sources have.
INITIALIZERS: Mapping[str, nn.initializers.Initializer] = {
    "torch": dense_init,
    "haiku": nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
    "normal_0.01": nn.initializers.normal(0.01),
    "truncated_0.02": nn.initializers.truncated_normal(0.02),
    "xavier": nn.initializers.xavier_uniform(),
}
_ACTIVATIONS = {"relu": nn.relu, "gelu": lambda x: nn.gelu(x, approximate=False)}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A dense layer of a head, and what follows it.

    Attributes:
        features: width.
        bias: whether the dense layer has one.
        norm: batch norm behind it: "affine", "scale" (no offset), "plain" (neither), or "": none.
        activation: "relu", "gelu" or "": none.
    """

    features: int
    bias: bool = False
    norm: str = "affine"
    activation: str = "relu"


class Mlp(nn.Module):
    """A stack of layers. Its modules have the numbers that torch's `nn.Sequential` gives them: 0, 1, 3, 4, …

    Attributes:
        layers: from the input on.
        dtype: it computes in; the result is float32.
        kernel_init: a name in `INITIALIZERS`.
        bn_group_size: see `layers.BatchNorm`.
    """

    layers: tuple[Layer, ...]
    dtype: Any = jnp.float32
    kernel_init: str = "torch"
    bn_group_size: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns (n, features of the last layer) float32 of x, (n, features)."""
        number = 0
        for layer in self.layers:
            init = INITIALIZERS[self.kernel_init]
            x = nn.Dense(layer.features, use_bias=layer.bias, kernel_init=init, dtype=self.dtype, name=str(number))(x)
            number += 1
            if layer.norm:
                x = BatchNorm(
                    dtype=self.dtype,
                    group_size=self.bn_group_size,
                    use_scale=layer.norm != "plain",
                    use_bias=layer.norm == "affine",
                    name=str(number),
                )(x, train=train)
                number += 1
            if layer.activation:
                x = _ACTIVATIONS[layer.activation](x)
                number += 1
        return x.astype(jnp.float32)


def normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Returns rows divided by their Euclidean norms, float32; of norms below `epsilon`, by that, as torch does it."""
    x = x.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), epsilon**2))
    return x / norm


def spread(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns the mean over dimensions of the standard deviation of normalized rows, () float32.

    It is 1 / sqrt(dimensions) for rows that point evenly into all directions, and 0 where a method has collapsed
    (Chen and He 2020, arXiv:2011.10566).

    Args:
        x: (n, dimensions).
        mask: (n,), 0 for rows that do not count; None: all count.
    """
    x = normalize(x)
    weights = jnp.ones(len(x)) if mask is None else mask
    share = (weights / jnp.maximum(weights.sum(), 1))[:, None]
    mean = (share * x).sum(0)
    return jnp.sqrt(jnp.maximum((share * jnp.square(x - mean)).sum(0), 0)).mean()
