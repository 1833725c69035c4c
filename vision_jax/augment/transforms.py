"""Transforms of one image, (key, image) -> image, and what surrounds them in a step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def example_keys(seed: int, step: jax.Array, batch_size: int) -> jax.Array:
    """Returns a random key for each example of a step, which depends on nothing but (seed, step, position).

    Args:
        seed: of the run.
        step: () int32.
        batch_size: of the global batch.

    Returns:
        (batch_size,) keys.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(jnp.arange(batch_size))


def random_flip(key: jax.Array, image: jax.Array, probability: float = 0.5) -> jax.Array:
    """Mirrors an image left to right with the given probability.

    Args:
        key: of this example.
        image: (height, width, channels) of any dtype.
        probability: of mirroring it.
    """
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (images / 255 - mean) / std.

    Args:
        images: (..., channels) uint8, or float in the same range.
        mean, std: one value a channel, in units where a pixel is between 0 and 1.

    Returns:
        (..., channels) float32.
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale - offset
