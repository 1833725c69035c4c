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
    apply_key, count_key, boxes_key, noise_key = jax.random.split(key, 4)
    drawn = jax.random.randint(count_key, (), 1, count + 1)
    drawn = jnp.where(jax.random.bernoulli(apply_key, probability), drawn, 0)
    shares = (area[0] / jnp.maximum(drawn, 1), area[1] / jnp.maximum(drawn, 1))
    height, width, _ = image.shape
    boxes = jax.vmap(lambda key: _box(key, height, width, shares, least_aspect))(jax.random.split(boxes_key, count))
    inside = inside_boxes(boxes, height, width) & (jnp.arange(count) < drawn)[:, None, None]
    noise = jax.random.normal(noise_key, image.shape, image.dtype) if mode == "pixel" else jnp.zeros_like(image)
    return jnp.where(inside.any(0)[..., None], noise, image)


def _box(
    key: jax.Array, height: int, width: int, shares: tuple[jax.Array, jax.Array], least_aspect: float
) -> jax.Array:
    """Returns top, bottom, left and right of a rectangle, (4,) int32: the first of ten that is small enough, or none.

    Args:
        key: of this rectangle.
        height, width: of the image.
        shares: the least and largest share of the image's area.
        least_aspect: see `random_erasing`.
    """
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    log_aspect = math.log(1 / least_aspect)
    areas = height * width * jax.random.uniform(area_key, (ATTEMPTS,), minval=shares[0], maxval=shares[1])
    aspects = jnp.exp(jax.random.uniform(aspect_key, (ATTEMPTS,), minval=-log_aspect, maxval=log_aspect))
    heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    box_height, box_width = jnp.where(fits[first], heights[first], 0), jnp.where(fits[first], widths[first], 0)
    top = jax.random.randint(top_key, (), 0, height - box_height + 1)
    left = jax.random.randint(left_key, (), 0, width - box_width + 1)
    return jnp.array([top, top + box_height, left, left + box_width])


def cutout(key: jax.Array, image: jax.Array, size: int) -> jax.Array:
    """Replaces a square by zeros. Its centre is anywhere in the image, so that part of it may be outside.

    Args:
        key: of this example.
        image: (height, width, channels) float, normalized: zero is the mean.
        size: of the square, in pixels.

    Returns:
        (height, width, channels) of the image's dtype.
    """
    height, width, _ = image.shape
    row_key, column_key = jax.random.split(key)
    top = jax.random.randint(row_key, (), 0, height) - size // 2
    left = jax.random.randint(column_key, (), 0, width) - size // 2
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
