"""From what the heads of a detector give to boxes, with shapes that do not depend on data.

The order of things is that of torchvision's `postprocess_detections` (`models/detection/retinanet.py` and `fcos.py`):
on each level the best pairs of anchor and class above a threshold, decoded and clipped, then class-wise non-maximum
suppression (NMS) over the levels together.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.dense import boxes as box_ops
from vision_jax.dense.boxes import BoxCoder, Coder, LinearCoder
from vision_jax.dense.losses import Heads


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is taken for a detection.

    Attributes:
        score_threshold: scores must be above it; at least 0.
        candidates: number of pairs of anchor and class that are kept of each level.
        nms_threshold: of two boxes of a class whose IoU is above it, the better is kept.
        detections: number of boxes that are kept of an image.
        coder: of the boxes.
    """

    score_threshold: float
    candidates: int
    nms_threshold: float
    detections: int
    coder: Coder


RETINANET = Selection(0.05, 1000, 0.5, 300, BoxCoder())
FCOS = Selection(0.2, 1000, 0.6, 100, LinearCoder())


class Detections(NamedTuple):
    """The boxes found in each image, best first.

    Attributes:
        boxes: (batch, n, 4) float32, 0 for padding.
        scores: (batch, n) float32, 0 for padding.
        labels: (batch, n) int32, -1 for padding.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array


def detections(selection: Selection, outputs: Heads, levels: Sequence[np.ndarray], sizes: jax.Array) -> Detections:
    """Returns the detections of each image, in pixels of the canvas.

    Args:
        selection: `RETINANET`, `FCOS`, or other numbers.
        outputs: of the heads; where they have a centre-ness, the score is the root of its product with the class's.
        levels: the anchors of each level, (anchors of the level, 4), static.
        sizes: (batch, 2), height and width of the valid part of each image, to which boxes are clipped.

    Returns:
        `selection.detections` boxes an image, padded.
    """
    found: list[Detections] = []
    begin = 0
    for level in levels:
        part = slice(begin, begin + len(level))
        center = None if outputs.bbox_ctrness is None else outputs.bbox_ctrness[:, part]
        rows, best = _candidates(selection, _scores(outputs.cls_logits[:, part], center))
        codes = jnp.take_along_axis(outputs.bbox_regression[:, part], rows[..., None], 1)
        found.append(best._replace(boxes=selection.coder.decode(codes, jnp.asarray(level)[rows])))
        begin += len(level)
    return _kept(selection, found, sizes)


def decoded(selection: Selection, outputs: Heads, levels: Sequence[np.ndarray]) -> tuple[jax.Array, jax.Array]:
    """Returns the scores of all anchors, (batch, anchors, classes), and their boxes, (batch, anchors, 4), not clipped.

    Arguments as of `detections`, which is `select` of these, without decoding more boxes than it needs.
    """
    boxes = selection.coder.decode(outputs.bbox_regression, jnp.asarray(np.concatenate(levels)))
    return _scores(outputs.cls_logits, outputs.bbox_ctrness), boxes


def select(
    selection: Selection, scores: jax.Array, boxes: jax.Array, counts: Sequence[int], sizes: jax.Array
) -> Detections:
    """Returns the detections of each image, as `detections` does.

    Args:
        selection: as there.
        scores, boxes: of all anchors; see `decoded`.
        counts: how many anchors each level has.
        sizes: as there.
    """
    found: list[Detections] = []
    begin = 0
    for count in counts:
        rows, best = _candidates(selection, scores[:, begin : begin + count])
        found.append(best._replace(boxes=jnp.take_along_axis(boxes[:, begin : begin + count], rows[..., None], 1)))
        begin += count
    return _kept(selection, found, sizes)


def _kept(selection: Selection, found: Sequence[Detections], sizes: jax.Array) -> Detections:
    """Returns what is left of the candidates of all levels."""
    boxes, scores, labels = (jnp.concatenate(parts, 1) for parts in zip(*found, strict=True))
    height, width = (sizes[:, None, side].astype(jnp.float32) for side in range(2))
    boxes = box_ops.clip(boxes, height, width)
    return class_wise_nms(boxes, scores, labels, threshold=selection.nms_threshold, count=selection.detections)


def _scores(logits: jax.Array, center: jax.Array | None) -> jax.Array:
    scores = jax.nn.sigmoid(logits.astype(jnp.float32))
    return scores if center is None else jnp.sqrt(scores * jax.nn.sigmoid(center.astype(jnp.float32)))


def _candidates(selection: Selection, scores: jax.Array) -> tuple[jax.Array, Detections]:
    """Returns the best pairs of anchor and class of a level, best first: the numbers of the anchors, and what is found.

    The latter lacks its boxes, and is padded with labels of -1. Of the n best pairs each has one of the n anchors whose
    best class is best, so only the classes of these are sorted, and not all pairs of a level, which may be ten million.
    """
    batch, count, classes = scores.shape
    _, rows = _best(jnp.max(scores, -1), min(selection.candidates, count))
    # In the order of the anchors, so that of equal pairs the first is taken, as if all had been sorted.
    rows = jnp.sort(rows, -1)
    scores = jnp.take_along_axis(scores, rows[..., None], 1)
    best, pairs = _best(scores.reshape(batch, -1), min(selection.candidates, scores[0].size))
    rows = jnp.take_along_axis(rows, pairs // classes, 1)
    valid = best > jnp.float32(selection.score_threshold)
    boxes = jnp.zeros((batch, 0, 4))
    return rows, Detections(boxes, jnp.where(valid, best, 0.0), jnp.where(valid, pairs % classes, -1))


def _best(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns the highest of values (batch, n), the first of equal ones, and their places: (batch, count) each.

    It is `lax.top_k`, which however brings the values of all devices to each of them.
    """
    places = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
    negative, places = jax.lax.sort((-values, places), dimension=1, is_stable=True, num_keys=1)
    return -negative[:, :count], places[:, :count]


