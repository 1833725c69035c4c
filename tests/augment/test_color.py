import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
from test_ops import IMAGE, QUICK

from vision_jax.augment.color import adjust_colors, greyscale, random_factors, shift_hue


def pillow_hue(image: PIL.Image.Image, shift: float) -> PIL.Image.Image:
    """torchvision's adjust_hue."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + int(shift * 255)) % 256
    return PIL.Image.merge("HSV", (PIL.Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")


def test_greyscale_is_pillows():
    expected = np.asarray(PIL.Image.fromarray(IMAGE).convert("L").convert("RGB"))
    assert (np.asarray(greyscale(jnp.asarray(IMAGE))) == expected).all()


def test_hue_is_pillows():
    """On a grid of the whole cube of colours."""
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), axis=-1).reshape(-1, 18, 3).astype(np.uint8)
    shift = jax.jit(shift_hue, compiler_options=QUICK)
    for amount in (-0.5, -0.1, 0.0, 0.07, 0.3):
        expected = np.asarray(pillow_hue(PIL.Image.fromarray(grid), amount)).astype(int)
        off = np.abs(np.asarray(shift(grid, jnp.float32(amount))).astype(int) - expected)
        assert off.max() <= 6  # one step of hue, where a rounding falls otherwise
        assert (off > 1).mean() < 0.005
    grey = jnp.asarray(IMAGE[..., :1])
    assert (shift_hue(grey, jnp.float32(0.3)) == grey).all()


@pytest.mark.parametrize("count", [3, 4])
def test_color_jitter_is_pillows_in_every_order(count: int):
    image = IMAGE[16:40, 16:40]
    strengths = [1.3, 0.7, 1.4, 0.1]
    factors = jnp.array(strengths[:count])
    operations = (
        lambda image: PIL.ImageEnhance.Brightness(image).enhance(strengths[0]),
        lambda image: PIL.ImageEnhance.Contrast(image).enhance(strengths[1]),
        lambda image: PIL.ImageEnhance.Color(image).enhance(strengths[2]),
        lambda image: pillow_hue(image, strengths[3]),
    )
    orders = list(itertools.permutations(range(count)))
    adjust = jax.jit(jax.vmap(lambda order: adjust_colors(image, factors, order)), compiler_options=QUICK)
    results = np.asarray(adjust(jnp.array(orders))).astype(int)
    for order, result in zip(orders, results, strict=True):
        expected = PIL.Image.fromarray(image)
        for which in order:
            expected = operations[which](expected)
        off = np.abs(result - np.asarray(expected).astype(int))
        assert off.mean() < (0.3 if count == 3 else 0.6), order  # what hue rounds otherwise, others make larger
        assert (off > 4).mean() < 0.01, order
    assert len({result.tobytes() for result in results}) > len(orders) / 2


def test_factors_are_in_their_ranges():
    draw = jax.jit(jax.vmap(lambda key: random_factors(key, (0.4, 1.5, 0.2, 0.1))), compiler_options=QUICK)
    factors = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    for values, least, most in zip(factors.T, (0.6, 0.0, 0.8, -0.1), (1.4, 2.5, 1.2, 0.1), strict=True):
        assert least <= values.min() < least + 0.01 * (most - least)
        assert most - 0.01 * (most - least) < values.max() <= most
        assert abs(values.mean() - (least + most) / 2) < 0.03 * (most - least)
