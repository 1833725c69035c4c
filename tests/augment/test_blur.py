import jax
import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
from conftest import picture
from test_ops import IMAGE, QUICK

from vision_jax.augment.blur import gaussian_blur, pillow_blur


@pytest.mark.parametrize("sigma", [0.11, 0.37, 0.83, 1.21, 1.74, 1.99])
def test_blur_is_pillows(sigma: float):
    """On noise and at the borders too: one gray level is what the rounding of a pass may make of a half."""
    blur = jax.jit(pillow_blur, compiler_options=QUICK)
    for image in (picture(48, 56), IMAGE):
        expected = np.asarray(PIL.Image.fromarray(image).filter(PIL.ImageFilter.GaussianBlur(sigma))).astype(int)
        off = np.abs(np.asarray(blur(image, sigma)).astype(int) - expected)
        assert off.max() <= 1
        assert off.mean() < 0.03


def test_each_image_of_a_batch_has_its_own_sigma():
    sigmas = np.array([0.2, 1.0, 2.0], np.float32)
    batch = jax.jit(jax.vmap(pillow_blur, (None, 0)), compiler_options=QUICK)(IMAGE, sigmas)
    for result, sigma in zip(np.asarray(batch), sigmas, strict=True):
        np.testing.assert_array_equal(result, pillow_blur(IMAGE, sigma))


@pytest.mark.parametrize(("sigma", "radius"), [(0.1, 11), (1.3, 11), (2.0, 3)])
def test_gaussian_blur_is_its_formula(sigma: float, radius: int):
    """One axis after the other, in NumPy; black beyond the borders."""
    image = IMAGE.astype(np.float32) / 255
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    expected = image.astype(float)
    for axis in (0, 1):
        expected = np.apply_along_axis(lambda line: np.convolve(line, weights, "same"), axis, expected)
    result = jax.jit(gaussian_blur, static_argnums=2, compiler_options=QUICK)(image, sigma, radius)
    np.testing.assert_allclose(result, expected, atol=1e-6)
