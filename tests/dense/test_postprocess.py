import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.dense.anchors import Anchors
from vision_jax.dense.boxes import BoxCoder, LinearCoder
from vision_jax.dense.postprocess import FCOS, RETINANET, Selection, class_wise_nms, detections, to_original

LEVELS = Anchors(((12, 16), (24,)), (0.5, 1.0)).levels(((4, 5), (2, 3)), (32, 40))


def numpy_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for number in np.argsort(-scores, kind="stable"):
        a, b = boxes[number], boxes[kept].reshape(-1, 4)
        sides = np.maximum(np.minimum(a[2:], b[:, 2:]) - np.maximum(a[:2], b[:, :2]), 0)
        common = sides.prod(1)
        with np.errstate(invalid="ignore"):
            overlap = common / ((a[2:] - a[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(1) - common)
        if not (overlap > threshold).any():
            kept.append(int(number))
    return kept


def of_image(outputs: Any, image: int, size: tuple[int, int], selection: Selection) -> list[tuple]:
    """Returns (score, label, box) of what is to be found, best first, by plain numpy."""
    boxes, scores, labels, begin = [], [], [], 0
    for level in LEVELS:
        part = slice(begin, begin + len(level))
        begin += len(level)
        of_level = 1 / (1 + np.exp(-outputs.cls_logits[image, part].astype(np.float64)))
        if outputs.bbox_ctrness is not None:
            of_level = np.sqrt(of_level / (1 + np.exp(-outputs.bbox_ctrness[image, part].astype(np.float64))))
        pairs = np.argsort(-of_level.reshape(-1), kind="stable")[: selection.candidates]
        pairs = pairs[of_level.reshape(-1)[pairs] > selection.score_threshold]
        anchors, classes = np.divmod(pairs, of_level.shape[1])
        decoded = selection.coder.decode(jnp.asarray(outputs.bbox_regression[image, part][anchors]), level[anchors])
        boxes.append(np.asarray(decoded).clip(0, [size[1], size[0]] * 2))
        scores.append(of_level.reshape(-1)[pairs])
        labels.append(classes)
    all_boxes, all_scores, all_labels = map(np.concatenate, (boxes, scores, labels))
    found = []
    for label in np.unique(all_labels):
        own = np.flatnonzero(all_labels == label)
        kept = own[numpy_nms(all_boxes[own], all_scores[own], selection.nms_threshold)]
        found += [(-all_scores[number], number, int(label), all_boxes[number]) for number in kept]
    found.sort(key=lambda row: row[:2])
    return [(-score, label, box) for score, _, label, box in found[: selection.detections]]


@pytest.mark.parametrize("candidates", [7, 40, 1000])
@pytest.mark.parametrize("network", ["retinanet", "fcos"])
def test_detections_are_those_of_plain_numpy(network: str, candidates: int):
    generator = np.random.default_rng(1)
    count = sum(map(len, LEVELS))
    center = generator.standard_normal((2, count, 1)).astype(np.float32) if network == "fcos" else None
    codes = generator.standard_normal((2, count, 4)).astype(np.float32) * np.float32(0.3)
    logits = generator.standard_normal((2, count, 3)).astype(np.float32) - 1
    outputs = SimpleNamespace(cls_logits=logits, bbox_regression=np.abs(codes), bbox_ctrness=center)
    selection = dataclasses.replace({"retinanet": RETINANET, "fcos": FCOS}[network], candidates=candidates)
    selection = dataclasses.replace(selection, detections=25, score_threshold=0.3)
    sizes = np.array([[32, 40], [20, 33]], np.int32)
    found = jax.jit(lambda sizes: detections(selection, outputs, LEVELS, sizes))(sizes)
    assert (found.boxes.shape, found.scores.shape) == ((2, 25, 4), (2, 25))
    assert found.labels.dtype == jnp.int32
    for image in range(2):
        expected = of_image(outputs, image, tuple(sizes[image]), selection)
        n = len(expected)
        assert 3 < n <= 25
        np.testing.assert_array_equal(found.labels[image, :n], [label for _, label, _ in expected])
        np.testing.assert_allclose(found.scores[image, :n], [score for score, _, _ in expected], rtol=1e-6)
        np.testing.assert_allclose(found.boxes[image, :n], [box for _, _, box in expected], atol=1e-4)
        np.testing.assert_array_equal(found.labels[image, n:], -1)
        assert not found.scores[image, n:].any()
        assert not found.boxes[image, n:].any()


def test_the_published_numbers():
    assert dataclasses.astuple(RETINANET)[:4] == (0.05, 1000, 0.5, 300)
    assert dataclasses.astuple(FCOS)[:4] == (0.2, 1000, 0.6, 100)
    assert (RETINANET.coder, FCOS.coder) == (BoxCoder(), LinearCoder())


def nms(boxes: list, scores: list, labels: list, threshold: float = 0.5, count: int = 4):
    arrays = np.array([boxes], np.float32), np.array([scores], np.float32), np.array([labels], np.int32)
    found = class_wise_nms(*map(jnp.asarray, arrays), threshold=threshold, count=count)
    return jax.tree.map(lambda values: values[0], found)


def test_boxes_of_other_classes_are_kept_and_of_equal_scores_the_first():
    box, near = [0, 0, 10, 10], [0, 0, 10, 9]
    found = nms([near, box, box, box], [0.5, 0.5, 0.9, 0.2], [1, 1, 2, -1])
    np.testing.assert_array_equal(found.labels, [2, 1, -1, -1])
    np.testing.assert_array_equal(found.boxes[1], near)
    np.testing.assert_allclose(found.scores, [0.9, 0.5, 0, 0])


def test_boxes_without_area_do_not_discard_each_other():
    found = nms([[5, 5, 5, 9]] * 2, [0.5, 0.4], [1, 1])
    np.testing.assert_array_equal(found.labels, [1, 1, -1, -1])


def test_an_iou_is_compared_as_a_float64_number():
    # Three fifths is a little more than .6 in float32, and what is not above the threshold is kept.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 6]]
    assert float(np.float32(0.6)) > 0.6
    np.testing.assert_array_equal(nms(boxes, [0.5, 0.4], [1, 1], 0.6).labels, [1, -1, -1, -1])
    np.testing.assert_array_equal(nms([[0, 0, 10, 10], [0, 0, 10, 5]], [0.5, 0.4], [1, 1]).labels, [1, 1, -1, -1])


def test_a_discarded_box_discards_nothing():
    boxes = [[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]]
    np.testing.assert_allclose(nms(boxes, [0.9, 0.8, 0.7], [1, 1, 1]).scores, [0.9, 0.7, 0, 0])


def test_boxes_go_back_to_the_original_image():
    found = to_original(jnp.array([[[10.0, 20, 30, 40]]]), jnp.array([[100, 50]]), jnp.array([[200, 25]]))
    np.testing.assert_array_equal(found, [[[5, 40, 15, 80]]])
