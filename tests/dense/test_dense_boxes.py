import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.dense import boxes
from vision_jax.dense.anchors import FCOS, RETINANET, Anchors
from vision_jax.errors import ConfigError


def some_boxes(count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    corners, sizes = generator.uniform(0, 200, (count, 2)), generator.uniform(5, 150, (count, 2))
    return np.concatenate([corners, corners + sizes], 1).astype(np.float32)


def numpy_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In float32, with one rounding an operation."""
    sides = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), np.float32(0))
    common = sides[..., 0] * sides[..., 1]
    areas = [(c[..., 2] - c[..., 0]) * (c[..., 3] - c[..., 1]) for c in (a, b)]
    return common / (areas[0] + areas[1] - common)


def test_a_compiled_iou_has_the_bits_of_one_that_is_computed_step_by_step():
    a, b = some_boxes(100, 0)[:, None], some_boxes(3000, 1)[None]
    found = jax.jit(boxes.iou)(a, b)
    np.testing.assert_array_equal(found, numpy_iou(a, b))

    @jax.jit
    def ties(a: jax.Array, b: jax.Array) -> jax.Array:
        overlap = boxes.iou(a, b)
        return jnp.sum(overlap == jnp.max(overlap, 1, keepdims=True), 1)

    assert (ties(a, b) >= 1).all()


def test_overlap_of_boxes_that_a_person_can_compute():
    first, second = jnp.array([0.0, 0, 2, 2]), jnp.array([1.0, 1, 3, 3])
    assert boxes.area(second) == 4
    assert boxes.iou(first, second) == pytest.approx(1 / 7)
    assert boxes.giou(first, second) == pytest.approx(1 / 7 - 2 / 9)
    assert boxes.giou_loss(first, second) == pytest.approx(1.079365, abs=1e-6)
    assert boxes.iou(first, first + 5) == 0
    assert np.isnan(boxes.iou(jnp.zeros(4), jnp.ones(4)))  # neither has an area


def test_boxes_that_only_touch_pull_on_each_other_but_have_no_gradient_of_their_intersection():
    touching = jnp.array([2.0, 0, 4, 2])
    gradient = jax.grad(lambda box: boxes.giou_loss(box, jnp.array([0.0, 0, 2, 2])))(touching)
    assert jnp.isfinite(gradient).all()
    still = jax.grad(lambda box: boxes.intersection_and_union(box, jnp.array([0.0, 0, 2, 2]))[0])(touching)
    np.testing.assert_array_equal(still, 0)


def test_clipping_keeps_boxes_inside_each_image():
    found = boxes.clip(jnp.array([[-3.0, 5, 20, 9], [12, -8, 15, -2]]), jnp.array([8.0, 30.0]), jnp.array([10.0, 14.0]))
    np.testing.assert_array_equal(found, [[0, 5, 10, 8], [12, 0, 14, 0]])


def test_codes_of_a_box_that_is_shifted_by_a_fifth():
    anchor, box = jnp.array([0.0, 0, 10, 20]), jnp.array([2.0, 4, 12, 24])
    np.testing.assert_allclose(boxes.BoxCoder().encode(box, anchor), [0.2, 0.2, 0, 0], atol=1e-7)
    np.testing.assert_allclose(boxes.BoxCoder((10, 10, 5, 5)).encode(box, anchor), [2, 2, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    "coder",
    [boxes.BoxCoder(), boxes.BoxCoder((10, 10, 5, 5)), boxes.LinearCoder(), boxes.LinearCoder(by_size=False)],
)
def test_decoding_reverses_encoding(coder: boxes.Coder):
    anchors, truth = some_boxes(40, 2), some_boxes(40, 3)
    np.testing.assert_allclose(coder.decode(coder.encode(truth, anchors), anchors), truth, atol=2e-4)


def test_a_size_is_at_most_sixty_two_and_a_half_times_the_anchors():
    found = boxes.BoxCoder().decode(jnp.array([0.0, 0, 50, 50]), jnp.array([0.0, 0, 2, 4]))
    np.testing.assert_allclose(found, [1 - 62.5, 2 - 125, 1 + 62.5, 2 + 125], rtol=1e-5)


def test_fcos_codes_of_a_published_example():
    codes = boxes.LinearCoder().encode(jnp.array([-10.0, -6, 10, 14]), jnp.array([-4.0, -4, 4, 4]))
    np.testing.assert_allclose(codes, [1.25, 0.75, 1.25, 1.75])


def test_anchors_are_rounded_and_begin_at_the_corner():
    np.testing.assert_array_equal(RETINANET.cell(0)[::3], [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    assert RETINANET.sizes[4] == (512, 645, 812)
    assert RETINANET.per_cell == (9,) * 5
    assert FCOS.per_cell == (1,) * 5
    small = Anchors(((4,),), (1.0,))
    (found,) = small.levels(((2, 3),), (17, 24))  # 8 pixels a cell, as 17 / 2 is rounded down
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, :2] + 2, [(0, 0), (8, 0), (16, 0), (0, 8), (8, 8), (16, 8)])
    (given,) = small.levels(((2, 3),), (17, 24), strides=(4,))
    np.testing.assert_array_equal(given[-1], [6, 2, 10, 6])


def test_maps_of_another_number_of_levels_are_an_error():
    with pytest.raises(ConfigError, match="2 maps and 5 levels"):
        RETINANET.levels(((4, 4), (2, 2)), (32, 32))
