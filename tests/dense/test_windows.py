import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.dense.windows import mirrored_probabilities, sliding_logits, window_positions
from vision_jax.errors import ConfigError


def test_windows_end_where_the_canvas_ends():
    np.testing.assert_array_equal(window_positions((512, 683), 512, 341), [[0, 0], [0, 171]])
    assert len(window_positions((1024, 2048), 512, 341)) == 3 * 6
    np.testing.assert_array_equal(window_positions((300, 400), 512, 341), [[0, 0]])
    np.testing.assert_array_equal(window_positions((10, 5), 5, 5), [[0, 0], [5, 0]])
    for stride in (0, 6):
        with pytest.raises(ConfigError, match="do not cover"):
            window_positions((10, 10), 5, stride)


def test_logits_are_averaged_over_the_windows_of_a_pixel():
    images = np.random.default_rng(0).standard_normal((2, 9, 11, 2)).astype(np.float32)

    def apply(window: jax.Array) -> jax.Array:
        """Of a pixel and of the mean of its window."""
        assert window.shape == (2, 6, 6, 2)
        mean = jnp.mean(window, (1, 2), keepdims=True)
        return jnp.concatenate([window, jnp.broadcast_to(mean, window.shape)], -1)

    found = np.asarray(jax.jit(lambda images: sliding_logits(apply, images, 6, 4))(images))
    total, count = np.zeros((2, 9, 11, 4)), np.zeros((9, 11, 1))
    for top in (0, 3):
        for left in (0, 4, 5):
            area = slice(top, top + 6), slice(left, left + 6)
            total[:, *area] += apply(images[:, *area])
            count[area] += 1
    np.testing.assert_allclose(found, total / count, atol=1e-5)
    np.testing.assert_allclose(found[..., :2], images, atol=1e-5)


def test_a_canvas_smaller_than_the_window_is_one_window():
    images = np.random.default_rng(1).standard_normal((1, 4, 7, 3)).astype(np.float32)
    np.testing.assert_allclose(sliding_logits(lambda x: 2 * x, images, 6, 5), 2 * images, rtol=1e-6)


def test_mirror_images_are_averaged_as_probabilities_and_their_padding_stays_at_the_right():
    generator = np.random.default_rng(2)
    images = generator.standard_normal((2, 3, 6, 4)).astype(np.float32)
    images[1, :, 4:] = 0

    def apply(x: jax.Array) -> jax.Array:
        return x * jnp.arange(1.0, 7.0)[:, None]  # what is said of a pixel depends on where it is

    found = mirrored_probabilities(apply, images, np.array([6, 4]))
    for number, width in enumerate((6, 4)):
        image = images[number, :, :width]
        scale = np.arange(1.0, width + 1)[:, None]
        expected = (jax.nn.softmax(image * scale) + jax.nn.softmax(image * scale[::-1])) / 2
        np.testing.assert_allclose(found[number, :, :width], expected, atol=1e-6)
    np.testing.assert_allclose(mirrored_probabilities(apply, images)[0], found[0], atol=1e-6)
