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


def clip_parameters(largest: float, eps: float = 1e-6) -> optax.GradientTransformation:
    """Returns clipping of the gradient of each parameter by its own norm, as in the code of DINO (Caron et al. 2021).

    g *= min(1, largest / (|g| + eps)), with the Euclidean norm. Each of the blocks that a scan stacks has its own.

    Args:
        largest: norm of a gradient, at most.
        eps: see above.
    """

    def clip(path: Any, grad: jax.Array) -> jax.Array:
        axes = tuple(range(is_stacked(path_string(path)), grad.ndim))
        norm = jnp.sqrt(jnp.sum(jnp.square(grad.astype(jnp.float32)), axis=axes, keepdims=True))
        return (grad * jnp.minimum(1.0, largest / (norm + eps))).astype(grad.dtype)

    return optax.stateless(lambda grads, _: jax.tree_util.tree_map_with_path(clip, grads))


def create_clipping(
    *,
    value: float | None = None,
    adaptive: float | None = None,
    adaptive_eps: float = 1e-3,
    adaptive_mask: Mask = None,
    parameter_norm: float | None = None,
    global_norm: float | None = None,
) -> list[optax.GradientTransformation]:
    """Returns the transformations that clip gradients, in their order; arguments as `clip_*` of `create_optimizer`."""
    clips = []
    if value is not None:
        clips.append(optax.clip(value))
    if adaptive is not None:
        clips.append(clip_adaptive(adaptive, adaptive_eps, adaptive_mask))
    if parameter_norm is not None:
        clips.append(clip_parameters(parameter_norm))
    if global_norm is not None:
        clips.append(optax.clip_by_global_norm(global_norm))
    return clips
