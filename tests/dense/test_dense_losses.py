import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vision_jax.dense import boxes as box_ops
from vision_jax.dense import losses
from vision_jax.dense.anchors import Anchors
from vision_jax.dense.matching import IGNORED, match_by_center, match_by_iou
from vision_jax.errors import ConfigError

RETINANET = Anchors(((16, 20), (32,)), (0.5, 1.0)).levels(((4, 5), (2, 3)), (32, 40))
FCOS = Anchors(((8,), (16,)), (1.0,)).levels(((4, 5), (2, 3)), (32, 40))
CLASSES = 3
BOXES = np.array(
    [[[2, 3, 20, 22], [10, 5, 38, 30], [0, 0, 0, 0]], [[5, 6, 31, 19], [0, 0, 0, 0], [0, 0, 0, 0]], np.zeros((3, 4))],
    np.float32,
)
LABELS = np.array([[1, 2, -1], [0, -1, -1], [-1, -1, -1]], np.int32)


def made_up(levels: tuple[np.ndarray, ...], batch: int = 3, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    count = sum(map(len, levels))

    def draw(size: int) -> np.ndarray:
        return generator.standard_normal((batch, count, size)).astype(np.float32)

    return SimpleNamespace(cls_logits=draw(CLASSES), bbox_regression=np.abs(draw(4)) / 2, bbox_ctrness=draw(1))


def rows(outputs: Any, chosen: Any) -> Any:
    return SimpleNamespace(**{name: value[chosen] for name, value in vars(outputs).items()})


def test_the_focal_loss_of_a_logit_of_zero():
    found = losses.sigmoid_focal_loss(jnp.zeros(2), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(found, [0.043322, 0.129965], atol=1e-6)


def test_the_focal_loss_makes_no_integers_of_its_targets():
    """One for each logit would take as much memory as the logits, should the compiler write them there."""
    logits = jnp.zeros((2, 6, 5))

    def loss(logits, labels):
        return losses.sigmoid_focal_loss(logits, labels[..., None] == jnp.arange(5)).sum()

    labels = jnp.zeros((2, 6), jnp.int32)
    text = str(jax.make_jaxpr(jax.value_and_grad(loss))(logits, labels))
    assert "bool[2,6,5]" in text
    assert "i32[2,6,5]" not in text


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1, 3.0), (0.7, 1.5), (0.5, 0.0)])
def test_the_focal_loss_and_its_gradient_are_optax_s(alpha: float, gamma: float):
    logits = jnp.array([-30.0, -3, -0.5, 0.2, 2, 30])
    for targets in (jnp.zeros(6), jnp.ones(6)):
        found = losses.sigmoid_focal_loss(logits, targets, alpha, gamma)
        other = functools.partial(
            optax.sigmoid_focal_loss, labels=targets, alpha=None if alpha < 0 else alpha, gamma=gamma
        )
        np.testing.assert_allclose(found, other(logits), rtol=2e-5, atol=1e-7)
        slope = jax.grad(lambda x, t=targets: losses.sigmoid_focal_loss(x, t, alpha, gamma).sum())(logits)
        expected = jax.grad(lambda x, other=other: other(x).sum())(logits)
        np.testing.assert_allclose(slope[1:-1], expected[1:-1], rtol=2e-4, atol=1e-7)
        assert jnp.isfinite(slope).all()


def test_sigmoid_cross_entropy_does_not_overflow():
    found = losses.sigmoid_cross_entropy(jnp.array([1000.0, -1000, 0]), jnp.array([0.0, 0, 0.5]))
    np.testing.assert_allclose(found, [1000, 0, np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("regression", losses.REGRESSIONS)
def test_retinanet_divides_by_the_foreground_of_each_image(regression: str):
    outputs = made_up(RETINANET)
    anchors = np.concatenate(RETINANET)
    sums = jax.jit(lambda: losses.retinanet_loss(outputs, RETINANET, BOXES, LABELS, regression=regression))()
    matches = jax.tree.map(np.asarray, jax.jit(match_by_iou)(anchors, BOXES, LABELS))
    classification = regressed = 0.0
    for logits, codes, number, labels, boxes in zip(
        outputs.cls_logits, outputs.bbox_regression, matches.number, matches.labels, BOXES, strict=True
    ):
        found, count = number >= 0, max(1, (number >= 0).sum())
        targets = np.eye(CLASSES)[labels] * found[:, None]
        focal = np.asarray(losses.sigmoid_focal_loss(logits, targets))
        classification += focal[number != IGNORED].sum() / count
        own, beside = boxes[number[found]], anchors[found]
        if regression == "l1":
            regressed += np.abs(codes[found] - box_ops.BoxCoder().encode(own, beside)).sum() / count
        else:
            regressed += box_ops.giou_loss(box_ops.BoxCoder().decode(codes[found], beside), own).sum() / count
    assert (matches.number == IGNORED).any()
    np.testing.assert_allclose(sums["classification"][0], classification, rtol=1e-5)
    np.testing.assert_allclose(sums["bbox_regression"][0], regressed, rtol=1e-5)
    np.testing.assert_allclose(sums["loss"][0], classification + regressed, rtol=1e-5)
    assert all(weight == 3 and weight.dtype == total.dtype == jnp.float32 for total, weight in sums.values())


def test_fcos_sums_over_the_batch():
    outputs = made_up(FCOS)
    anchors = np.concatenate(FCOS)
    sums = jax.jit(lambda: losses.fcos_loss(outputs, FCOS, BOXES, LABELS))()
    matches = jax.tree.map(np.asarray, jax.jit(lambda: match_by_center(FCOS, BOXES, LABELS))())
    count = (matches.number >= 0).sum()
    assert count > 3
    expected = dict.fromkeys(("classification", "bbox_regression", "bbox_ctrness"), 0.0)
    for image in range(3):
        found = matches.number[image] >= 0
        targets = np.eye(CLASSES)[matches.labels[image]] * found[:, None]
        expected["classification"] += losses.sigmoid_focal_loss(outputs.cls_logits[image], targets).sum()
        own, beside = BOXES[image][matches.number[image][found]], anchors[found]
        decoded = box_ops.LinearCoder().decode(outputs.bbox_regression[image][found], beside)
        expected["bbox_regression"] += box_ops.giou_loss(decoded, own).sum()
        left, top, right, bottom = np.asarray(box_ops.LinearCoder().encode(own, beside)).T
        across, along = (np.minimum(a, b) / np.maximum(a, b) for a, b in ((left, right), (top, bottom)))
        logits = outputs.bbox_ctrness[image, found, 0]
        expected["bbox_ctrness"] += optax.sigmoid_binary_cross_entropy(logits, np.sqrt(across * along)).sum()
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name][0], value, rtol=1e-5)
        assert sums[name][1] == count
    np.testing.assert_allclose(sums["loss"][0], sum(expected.values()), rtol=1e-5)


