"""Simple transforms of one image, and what surrounds them in a step: the keys and the normalization."""

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


def batch_key(seed: int, step: jax.Array, batch_size: int) -> jax.Array:
    """Returns a random key for what is done to a batch as a whole; it is none of `example_keys`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), batch_size)


def random_flip(key: jax.Array, image: jax.Array, probability: float = 0.5) -> jax.Array:
    """Mirrors an image left to right with the given probability.

    Args:
        key: of this example.
        image: (height, width, channels) of any dtype.
        probability: of mirroring it.
    """
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def random_shift(key: jax.Array, image: jax.Array, pixels: int, mode: str = "constant") -> jax.Array:
    """Moves an image by up to `pixels` in each direction.

    It is torchvision's `RandomCrop(size, padding=pixels)`: a random crop of the image's own size from it with a border.

    Args:
        key: of this example.
        image: (height, width, channels) of any dtype.
        pixels: width of the border; all 2 * pixels + 1 places along each axis are as likely.
        mode: what the border is: "constant": black; "reflect": the image, mirrored at its outermost pixels.

    Returns:
        (height, width, channels) of the image's dtype.
    """
    top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode=mode)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def col_out(key: jax.Array, images: jax.Array, share: float) -> jax.Array:
    """Leaves out a share of the rows and as large a one of the columns, the same ones in all images.

    It is mosaicml/composer's ColOut for batches: int((1 - share) * length) rows and columns are kept, in their order.

    Args:
        key: of the batch.
        images: (batch, height, width, channels) of any dtype.
        share: of the rows, and of the columns; less than 1.

    Returns:
        (batch, fewer rows, fewer columns, channels) of the images' dtype; there is one row and column at least.
    """
    for axis, axis_key in enumerate(jax.random.split(key), start=1):
        length = images.shape[axis]
        kept = jnp.sort(jax.random.permutation(axis_key, length)[: max(1, int((1 - share) * length))])
        images = jnp.take(images, kept, axis)
    return images


def solarize(image: jax.Array, threshold: int = 128) -> jax.Array:
    """Inverts the values from `threshold` on.

    Args:
        image: (height, width, channels) uint8.
        threshold: the least value that is inverted.
    """
    return jnp.where(image < threshold, image, 255 - image)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (images / 255 - mean) / std.

    Args:
        images: (..., channels) uint8, or float in the same range.
        mean, std: one value per channel, in units where a pixel is between 0 and 1.

    Returns:
        (..., channels) float32.
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale - offset
