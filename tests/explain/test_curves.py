"""Deletion and insertion of a function whose probability is known: what is left of a sum."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from vision_jax import explain
from vision_jax.explain import curves

RNG = np.random.default_rng(0)
SHAPE = (6, 5)
WEIGHTS = RNG.permutation(np.linspace(0.1, 1, 30)).reshape(SHAPE) / 17  # their sum is below 1


def apply(images: jax.Array) -> jax.Array:
    """The first class's probability is the weighted sum of the pixels, of both channels on average."""
    seen = jnp.clip((images.mean(-1) * WEIGHTS).sum((1, 2)), 1e-6, 1)
    return jnp.log(jnp.stack([seen, 1 - seen], 1))


def test_curves_of_a_perfect_map_and_of_the_worst():
    images = np.ones((2, *SHAPE, 2), np.float32)
    maps = np.stack([WEIGHTS, -WEIGHTS])
    falling = np.sort(WEIGHTS.ravel())[::-1]
    sums = np.concatenate([[0], np.cumsum(falling)])  # of the largest ones
    for step in (7, None):
        places = np.minimum(np.arange(-(-30 // (step or 5)) + 1) * (step or 5), 30)
        best, worst = sums[-1] - sums[places], sums[30 - places]
        found = explain.deletion(apply, images, maps, np.array([0, 0]), step=step, batch_size=9)
        np.testing.assert_allclose(found.shares, places / 30, rtol=1e-6)
        np.testing.assert_allclose(found.scores, [best, worst], atol=1e-5)
        np.testing.assert_allclose(found.auc, [np.trapezoid(row) / (len(row) - 1) for row in (best, worst)], atol=1e-5)
        assert found.auc[0] < found.auc[1]
        found = explain.insertion(apply, images, maps, np.array([0, 0]), step=step, baseline=0.0)
        np.testing.assert_allclose(found.scores, [sums[places], sums[-1] - sums[30 - places]], atol=1e-5)
        assert found.auc[0] > found.auc[1]


def test_the_class_is_that_of_the_image():
    images = np.stack([np.ones((*SHAPE, 2)), np.full((*SHAPE, 2), 0.01)]).astype(np.float32)
    maps = np.broadcast_to(WEIGHTS, (2, *SHAPE))
    found, expected = (explain.deletion(apply, images, maps, targets) for targets in (None, np.array([0, 1])))
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.scores[1, 0] > 0.5


def test_pixels_of_one_value_go_from_the_upper_left():
    maps = np.array([[[0.0, 1, 0], [1, 0, 2]]])
    np.testing.assert_array_equal(curves.order(maps), [[[3, 1, 4], [2, 5, 0]]])


def test_the_blur_is_a_convolution_with_a_reflected_gaussian():
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = scipy.ndimage.gaussian_filter(impulse, 5)
    np.testing.assert_allclose(np.outer(curves.blur_kernel(), curves.blur_kernel()), kernel, atol=1e-12)
    image = RNG.uniform(size=(1, 16, 12, 3)).astype(np.float32)
    expected = [scipy.ndimage.convolve(image[0, ..., i], kernel, mode="constant") for i in range(3)]
    np.testing.assert_allclose(curves.blur(image)[0], np.stack(expected, -1), rtol=1e-5)
    flat = explain.insertion(lambda x: x.mean((1, 2)), image, np.zeros((1, 16, 12)), np.array([0])).scores[0, 0]
    np.testing.assert_allclose(flat, jax.nn.softmax(np.stack(expected, -1).mean((0, 1)))[0], rtol=1e-4)
