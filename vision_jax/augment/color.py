"""Color jitter and grayscale of one 8-bit RGB image, as torchvision does them with Pillow."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from vision_jax.augment.ops import blend, channels_of, luminance, mean_luminance


def greyscale(image: jax.Array) -> jax.Array:
    """Gives each channel the image's luminance; (height, width, channels) uint8."""
    return jnp.broadcast_to(luminance(channels_of(image))[..., None], image.shape).astype(jnp.uint8)


def random_factors(key: jax.Array, strengths: Sequence[float]) -> jax.Array:
    """Draws the factors of a color jitter.

    Args:
        key: of this example.
        strengths: of brightness, contrast, saturation and, if there is a fourth, hue.

    Returns:
        (3 or 4,) float32: evenly from max(0, 1 - strength) to 1 + strength; for hue, from -strength to strength.
    """
    least = [max(0.0, 1 - strength) for strength in strengths[:3]] + [-strength for strength in strengths[3:]]
    most = [1 + strength for strength in strengths[:3]] + list(strengths[3:])
    return jax.random.uniform(key, (len(strengths),), minval=jnp.array(least), maxval=jnp.array(most))


def color_jitter(key: jax.Array, image: jax.Array, strengths: Sequence[float]) -> jax.Array:
    """Changes brightness, contrast, saturation and hue by random factors in random order.

    Args:
        key: of this example.
        image: (height, width, channels) uint8.
        strengths: see `random_factors`; torchvision's `ColorJitter(*strengths)`.

    Returns:
        (height, width, channels) uint8.
    """
    factors_key, order_key = jax.random.split(key)
    factors = random_factors(factors_key, strengths)
    return adjust_colors(image, factors, jax.random.permutation(order_key, len(strengths)))


def adjust_colors(image: jax.Array, factors: jax.Array, order: jax.Array) -> jax.Array:
    """Changes brightness, contrast, saturation and hue by given factors in a given order.

    An order that is known only when the program runs costs little, because the first three are the same blend, with
    black, with the mean gray or with the grayscale image.

    Args:
        image: (height, width, channels) uint8.
        factors: (3,) or, with hue, (4,) float32; see `random_factors`.
        order: (3,) or (4,) int32, a permutation of positions in `factors`.

    Returns:
        (height, width, channels) uint8.
    """
    factors = jnp.asarray(factors)

    def step(image: jax.Array, which: jax.Array) -> tuple[jax.Array, None]:
        grey = luminance(channels_of(image))[..., None]
        degenerate = jnp.select(
            [which == 0, which == 1], [jnp.zeros_like(grey), mean_luminance(channels_of(image))], grey
        )
        changed = blend(degenerate, image, factors[which])
        if len(factors) == 4:
            changed = jnp.where(which == 3, shift_hue(image, factors[3]), changed)
        return changed, None

    return lax.scan(step, image, order)[0]


def shift_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns the colors around the circle of hues, in Pillow's 8-bit HSV.

    Args:
        image: (height, width, channels) uint8; one channel has no hue and stays as it is.
        shift: () float32, as a share of the circle.
    """
    if image.shape[-1] != 3:
        return image
    hue, saturation, value = _rgb_to_hsv(image)
    return _hsv_to_rgb((hue + (shift * 255).astype(jnp.int32)) % 256, saturation, value)


def _rgb_to_hsv(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns hue, saturation and value, each (height, width) int32 from 0 to 255, cut to integers as by Pillow."""
    red, green, blue = (image[..., c].astype(jnp.float32) for c in range(3))
    largest = jnp.maximum(jnp.maximum(red, green), blue)
    spread = largest - jnp.minimum(jnp.minimum(red, green), blue)
    to_red, to_green, to_blue = ((largest - channel) / jnp.maximum(spread, 1) for channel in (red, green, blue))
    sixths = jnp.select(
        [red == largest, green == largest], [to_blue - to_green, 2 + to_red - to_blue], 4 + to_green - to_red
    )
    # Pillow cuts off a product in float64: the hair decides for it where the product is an integer.
    hue = (jnp.where(sixths < 0, sixths + 6, sixths) * (255 / 6) + 1e-5).astype(jnp.int32)
    saturation = (spread / jnp.maximum(largest, 1) * 255).astype(jnp.int32)
    return jnp.where(spread > 0, hue, 0), saturation, largest.astype(jnp.int32)


def _hsv_to_rgb(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    """Returns (height, width, 3) uint8 of hue, saturation and value, each (height, width) int32 from 0 to 255."""
    sixths = hue * (6 / 255)
    sector = hue * 6 // 255
    within, strength = sixths - sector, saturation / 255
    full = value.astype(jnp.float32)
    low = jnp.floor(value * (1 - strength) + 0.5)  # C's round(), of numbers that are not negative
    falling = jnp.floor(value * (1 - strength * within) + 0.5)
    rising = jnp.floor(value * (1 - strength * (1 - within)) + 0.5)
    sectors = [sector % 6 == i for i in range(6)]
    red = jnp.select(sectors, [full, falling, low, low, rising, full])
    green = jnp.select(sectors, [rising, full, full, falling, low, low])
    blue = jnp.select(sectors, [low, low, rising, full, full, falling])
    return jnp.stack([red, green, blue], axis=-1).astype(jnp.uint8)
