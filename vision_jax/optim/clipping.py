"""Limits on gradients, as optax transformations."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from vision_jax.optim.masks import Mask, is_stacked, path_string


def clip_adaptive(clipping: float, eps: float = 1e-3, mask: Mask = None) -> optax.GradientTransformation:
    """Returns adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171).

    For each unit of a parameter, g *= min(1, clipping * max(|p|, eps) / |g|), with Euclidean norms. Units are the parts
    of a kernel that lead to one output each, a vector as a whole, and else each index of the first axis, such as the
    whole of an embedding of positions. They are timm's, and the paper's for all that normalizer-free networks have.
    `optax.adaptive_grad_clip` would take the axis of stacked blocks for inputs; here each block has its own units.

    Args:
        clipping: the largest norm of a gradient relative to that of the parameter.
        eps: the least norm of a parameter, so that those which begin at zero can leave it.
        mask: a tree of booleans as the parameters, or a function that makes it of them: what is clipped; None: all. The
            paper leaves out the classifier.
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
