"""What hides part of one normalized image: random erasing and Cutout.

Random erasing: https://arxiv.org/abs/1708.04896, as in timm. Cutout: https://arxiv.org/abs/1708.04552.
"""

import math

import jax
import jax.numpy as jnp

ATTEMPTS = 10


def random_erasing(
    key: jax.Array,
    image: jax.Array,
    probability: float,
    *,
    mode: str = "const",
    count: int = 1,
    area: tuple[float, float] = (0.02, 1 / 3),
    least_aspect: float = 0.3,
) -> jax.Array:
    """Replaces rectangles of an image by zeros or by noise, with the given probability.

    Args:
        key: of this example.
        image: (height, width, channels) float, normalized: zero is the mean.
        probability: of erasing anything.
        mode: const: zeros; pixel: normal noise with standard deviation 1, drawn for each pixel and channel.
        count: the most rectangles; 1 to `count` are erased.
        area: the least and largest share of the image that they cover together.
        least_aspect: of height / width; the largest is 1 / least_aspect.

    Returns:
        (height, width, channels) of the image's dtype.
    """
    height, width, _ = image.shape
    numbers_key, noise_key = jax.random.split(key)
    # One draw for everything: each costs a second or so of compilation.
    numbers = jax.random.uniform(numbers_key, (2 + count * (2 * ATTEMPTS + 2),))
    drawn = jnp.where(numbers[0] < probability, 1 + (numbers[1] * count).astype(jnp.int32), 0)
    areas = tuple(height * width * share / jnp.maximum(drawn, 1) for share in area)
    boxes = jax.vmap(lambda row: _box(row, height, width, areas, least_aspect))(numbers[2:].reshape(count, -1))
    inside = inside_boxes(boxes, height, width) & (jnp.arange(count) < drawn)[:, None, None]
    noise = jax.random.normal(noise_key, image.shape, image.dtype) if mode == "pixel" else jnp.zeros_like(image)
    return jnp.where(inside.any(0)[..., None], noise, image)


def _box(numbers: jax.Array, height: int, width: int, areas: tuple[jax.Array, ...], least_aspect: float) -> jax.Array:
    """Returns top, bottom, left and right of a rectangle, (4,) int32: the first of ten that is small enough, or none.

    Args:
        numbers: (2 * ATTEMPTS + 2,) float32, drawn evenly from 0 to 1.
        height, width: of the image.
        areas: the least and largest area, in pixels.
        least_aspect: see `random_erasing`.
    """
    sizes = areas[0] + (areas[1] - areas[0]) * numbers[:ATTEMPTS]
    aspects = jnp.exp(math.log(least_aspect) * (1 - 2 * numbers[ATTEMPTS:-2]))
    heights = jnp.round(jnp.sqrt(sizes * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(sizes / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    box_height, box_width = jnp.where(fits[first], heights[first], 0), jnp.where(fits[first], widths[first], 0)
    top = (numbers[-2] * (height - box_height + 1)).astype(jnp.int32)
    left = (numbers[-1] * (width - box_width + 1)).astype(jnp.int32)
    return jnp.array([top, top + box_height, left, left + box_width])


def cutout(key: jax.Array, image: jax.Array, size: int) -> jax.Array:
    """Replaces a square by zeros. Its center is anywhere in the image, so that part of it may be outside.

    Args:
        key: of this example.
        image: (height, width, channels) float, normalized: zero is the mean.
        size: of the square, in pixels.

    Returns:
        (height, width, channels) of the image's dtype.
    """
    height, width, _ = image.shape
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    top, left = row - size // 2, column - size // 2
    box = jnp.array([top, top + size, left, left + size])
    return jnp.where(inside_boxes(box, height, width)[..., None], 0, image)


def inside_boxes(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Returns which pixels are inside of rectangles.

    Args:
        boxes: (..., 4) int32: top, bottom, left and right; bottom and right are just outside.
        height, width: of the image.

    Returns:
        (..., height, width) bool.
    """
    top, bottom, left, right = jnp.moveaxis(boxes[..., None, None], -3, 0)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
