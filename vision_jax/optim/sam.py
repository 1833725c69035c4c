"""Sharpness-aware minimization."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

GradFunction = Callable[[Any], tuple[Any, Any]]


def sam_gradients(
    grad_fn: GradFunction, params: Any, rho: float, *, apply: bool | jax.Array = True, eps: float = 1e-12
) -> tuple[Any, Any]:
    """Returns the gradients where the loss is about largest near the parameters (Foret et al. 2020, arXiv:2010.01412).

    g = grad(params)
    returned: grad(params + rho * g / (|g| + eps)), with the norm over all parameters

    It costs a second gradient. Doing it in every k-th step keeps most of its use: in a jitted step,

        grads, aux = sam_gradients(grad_fn, params, rho, apply=step % k == 0)

    compiles both branches and runs the one that is needed.

    Args:
        grad_fn: from parameters to their gradients and whatever else, such as the loss and batch statistics.
        params: the parameters.
        rho: the length of the step towards the larger loss; the paper has 0.05, on ImageNet.
        apply: whether to do it; it may be traced. Otherwise, the gradients at the parameters are returned.
        eps: keeps the step finite where the gradients vanish.

    Returns:
        The gradients, and whatever else `grad_fn` returned at the parameters themselves: the batch statistics and the
        reported loss are of the network that is trained, not of the one that is disturbed.
    """
    grads, aux = grad_fn(params)

    def disturbed(grads: Any) -> Any:
        squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)]
        scale = rho / (jnp.sqrt(sum(squares)) + eps)
        return grad_fn(jax.tree.map(lambda p, g: p + (scale * g).astype(p.dtype), params, grads))[0]

    if isinstance(apply, bool):
        return (disturbed(grads) if apply else grads), aux
    return jax.lax.cond(jnp.asarray(apply), disturbed, lambda grads: grads, grads), aux
