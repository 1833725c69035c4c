"""Gradient clipping, as optax transformations."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from vision_jax.optim.masks import Mask, is_stacked, path_string


def clip_adaptive(clipping: float, eps: float = 1e-3, mask: Mask = None) -> optax.GradientTransformation:
    """Returns adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171).

    For each unit of a parameter, g *= min(1, clipping * max(|p|, eps) / |g|), with Euclidean norms. The units of a
    kernel are its outputs, a vector is one unit, and otherwise each index of the first axis is one, which makes a whole
    position embedding a unit. They are the same as timm's, and as the paper's for all layers of normalizer-free
    networks. `optax.adaptive_grad_clip` would treat the axis of stacked blocks as inputs; here each block has its own
    units.

    Args:
        clipping: maximum norm of a gradient relative to that of its parameter.
        eps: minimum norm of a parameter, so that parameters initialized to zero can change.
        mask: a tree of booleans like the parameters, or a function from them to one: what is clipped; None: all. The
            paper exempts the classifier.
    """

    def clip(path: Any, grad: jax.Array, param: jax.Array) -> jax.Array:
        name = path_string(path)
        first = int(is_stacked(name))
        if name.endswith("kernel") and grad.ndim - first > 1:
            axes = tuple(range(first, grad.ndim - 1))
        elif grad.ndim - first > 1:
            axes = tuple(range(first + 1, grad.ndim))
        else:
            axes = tuple(range(first, grad.ndim))

        def norm(x: jax.Array) -> jax.Array:
            return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axes, keepdims=True))

        largest, size = clipping * jnp.maximum(norm(param), eps), norm(grad)
        return jnp.where(size > largest, grad * (largest / jnp.maximum(size, 1e-6)), grad).astype(grad.dtype)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(clip, grads, params), state

    transformation = optax.GradientTransformation(optax.init_empty_state, update)
    return transformation if mask is None else optax.masked(transformation, mask)
