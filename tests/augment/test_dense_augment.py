"""Flips, colors and normalization of an image on a canvas, beside NumPy on the image alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.augment import dense
from vision_jax.augment.pipeline import AugmentConfig, create_augmentation

SIZES = [(20, 30), (32, 11), (7, 40), (32, 40)]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def example(height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    """An image of a size on a canvas of 32x40 pixels, with two objects and a mask that shows them."""
    random = np.random.RandomState(seed)
    image, mask = np.zeros((32, 40, 3), np.uint8), np.full((32, 40), 255, np.uint8)
    image[:height, :width] = random.randint(0, 256, (height, width, 3))
    mask[:height, :width] = 0
    half = height // 2
    boxes = np.zeros((4, 4), np.float32)
    boxes[0], boxes[1] = (1, 0, width // 2, half), (width // 3, half, width, height)
    for i in range(2):
        x1, y1, x2, y2 = boxes[i].astype(int)
        mask[y1:y2, x1:x2] = i + 1
    labels = np.asarray([0, 1, -1, -1], np.int32)
    size = np.asarray([height, width], np.int32)
    return {"image": image, "size": size, "boxes": boxes, "box_labels": labels, "segmentation": mask, "index": size[0]}


def batch() -> dict[str, np.ndarray]:
    examples = [example(*size, seed) for seed, size in enumerate(SIZES)]
    return {name: np.stack([one[name] for one in examples]) for name in examples[0]}


@pytest.fixture(scope="module")
def flipped() -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(dense.flip))(batch()))


def test_a_flip_mirrors_the_image_and_not_its_padding(flipped: dict[str, np.ndarray]):
    given = batch()
    for row, (height, width) in enumerate(SIZES):
        for name, padding in (("image", 0), ("segmentation", 255)):
            inside = flipped[name][row, :height, :width]
            np.testing.assert_array_equal(inside, given[name][row, :height, :width][:, ::-1])
            outside = flipped[name][row].copy()
            outside[:height, :width] = padding
            assert (outside == padding).all()
            assert flipped[name].dtype == np.uint8


def test_flipped_boxes_are_those_of_the_flipped_mask(flipped: dict[str, np.ndarray]):
    for row in range(len(SIZES)):
        assert not flipped["boxes"][row, 2:].any()
        for i in range(2):
            rows, columns = np.nonzero(flipped["segmentation"][row] == i + 1)
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert flipped["boxes"][row, i].tolist() == around
    np.testing.assert_array_equal(flipped["box_labels"], batch()["box_labels"])


def test_flips_are_drawn_for_each_example():
    one = example(20, 30)
    keys = jax.random.split(jax.random.key(0), 64)
    found = jax.vmap(lambda key: dense.random_flip(key, one, 0.5)["boxes"][0, 0])(keys)
    assert set(np.asarray(found).tolist()) == {1.0, 15.0}
    assert 16 < int((found == 1).sum()) < 48
    np.testing.assert_array_equal(dense.random_flip(keys[0], one, 0.0)["image"], one["image"])
    np.testing.assert_array_equal(dense.random_flip(keys[0], one, 1.0)["image"], dense.flip(one)["image"])
    without = {name: one[name] for name in ("image", "size")}
    assert dense.random_flip(keys[0], without, 1.0).keys() == without.keys()


def test_colors_change_as_they_would_without_padding():
    augmentation = create_augmentation(AugmentConfig(color_jitter=(0.4, 0.6, 0.4, 0.1)))
    given = batch()
    keys = jax.random.split(jax.random.key(3), len(SIZES))
    changed = jax.vmap(lambda key, one: dense.change_colors(key, one, augmentation))(keys, given)
    for row, (height, width) in enumerate(SIZES):
        alone = augmentation.recolor(keys[row], jnp.asarray(given["image"][row, :height, :width]))
        inside = np.asarray(changed["image"])[row, :height, :width].astype(int)
        assert np.abs(inside - np.asarray(alone)).max() <= 4  # the mean gray is rounded more than once
        assert np.abs(inside - given["image"][row, :height, :width]).mean() > 2
        outside = np.asarray(changed["image"])[row].copy()
        outside[:height, :width] = 0
        assert not outside.any()
    np.testing.assert_array_equal(changed["boxes"], given["boxes"])


def test_augmentation_that_is_off_changes_nothing_and_both_parts_are_done():
    one, key = example(20, 30), jax.random.key(0)
    nothing = dense.augment(key, one, create_augmentation(AugmentConfig()))
    for name, value in one.items():
        np.testing.assert_array_equal(nothing[name], value)
    both = dense.augment(key, one, create_augmentation(AugmentConfig(flip=1.0, greyscale=1.0)))
    image = np.asarray(both["image"])
    assert (image[..., 0] == image[..., 1]).all()
    np.testing.assert_array_equal(both["segmentation"], dense.flip(one)["segmentation"])


def test_normalization_leaves_the_padding_zero():
    given = batch()
    found = jax.vmap(lambda image, size: dense.normalize_valid(image, size, MEAN, STD))(given["image"], given["size"])
    assert found.dtype == jnp.float32
    expected = (given["image"] / 255.0 - MEAN) / STD
    for row, (height, width) in enumerate(SIZES):
        np.testing.assert_allclose(found[row, :height, :width], expected[row, :height, :width], rtol=1e-5, atol=1e-5)
        outside = np.asarray(found[row]).copy()
        outside[:height, :width] = 0
        assert not outside.any()
