"""Sharpness-aware minimization."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

GradFunction = Callable[[Any], tuple[Any, Any]]


def sam_gradients(
    grad_fn: GradFunction,
    params: Any,
    rho: float,
    *,
    apply: bool | jax.Array = True,
    live: Callable[[Any], Any] = lambda grads: grads,
    eps: float = 1e-12,
) -> tuple[Any, Any]:
    """Returns the gradients of sharpness-aware minimization (Foret et al. 2020, arXiv:2010.01412).

    g = grad(params)
    returned: grad(params + rho * g / (|g| + eps)), with the norm over all parameters

    They are the gradients near the point where the loss is highest within a distance of rho from the parameters, and
    cost a second gradient. Applying SAM every k steps keeps most of the benefit: in a jitted step,

        grads, aux = sam_gradients(grad_fn, params, rho, apply=step % k == 0)

    compiles both branches and runs one of them.

    Args:
        grad_fn: maps parameters to their gradients and auxiliary outputs, such as the loss and batch statistics.
        params: the parameters.
        rho: the length of the perturbation; 0.05 in the paper, on ImageNet.
        apply: whether to perturb; may be traced. If False, the gradients at the parameters are returned.
        live: what of the gradients perturbs the parameters: those of weights that are pruned do not.
        eps: keeps the perturbation finite where the gradients vanish.

    Returns:
        The gradients, and the auxiliary outputs at the unperturbed parameters: batch statistics and the reported loss
        are those of the network that is trained, not of the perturbed one.
    """
    grads, aux = grad_fn(params)

    def perturbed(grads: Any) -> Any:
        grads = live(grads)
        squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)]
        scale = rho / (jnp.sqrt(sum(squares)) + eps)
        return grad_fn(jax.tree.map(lambda p, g: p + (scale * g).astype(p.dtype), params, grads))[0]

    if isinstance(apply, bool):
        return (perturbed(grads) if apply else grads), aux
    return jax.lax.cond(jnp.asarray(apply), perturbed, lambda grads: grads, grads), aux