def class_wise_nms(
    boxes: jax.Array, scores: jax.Array, labels: jax.Array, *, threshold: float, count: int
) -> Detections:
    """Returns the boxes that greedy NMS within each class keeps, the `count` best of each image.

    Each of `count` turns picks the best box that is left, and discards those of its class whose IoU with it is above
    the threshold: count * n comparisons, and no n x n matrix. Of equal scores the first is picked. An IoU that is no
    number, of two boxes without area, discards nothing.

    Args:
        boxes: (batch, n, 4).
        scores: (batch, n), above 0.
        labels: (batch, n) integers; -1 for padding.
        threshold: of the IoU.
        count: number of boxes to return.
    """
    limit = float32_limit(threshold)
    places = jnp.arange(boxes.shape[1])
    batch = len(boxes)

    def turn(number: jax.Array, state: tuple[jax.Array, Detections]) -> tuple[jax.Array, Detections]:
        left, kept = state
        best = jnp.argmax(left, 1)
        chosen = places == best[:, None]
        score = jnp.max(left, 1)
        any_left = score > 0
        box = jnp.sum(jnp.where(chosen[..., None], boxes, 0.0), 1)
        label = jnp.sum(jnp.where(chosen, labels, 0), 1)
        overlap = box_ops.iou(box[:, None], boxes)
        gone = chosen | ((labels == label[:, None]) & (overlap > limit))
        kept = Detections(
            kept.boxes.at[:, number].set(jnp.where(any_left[:, None], box, 0.0)),
            kept.scores.at[:, number].set(jnp.where(any_left, score, 0.0)),
            kept.labels.at[:, number].set(jnp.where(any_left, label, -1)),
        )
        return jnp.where(gone, 0.0, left), kept

    nothing = Detections(
        jnp.zeros((batch, count, 4)), jnp.zeros((batch, count)), jnp.full((batch, count), -1, labels.dtype)
    )
    left = jnp.where(labels >= 0, scores, 0.0)
    return jax.lax.fori_loop(0, count, turn, (left, nothing))[1]


def float32_limit(threshold: float) -> np.float32:
    """Returns the number of which the same float32 numbers are above as of `threshold`.

    torchvision compares float32 numbers with a float64 threshold: an IoU of 3 / 5, rounded, is above 0.6.
    """
    limit = np.float32(threshold)
    return limit if float(limit) <= threshold else np.nextafter(limit, np.float32(-1))


def to_original(boxes: jax.Array, sizes: jax.Array, originals: jax.Array) -> jax.Array:
    """Returns the boxes of resized images in pixels of the original ones; each side has its own scale.

    Args:
        boxes: (batch, n, 4).
        sizes: (batch, 2), height and width of the resized images.
        originals: (batch, 2), height and width of the original images.

    Returns:
        (batch, n, 4) float32.
    """
    scale = jnp.flip(originals.astype(jnp.float32) / sizes.astype(jnp.float32), -1)
    return boxes * jnp.concatenate([scale, scale], -1)[:, None]
