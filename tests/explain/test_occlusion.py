"""Hidden windows and random masks, of functions of which it is known what they lose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vision_jax.explain import occlusion, variants

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(3, 7, 9, 2)).astype(np.float32)
WEIGHTS = RNG.normal(size=(2, 7, 9, 2)).astype(np.float32)  # of two classes
TARGETS = np.array([1, 0, 1])


def linear(images: jax.Array) -> jax.Array:
    return jnp.einsum("bhwc,khwc->bk", images, WEIGHTS)


@pytest.mark.parametrize(
    ("window", "stride", "baseline"), [(1, 1, 0.0), (3, 2, 0.5), ((4, 5), (3, 4), (0.1, 0.7)), ((7, 9), 1, 0.0)]
)
def test_occlusion_of_a_linear_function(window: object, stride: object, baseline: object):
    """A window loses the sum of what is in it: counted here one window at a time."""
    (height, width), (down, right) = (x if isinstance(x, tuple) else (x, x) for x in (window, stride))
    parts = (WEIGHTS[TARGETS] * (IMAGES - np.float32(baseline))).sum(-1)
    total, count = np.zeros((3, 7, 9)), np.zeros((7, 9))
    for i in range(-(-(7 - height) // down) + 1):
        for j in range(-(-(9 - width) // right) + 1):
            place = np.s_[i * down : i * down + height, j * right : j * right + width]
            total[:, *place] += parts[:, *place].sum((1, 2), keepdims=True)
            count[place] += 1
    assert count.min() > 0
    run = functools.partial(occlusion.occlusion, linear, IMAGES, TARGETS, window=window, stride=stride)
    for batch_size in (64, 7):
        found = run(baseline=np.float32(baseline), batch_size=batch_size)
        np.testing.assert_allclose(found, total / count, rtol=1e-4, atol=1e-5)


def test_batches_are_bounded():
    """No forward pass has more images than it may, and all variants are evaluated once."""
    for count, batch, limit in ((49, 2, 64), (8000, 3, 64), (5, 100, 64), (1, 1, 1), (33, 1, 32)):
        numbers, there = variants.groups(count, batch, limit)
        assert numbers.shape[1] * batch <= max(limit, batch)
        np.testing.assert_array_equal(numbers[there > 0], np.arange(count))
        assert (there == 0).sum() < max(2, len(numbers))


def masks_of_scipy(length: int, cells: int, shift: int) -> np.ndarray:
    """The weights of cells, by enlarging a grid that has a one in each; as scikit-image's `resize` does it."""
    zoom = (cells + 1) * -(-length // cells) / cells
    enlarged = [scipy.ndimage.zoom(one, zoom, order=1, mode="mirror", grid_mode=True) for one in np.eye(cells)]
    return np.stack(enlarged, 1)[shift : shift + length]


@pytest.mark.parametrize(("length", "cells"), [(14, 7), (224, 7), (16, 5), (9, 2)])
def test_masks_are_enlarged_as_published(length: int, cells: int):
    for shift in (0, -(-length // cells) - 1):
        expected = masks_of_scipy(length, cells, shift)
        np.testing.assert_allclose(occlusion.interpolation(length, cells, shift), expected, atol=1e-5)


def test_rise_of_a_function_of_one_pixel():
    """The class's probability is that pixel: the map is the mean of M_i M_q / p over masks M, which has a formula.

    Cells are independent: E[M_i M_q] = p^2 + p (1 - p) sum over cells of w_ic w_qc, averaged over shifts.
    """
    size, cells, share, pixel = 10, 4, 0.3, (6, 2)
    longest = -(-size // cells)

    def expected_products(q: int) -> np.ndarray:
        weights = [masks_of_scipy(size, cells, shift) for shift in range(longest)]
        return np.mean([w @ w[q] for w in weights], 0)

    products = np.multiply.outer(expected_products(pixel[0]), expected_products(pixel[1]))
    expected = share + (1 - share) * products

    def apply(images: jax.Array) -> jax.Array:
        seen = jnp.clip(images[:, *pixel, 0], 1e-6, 1 - 1e-6)
        return jnp.log(jnp.stack([1 - seen, seen], 1))

    images = np.ones((2, size, size, 1), np.float32)
    run = functools.partial(occlusion.rise, apply, images, masks=4000, cells=cells, share=share)
    found = jax.jit(run)(np.array([1, 0]), jax.random.key(0))
    np.testing.assert_allclose(found[0], expected, atol=0.05)
    assert np.unravel_index(np.argmax(found[0]), (size, size)) == pixel
    # Of the other class, 1 - M_q: E[M_i] / p is 1.
    np.testing.assert_allclose(found[1], 1 - expected, atol=0.05)


def test_masks_belong_to_an_image_and_not_to_its_batch():
    keys = jax.random.split(jax.random.key(1), 3)
    run = functools.partial(occlusion.rise, linear, masks=21, cells=3, baseline=0.5)
    together = run(IMAGES, TARGETS, keys, batch_size=12)
    alone = run(IMAGES[1:2], TARGETS[1:2], keys[1:2], batch_size=5)
    np.testing.assert_allclose(together[1], alone[0], rtol=1e-5)
    assert together.min() >= 0
