"""Attacks within a training step: a fixed number of steps that maximize any loss, without tests of their success."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vision_jax.attacks import base

# (images in [0, 1], state, number of the step) -> losses (batch,), next state: such as the statistics of batch norm.
Losses = Callable[[jax.Array, Any, jax.Array | int], tuple[jax.Array, Any]]
STARTS = ("image", "ball", "noise")
_NOISE = 0.001  # the deviation of TRADES' first perturbation


def first_iterate(images: jax.Array, keys: jax.Array, start: str, *, eps: float | jax.Array, norm: str) -> jax.Array:
    """Returns where an attack begins, within [0, 1].

    - image: at the image itself.
    - ball: at a random point of the ball; uniform in it for linf, at distance eps for l2, as in MadryLab/robustness.
    - noise: at the image with normal noise of deviation 0.001, as in TRADES.

    Args:
        images: (batch, height, width, channels) float32 in [0, 1].
        keys: (batch,) keys.
        start: image, ball or noise.
        eps: the radius.
        norm: linf or l2.
    """
    if start == "image":
        return images
    if start == "noise":
        noise = _NOISE * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
    else:
        noise = base.random_direction(keys, images, norm)
        noise = eps * (noise if norm == "linf" else base.unit(noise, norm))
    return jnp.clip(images + noise, 0, 1)


def ascend(
    losses_of: Losses,
    images: jax.Array,
    first: jax.Array,
    state: Any,
    *,
    eps: float | jax.Array,
    step_size: float | jax.Array,
    norm: str,
    steps: int,
    best_iterate: bool,
) -> tuple[jax.Array, Any]:
    """Projected gradient ascent (Madry et al. 2018, arXiv:1706.06083) on a loss, as `pgd` takes its steps.

    Other than `pgd`, it maximizes any loss, such as one of soft targets, and evaluates the last iterate only if it has
    to be compared: a step costs a forward and a backward pass, and `best_iterate` one more forward pass.

    Args:
        losses_of: what is maximized; see `Losses`.
        images: (batch, height, width, channels) float32 in [0, 1], the centers of the balls.
        first: the first iterates.
        state: handed from one evaluation of the loss to the next.
        eps, step_size: the radius, and the length of a step, of images in [0, 1].
        norm: linf or l2.
        steps: how many; at least one.
        best_iterate: return the iterate of the highest loss, the first one included; False: the last one.

    Returns:
        images of the same shape, and the state after the last evaluation.
    """

    def total(perturbed: jax.Array, state: Any, number: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        losses, state = losses_of(perturbed, state, number)
        return losses.sum(), (losses, state)

    def higher(perturbed: jax.Array, losses: jax.Array, best: Any) -> Any:
        """Returns the better of two iterates for each image; without `best_iterate`, nothing is kept."""
        if not best_iterate:
            return best
        images, highest = best
        better = losses > highest
        return jnp.where(base.expand(better, images), perturbed, images), jnp.where(better, losses, highest)

    def step(carry: tuple[jax.Array, Any, Any], number: jax.Array) -> tuple[tuple[jax.Array, Any, Any], None]:
        perturbed, state, best = carry
        gradient, (losses, state) = jax.grad(total, has_aux=True)(perturbed, state, number)
        best = higher(perturbed, losses, best)
        moved = perturbed + step_size * base.ascent(gradient, norm)
        return (base.project(images, moved, eps, norm), state, best), None

    best = (first, jnp.full(len(images), -jnp.inf)) if best_iterate else ()
    (last, state, best), _ = jax.lax.scan(step, (first, state, best), jnp.arange(steps))
    if not best_iterate:
        return last, state
    losses, state = losses_of(last, state, steps)
    return higher(last, losses, best)[0], state