def test_the_centre_ness_of_a_published_example():
    distances = jnp.array([[1.25, 0.75, 1.25, 1.75], [-1, 2, 3, 4]])
    found = losses.centerness(distances, jnp.array([True, False]))
    np.testing.assert_allclose(found, [0.654654, 0], atol=1e-6)


@pytest.mark.parametrize(("function", "levels"), [(losses.retinanet_loss, RETINANET), (losses.fcos_loss, FCOS)])
def test_parts_of_a_batch_add_up_and_padded_examples_are_left_out(function: Any, levels: Any):
    outputs = made_up(levels)
    compute = jax.jit(lambda logits, codes, centers, *batch: function(
        SimpleNamespace(cls_logits=logits, bbox_regression=codes, bbox_ctrness=centers), levels, *batch
    ))  # fmt: skip

    def of(chosen: Any, mask: Any = None) -> losses.Sums:
        return compute(*vars(rows(outputs, chosen)).values(), BOXES[chosen], LABELS[chosen], mask)

    whole, parts = of(slice(None)), [of(slice(0, 1)), of(slice(1, 3))]
    for name, pair in whole.items():
        for value, *of_parts in zip(pair, *(part[name] for part in parts), strict=True):
            np.testing.assert_allclose(value, sum(of_parts), rtol=1e-6)
    outputs.cls_logits[2] = np.nan
    masked, first = of(slice(None), np.array([1, 1, 0])), of(slice(0, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), masked, first)


@pytest.mark.parametrize(("function", "levels"), [(losses.retinanet_loss, RETINANET), (losses.fcos_loss, FCOS)])
def test_images_without_boxes_have_finite_gradients(function: Any, levels: Any):
    outputs = made_up(levels)

    def total(values: dict[str, jax.Array]) -> jax.Array:
        return function(SimpleNamespace(**values), levels, BOXES[2:], LABELS[2:])["loss"][0]

    gradients = jax.jit(jax.grad(total))(vars(rows(outputs, slice(2, 3))))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert not gradients["bbox_regression"].any()


def test_mistakes_are_said():
    outputs = made_up(RETINANET)
    with pytest.raises(ConfigError, match="'giuo': did you mean giou"):
        losses.retinanet_loss(outputs, RETINANET, BOXES, LABELS, regression="giuo")
    outputs.bbox_ctrness = None
    with pytest.raises(ConfigError, match="centre-ness"):
        losses.fcos_loss(outputs, FCOS, BOXES, LABELS)


def test_segmentation_counts_pixels_that_are_not_ignored():
    generator = np.random.default_rng(0)
    outputs = {name: generator.standard_normal((2, 4, 5, 6)).astype(np.float32) for name in ("out", "aux")}
    labels = generator.integers(0, 6, (2, 4, 5)).astype(np.uint8)
    labels[:, 0], labels[1, 1, 1] = 255, 255
    sums = losses.segmentation_loss(outputs, labels)
    counted = labels != 255
    for name in ("out", "aux"):
        each = optax.softmax_cross_entropy_with_integer_labels(outputs[name], np.where(counted, labels, 0))
        np.testing.assert_allclose(sums[name][0], each[counted].sum(), rtol=1e-5)
        assert sums[name][1] == counted.sum()
    np.testing.assert_allclose(sums["loss"][0], sums["out"][0] + 0.5 * sums["aux"][0], rtol=1e-6)
    first = losses.segmentation_loss(jax.tree.map(lambda x: x[:1], outputs), labels[:1], aux_weight=0.4)
    masked = losses.segmentation_loss(outputs, labels, np.array([1, 0]), aux_weight=0.4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), masked, first)
    alone = losses.segmentation_loss({"out": outputs["out"]}, labels)
    assert alone.keys() == {"loss", "out"}
