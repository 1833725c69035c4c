import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_ops import IMAGE, QUICK

from vision_jax import augment
from vision_jax.augment import AugmentConfig
from vision_jax.augment.float_color import adjust_colors, color_jitter, greyscale, hsv_to_rgb, rgb_to_hsv

FLOATS = IMAGE[16:32, 16:40].astype(np.float32) / 255


def by_formula(image: np.ndarray, which: int, factor: float, adds: bool) -> np.ndarray:
    """One change of colors, pixel by pixel with Python's own colorsys."""
    if which == 0:
        image = image + factor if adds else image * factor
    elif which == 1:
        mean = image.mean((0, 1))
        image = mean + factor * (image - mean)
    else:
        changed = []
        for pixel in image.reshape(-1, 3):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            if which == 2:
                saturation = min(1.0, factor * saturation)
            else:
                hue += factor
            changed.append(colorsys.hsv_to_rgb(hue % 1, saturation, value))
        image = np.array(changed).reshape(image.shape)
    return np.clip(image, 0, 1)


def test_hsv_is_colorsys():
    """On a grid of the whole cube of colors, with grays and black."""
    cube = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), axis=-1).reshape(-1, 18, 3).astype(np.float32) / 255
    expected = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in cube.reshape(-1, 3).astype(float)])
    found = rgb_to_hsv(jnp.asarray(cube))
    np.testing.assert_allclose(np.stack(found, -1).reshape(-1, 3), expected, atol=2e-6)
    np.testing.assert_allclose(hsv_to_rgb(*found), cube, atol=2e-6)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("count", [3, 4])
def test_color_jitter_is_its_formula_in_every_order(count: int, adds: bool):
    factors = [-0.3 if adds else 1.6, 0.7, 1.5, -0.17][:count]
    orders = list(itertools.permutations(range(count)))
    adjust = jax.jit(
        jax.vmap(lambda order: adjust_colors(FLOATS, jnp.array(factors), order, adds_brightness=adds)),
        compiler_options=QUICK,
    )
    for order, result in zip(orders, np.asarray(adjust(jnp.array(orders))), strict=True):
        expected = FLOATS.astype(float)
        for which in order:
            expected = by_formula(expected, which, factors[which], adds)
        # Where colors are almost gray, the hue depends on the last digits.
        np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("adds", [False, True])
def test_brightness_is_drawn_from_its_range(adds: bool):
    """Of a gray image, which no other change touches but contrast, of which there is none."""
    image = jnp.full((2, 2, 3), 0.5)
    jitter = jax.vmap(lambda key: color_jitter(key, image, (0.4, 0.0, 0.0), adds_brightness=adds)[0, 0, 0])
    values = np.asarray(jax.jit(jitter, compiler_options=QUICK)(jax.random.split(jax.random.key(0), 4000)))
    least, most = (0.1, 0.9) if adds else (0.3, 0.7)
    assert least <= values.min() < least + 0.01
    assert most - 0.01 < values.max() <= most
    assert abs(values.mean() - 0.5) < 0.02


def test_greyscale_is_weighted():
    expected = FLOATS @ np.array([0.2989, 0.587, 0.114])
    np.testing.assert_allclose(greyscale(FLOATS), np.broadcast_to(expected[..., None], FLOATS.shape), atol=1e-6)
    np.testing.assert_array_equal(greyscale(FLOATS[..., :1]), FLOATS[..., :1])


def test_a_style_is_rounded_once():
    """Grayscale and solarization of every image: by the formulas in NumPy, to the nearest gray level."""
    config = AugmentConfig(style="byol", greyscale=1.0, solarize=1.0)
    result = augment.create_augmentation(config).augment_image(jax.random.key(0), IMAGE)
    grey = IMAGE @ np.array([0.2989, 0.587, 0.114]) / 255
    expected = np.where(grey < 0.5, grey, 1 - grey)[..., None] * 255
    assert result.dtype == np.uint8
    assert np.abs(np.asarray(result) - expected).max() < 0.501
    identity = augment.create_augmentation(AugmentConfig(style="simclr"))
    assert not jax.make_jaxpr(identity.augment_image)(jax.random.key(0), IMAGE).eqns
