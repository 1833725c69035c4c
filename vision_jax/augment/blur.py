"""Gaussian blurs of one image: Pillow's approximation in 8 bits, and the exact one that TensorFlow's users write."""

import jax
import jax.numpy as jnp
from jax import lax

_PASSES = 3  # of Pillow's box blur along each axis
_REACH = 2  # pixels on each side that a box of Pillow's takes in, for a sigma of up to 2


def pillow_blur(image: jax.Array, sigma: jax.typing.ArrayLike) -> jax.Array:
    """Blurs an image as Pillow's `GaussianBlur(sigma)`: by three means over boxes along each axis, each rounded.

    Boxes end in fractions of pixels, so that three of them have the variance sigma^2 (Gwosdek et al. 2011, "Theoretical
    Foundations of Gaussian Convolution by Extended Box Filtering"). At the borders, the outermost pixels are repeated.

    Args:
        image: (height, width, channels) uint8.
        sigma: () the standard deviation in pixels, from 0 to 2.

    Returns:
        (height, width, channels) uint8.
    """
    variance = jnp.square(jnp.asarray(sigma, jnp.float32)) / _PASSES
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)  # pixels on each side that count fully
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - jnp.square(whole + 1)))
    distance = jnp.abs(jnp.arange(-_REACH, _REACH + 1))
    weights = jnp.where(distance <= whole, 1.0, jnp.where(distance == whole + 1, part, 0.0))
    weights /= 2 * (whole + part) + 1

    def mean(_: jax.Array, image: jax.Array, axis: int) -> jax.Array:
        return jnp.floor(_weighted_sum(image, weights, axis, "edge") + 0.5).astype(jnp.uint8)

    # In loops, because compilers would fuse the passes, and compute each pixel anew for all of its neighbors.
    for axis in (1, 0):
        image = lax.fori_loop(0, _PASSES, lambda i, image, axis=axis: mean(i, image, axis), image)
    return image


def gaussian_blur(image: jax.Array, sigma: jax.typing.ArrayLike, radius: int) -> jax.Array:
    """Blurs an image by a Gaussian that is cut off at `radius`; beyond the borders it is black.

    Args:
        image: (height, width, channels) float.
        sigma: () the standard deviation in pixels, positive.
        radius: of the kernel, in pixels.

    Returns:
        (height, width, channels) float32.
    """
    weights = jnp.exp(-0.5 * jnp.square(jnp.arange(-radius, radius + 1) / sigma))
    weights /= weights.sum()
    columns = _weighted_sum(image, weights, 1, "constant")
    return _weighted_sum(lax.optimization_barrier(columns), weights, 0, "constant")


def _weighted_sum(image: jax.Array, weights: jax.Array, axis: int, mode: str) -> jax.Array:
    """Returns the sum over each pixel's neighbors along an axis, weighted; float32.

    Args:
        image: (height, width, channels).
        weights: (2 * radius + 1,) float32.
        axis: 0 or 1.
        mode: of `jnp.pad`: what is beyond the borders.
    """
    radius, size = len(weights) // 2, image.shape[axis]
    padding = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
    padded = jnp.pad(image, padding, mode=mode)
    total = jnp.zeros(image.shape, jnp.float32)
    for i in range(len(weights)):
        total += weights[i] * lax.slice_in_dim(padded, i, i + size, axis=axis).astype(jnp.float32)
    return total
