"""Color jitter, grayscale, blur and solarization in floating point, by TensorFlow's formulas, as for SimCLR and BYOL.

Images are (height, width, channels) float32 from 0 to 1, before and after each of them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from vision_jax.augment.blur import gaussian_blur

_LUMINANCE = (0.2989, 0.587, 0.114)


def greyscale(image: jax.Array) -> jax.Array:
    """Gives each channel the image's luminance; one channel stays as it is."""
    if image.shape[-1] != 3:
        return image
    weighted = sum(weight * image[..., i] for i, weight in enumerate(_LUMINANCE))
    return jnp.broadcast_to(jnp.clip(weighted, 0, 1)[..., None], image.shape)


def solarize(image: jax.Array) -> jax.Array:
    """Inverts the values from a half on."""
    return jnp.where(image < 0.5, image, 1 - image)


def blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blurs an image by a Gaussian of about a tenth of its height, 23 pixels of 224; beyond the borders it is black."""
    return jnp.clip(gaussian_blur(image, sigma, image.shape[0] // 20), 0, 1)


def color_jitter(
    key: jax.Array, image: jax.Array, strengths: Sequence[float], *, adds_brightness: bool = False
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue by random amounts in random order; see `adjust_colors`.

    Args:
        key: of this example.
        image: see above.
        strengths: of brightness, contrast, saturation and, if there is a fourth, hue. Factors are drawn evenly from
            max(0, 1 - strength) to 1 + strength, and what is added to hue from -strength to strength.
        adds_brightness: brightness is added to as well.
    """
    factors_key, order_key = jax.random.split(key)
    is_added = jnp.arange(len(strengths)) == 3
    is_added |= adds_brightness & (jnp.arange(len(strengths)) == 0)
    amount = jnp.asarray(strengths, jnp.float32)
    least = jnp.where(is_added, -amount, jnp.maximum(0, 1 - amount))
    most = jnp.where(is_added, amount, 1 + amount)
    factors = jax.random.uniform(factors_key, (len(strengths),), minval=least, maxval=most)
    order = jax.random.permutation(order_key, len(strengths))
    return adjust_colors(image, factors, order, adds_brightness=adds_brightness)


def adjust_colors(
    image: jax.Array, factors: jax.Array, order: jax.Array, *, adds_brightness: bool = False
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue by given amounts f in a given order.

    brightness:  f * x, or x + f
    contrast:    m + f * (x - m), where m is the mean of each channel
    saturation:  f times that of HSV, at most 1
    hue:         f added to that of HSV, as a share of the circle

    The image is clipped after each. One channel has neither saturation nor hue.

    Args:
        image: see above.
        factors: (3,) or, with hue, (4,) float32.
        order: (3,) or (4,) int32, a permutation of positions in `factors`.
        adds_brightness: f is added to the image, instead of a factor.
    """
    factors = jnp.asarray(factors)

    def step(image: jax.Array, which: jax.Array) -> tuple[jax.Array, None]:
        brighter = image + factors[0] if adds_brightness else image * factors[0]
        mean = image.mean((0, 1), keepdims=True)
        changed = jnp.where(which == 0, brighter, mean + factors[1] * (image - mean))
        colored = image
        if image.shape[-1] == 3:
            hue, saturation, value = rgb_to_hsv(image)
            saturation = jnp.where(which == 2, jnp.clip(factors[2] * saturation, 0, 1), saturation)
            if len(factors) == 4:
                hue = jnp.where(which == 3, hue + factors[3], hue)
            colored = hsv_to_rgb(hue, saturation, value)
        return jnp.clip(jnp.where(which < 2, changed, colored), 0, 1), None

    return lax.scan(step, image, order)[0]


def rgb_to_hsv(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns hue (a share of the circle, from red), saturation and value, each (height, width) from 0 to 1."""
    red, green, blue = (image[..., i] for i in range(3))
    value = image.max(-1)
    spread = value - image.min(-1)
    divisor = jnp.where(spread > 0, spread, 1)
    sixths = jnp.select(
        [red == value, green == value],
        [(green - blue) / divisor, 2 + (blue - red) / divisor],
        4 + (red - green) / divisor,
    )
    saturation = jnp.where(value > 0, spread / jnp.where(value > 0, value, 1), 0)
    return jnp.where(spread > 0, sixths / 6 % 1, 0), saturation, value


def hsv_to_rgb(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    """Returns (height, width, 3) float of hue, saturation and value, the inverse of `rgb_to_hsv`; hue is periodic."""
    # Each channel falls from the value by the spread, linearly within a sixth of the circle, in a third of it.
    places = jnp.stack([(offset + 6 * hue) % 6 for offset in (5.0, 3.0, 1.0)], -1)
    fallen = jnp.clip(jnp.minimum(places, 4 - places), 0, 1)
    return value[..., None] - (value * saturation)[..., None] * fallen
