import jax
import numpy as np
import pytest

from vision_jax.data.dense_sizes import padded_size, resized_size, resized_sizes, scale_boxes
from vision_jax.dense.resizing import interpolation, prepare, resize_bilinear
from vision_jax.errors import ConfigError


def test_sizes_are_rounded_down_in_float64():
    assert resized_size(500, 334, 800, 1333) == (1197, 799)
    assert resized_size(300, 1000, 800, 1333) == (399, 1333)
    assert resized_size(480, 640, 800, 1333) == (800, 1066)
    assert resized_size(480, 640, 520, 0) == (520, 693)
    assert resized_size(1, 3000, 800, 1333) == (1, 1333)
    assert padded_size(800, 1066) == (800, 1088)


@pytest.mark.parametrize("arguments", [(0, 5, 8, 9), (5, 5, 0, 9), (5, 5, 10, 9)])
def test_sizes_that_cannot_be(arguments: tuple[int, int, int, int]):
    with pytest.raises(ConfigError, match="resized"):
        resized_size(*arguments)
    with pytest.raises(ConfigError, match="resized"):
        resized_sizes(np.array([[30, 40], arguments[:2]]), *arguments[2:])


@pytest.mark.parametrize(("shorter", "longer"), [(800, 1333), (480, 1333), (520, 0), (7, 7)])
def test_many_sizes_are_those_of_each(shorter: int, longer: int):
    sides = np.random.default_rng(0).integers(1, 3000, (5000, 2))
    # Sides of which the ratio, rounded, is just below an integer.
    near = [(side, side * factor // 800) for side in range(1, 2000, 7) for factor in (799, 800, 801)]
    sizes = np.maximum(1, np.concatenate([sides, near, [(334, 500), (1, 3000)]])).astype(np.int32)
    found = resized_sizes(sizes, shorter, longer)
    assert found.dtype == np.int32
    expected = [resized_size(height, width, shorter, longer) for height, width in sizes.tolist()]
    np.testing.assert_array_equal(found, expected)


def test_each_side_of_a_box_has_its_own_scale():
    found = scale_boxes(np.array([[1.0, 2, 3, 4]]), (334, 500), (799, 1197))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], np.array([1, 2, 3, 4]) * np.tile([1197 / 500, 799 / 334], 2), rtol=1e-6)


@pytest.mark.parametrize(("old", "new"), [((7, 9), (13, 20)), ((20, 16), (11, 9)), ((5, 5), (5, 5)), ((1, 4), (6, 3))])
def test_pixels_are_interpolated_between_centres(old: tuple[int, int], new: tuple[int, int]):
    image = np.random.default_rng(0).random((2, *old, 3), np.float32)
    expected = image.astype(np.float64)
    for axis, (before, after) in enumerate(zip(old, new, strict=True), 1):
        at = (np.arange(after) + 0.5) * before / after - 0.5
        rows = np.moveaxis(expected, axis, -1)
        flat = [np.interp(at, np.arange(before), row) for row in rows.reshape(-1, before)]
        expected = np.moveaxis(np.reshape(flat, (*rows.shape[:-1], after)), -1, axis)
    np.testing.assert_allclose(jax.jit(resize_bilinear, static_argnums=1)(image, new), expected, atol=2e-6)
    np.testing.assert_allclose(interpolation(old[0], new[0]).sum(1), 1, rtol=1e-6)


def test_images_are_normalized_before_they_are_padded():
    images = [np.full((10, 20, 3), 0.5, np.float32), np.full((30, 10, 3), 0.25, np.float32)]
    found = prepare(images, shorter=10, longer=25, mean=(0.5, 0.25, 0), std=(1, 1, 0.5), divisor=8)
    assert found.images.shape == (2, 32, 24, 3)
    np.testing.assert_array_equal(found.sizes, [[10, 20], [25, 8]])
    np.testing.assert_allclose(found.images[0, :10, :20], np.broadcast_to([0, 0.25, 1], (10, 20, 3)), atol=1e-6)
    assert not found.images[0, 10:].any()
    assert not found.images[1, :, 8:].any()
