"""Explanations by the gradient with respect to the image: plain, averaged over noise, and integrated along a path.

All are functions of (apply, images in [0, 1], targets), and give one number for each value of the image, signed. The
score of a class is its logit. Samples are taken one after another (`lax.scan`), so that memory does not grow with them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.attacks.base import fold_in, keys_of
from vision_jax.errors import ConfigError, suggest
from vision_jax.explain.base import Apply, scores

RULES = ("midpoint", "gauss-legendre")


def gradient(apply: Apply, images: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the gradient of the score (Simonyan et al. 2013, arXiv:1312.6034).

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `vision_jax.attacks.classifier`.
        images: (batch, height, width, channels) float32 in [0, 1].
        targets: (batch,) integers.

    Returns:
        (batch, height, width, channels) float32.
    """
    return jax.grad(lambda x: scores(apply, x, targets).sum())(images)


def smoothgrad(
    apply: Apply,
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array | None = None,
    *,
    sigma: float | jax.Array = 0.15,
    samples: int = 25,
    squared: bool = False,
    noise: jax.Array | None = None,
) -> jax.Array:
    """Returns the mean gradient of noisy images (SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825).

    Args:
        apply: images -> logits (batch, classes).
        images: (batch, height, width, channels) float32 in [0, 1].
        targets: (batch,) integers.
        key: a random key, or one for each image; not needed with `noise`.
        sigma: the standard deviation of the noise, in units where pixels are in [0, 1]. Noisy images are not clipped.
            PAIR-code/saliency has 0.15 of the range of each image's values.
        samples: how many noisy images.
        squared: the mean of squared gradients (SmoothGrad-Squared), which is what PAIR-code/saliency does by default.
        noise: (samples, batch, height, width, channels) standard normal numbers, in place of random ones.

    Returns:
        (batch, height, width, channels) float32.

    Raises:
        ConfigError: if there is neither a key nor noise.
    """
    if noise is None and key is None:
        raise ConfigError("SmoothGrad adds noise: give it a random key.")
    keys = None if key is None else keys_of(key, len(images))

    def sample(total: jax.Array, given: jax.Array) -> tuple[jax.Array, None]:
        if noise is None:
            draws = jax.vmap(lambda own: jax.random.normal(own, images.shape[1:]))(fold_in(keys, given))
        else:
            draws = given
        found = gradient(apply, images + sigma * draws, targets)
        return total + (jnp.square(found) if squared else found), None

    xs = jnp.arange(samples) if noise is None else jnp.asarray(noise, jnp.float32)
    return jax.lax.scan(sample, jnp.zeros_like(images), xs)[0] / len(xs)


def integrated_gradients(
    apply: Apply,
    images: jax.Array,
    targets: jax.Array,
    *,
    steps: int = 50,
    baseline: jax.Array | np.ndarray | float = 0.0,
    rule: str = "midpoint",
) -> jax.Array:
    """Returns integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365).

    (x - x') times the mean gradient between x' and x. Their sum is the difference of the scores of x and x', but for
    the error of the rule.

    Args:
        apply: images -> logits (batch, classes).
        images: (batch, height, width, channels) float32 in [0, 1].
        targets: (batch,) integers.
        steps: gradients that are computed.
        baseline: x', to be broadcast to the images; 0 is black.
        rule: where they are taken: "midpoint", in the middles of equal parts; "gauss-legendre", which is exact for
            polynomials up to the degree 2 steps - 1, and has captum's defaults.

    Returns:
        (batch, height, width, channels) float32.

    Raises:
        ConfigError: if the rule is unknown.
    """
    difference = images - baseline

    def step(total: jax.Array, node: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        position, weight = node
        return total + weight * gradient(apply, images - (1 - position) * difference, targets), None

    nodes, weights = quadrature(rule, steps)
    total, _ = jax.lax.scan(step, jnp.zeros_like(images), (jnp.asarray(nodes), jnp.asarray(weights)))
    return difference * total


def quadrature(rule: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions in [0, 1] and the weights of a rule of integration, (steps,) float32 each.

    Raises:
        ConfigError: if the rule is unknown.
    """
    if rule == "midpoint":
        nodes, weights = (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    elif rule == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        nodes, weights = (1 + nodes) / 2, weights / 2
    else:
        raise ConfigError(f"The rule of integration is {rule!r}: {suggest(rule, RULES)}")
    return nodes.astype(np.float32), weights.astype(np.float32)
