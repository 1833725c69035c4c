"""Which box each anchor is to find, by the rules of RetinaNet and of FCOS.

Both go through the boxes one after the other (`lax.scan`), and keep for each anchor the best box so far. So no matrix
of anchors x boxes is ever made (for 200,000 anchors and 100 boxes it has 80 MB for each image), the box that belongs to
an anchor is carried along and not gathered, and a batch that is divided over devices stays so, which it would not if
the loop went over its images.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.dense import boxes as box_ops

BACKGROUND = -1
IGNORED = -2


class Matches(NamedTuple):
    """What each anchor is to find.

    Attributes:
        number: that of its box, `BACKGROUND` or `IGNORED`: (batch, anchors) int32.
        boxes: its box, (batch, anchors, 4) float32; where the anchor has none, another box or the anchor itself.
        labels: class of its box, (batch, anchors) int32; -1 where it has none.
    """

    number: jax.Array
    boxes: jax.Array
    labels: jax.Array

    @property
    def foreground(self) -> jax.Array:
        """Whether the anchor has a box: (batch, anchors) bool."""
        return self.number >= 0


class _Best(NamedTuple):
    value: jax.Array
    number: jax.Array
    sides: tuple[jax.Array, ...]
    label: jax.Array
    low_quality: jax.Array


def match_by_iou(
    anchors: np.ndarray,
    boxes: jax.Array,
    labels: jax.Array,
    *,
    foreground: float = 0.5,
    background: float = 0.4,
    low_quality: bool = True,
) -> Matches:
    """Matches each anchor to the box with which it has the highest IoU, as torchvision's `Matcher` does.

    An anchor whose highest IoU is less than `background` has no box, and one whose highest IoU is between that and
    `foreground` is ignored. With `low_quality`, each anchor that has, or shares, a box's highest IoU gets the box that
    is best for the anchor, however little that is. Among equal boxes the first counts.

    Args:
        anchors: (anchors, 4).
        boxes: (batch, boxes, 4).
        labels: (batch, boxes) integers, -1 for padding. A box without area counts as padding.
    """

    def rate(box: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        overlap = jnp.where(valid[:, None], box_ops.iou(box[:, None], jnp.asarray(anchors)[None]), -1.0)
        highest = jnp.max(overlap, axis=1, keepdims=True)
        return overlap, valid[:, None] & (overlap == highest)

    best = _go_through(anchors, boxes, labels, rate)
    number = jnp.where(best.value < foreground, IGNORED, best.number)
    number = jnp.where(best.value < background, BACKGROUND, number)
    if low_quality:
        number = jnp.where(best.low_quality, best.number, number)
    return _matches(best, number)


def match_by_center(
    levels: Sequence[np.ndarray],
    boxes: jax.Array,
    labels: jax.Array,
    *,
    radius: float = 1.5,
) -> Matches:
    """Matches the centre of each anchor to the smallest box that may be found there, as torchvision's FCOS does.

    The centre must be inside the box, and nearer than `radius` anchor sizes to its centre in x and y. The farthest side
    of the box must be between 4 and 8 anchor sizes away; the first level has no lower limit, and the last no upper one.

    Args:
        levels: the anchors of each level, (anchors of the level, 4): squares as large as its stride.
        boxes: (batch, boxes, 4).
        labels: (batch, boxes) integers, -1 for padding. A box without area counts as padding.
        radius: in anchor sizes.
    """
    anchors = np.concatenate(levels)
    x, y = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
    size = anchors[:, 2] - anchors[:, 0]
    low, high = 4 * size, 8 * size
    low[: len(levels[0])], high[len(high) - len(levels[-1]) :] = 0, np.inf

    def rate(box: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        x1, y1, x2, y2 = (side[:, None] for side in box_ops.split(box))
        near = jnp.maximum(jnp.abs(x - (x1 + x2) / 2), jnp.abs(y - (y1 + y2) / 2)) < radius * size
        sides = x - x1, y - y1, x2 - x, y2 - y
        inside = jnp.minimum(jnp.minimum(sides[0], sides[1]), jnp.minimum(sides[2], sides[3])) > 0
        farthest = jnp.maximum(jnp.maximum(sides[0], sides[1]), jnp.maximum(sides[2], sides[3]))
        possible = valid[:, None] & near & inside & (farthest > low) & (farthest < high)
        # Smaller boxes count more; as in torchvision, areas that float32 cannot tell apart beside 1e8 are equal.
        value = jnp.where(possible, 1e8 - box_ops.area(box)[:, None], 0.0)
        return value, jnp.zeros_like(possible)

    best = _go_through(anchors, boxes, labels, rate)
    return _matches(best, jnp.where(best.value < 1e-5, BACKGROUND, best.number))


def _go_through(
    anchors: np.ndarray,
    boxes: jax.Array,
    labels: jax.Array,
    rate: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
) -> _Best:
    """Returns the box of the highest value for each anchor, the first of equal ones; -1 is less than any value.

    `rate` takes a box of each image (batch, 4) and whether it is one (batch,), and returns its value for each anchor
    and whether it must not go without that anchor: (batch, anchors) each.
    """
    boxes, labels = jnp.asarray(boxes, jnp.float32), labels.astype(jnp.int32)
    shape = len(boxes), len(anchors)
    sides = tuple(jnp.broadcast_to(side, shape) for side in box_ops.split(jnp.asarray(anchors)))
    none = jnp.full(shape, -1, jnp.int32)
    start = _Best(jnp.full(shape, -1.0), none, sides, none, jnp.zeros(shape, bool))

    def step(best: _Best, this: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[_Best, None]:
        number, box, label = this
        x1, y1, x2, y2 = box_ops.split(box)
        value, wanted = rate(box, (label >= 0) & (x2 > x1) & (y2 > y1))
        better = value > best.value
        return _Best(
            jnp.where(better, value, best.value),
            jnp.where(better, number, best.number),
            tuple(jnp.where(better, new[:, None], old) for new, old in zip((x1, y1, x2, y2), best.sides, strict=True)),
            jnp.where(better, label[:, None], best.label),
            best.low_quality | wanted,
        ), None

    count = boxes.shape[1]
    steps = jnp.arange(count, dtype=jnp.int32), jnp.moveaxis(boxes, 1, 0), labels.T
    return jax.lax.scan(step, start, steps)[0] if count else start


def _matches(best: _Best, number: jax.Array) -> Matches:
    labels = jnp.where(number >= 0, best.label, -1)
    return jax.tree.map(jax.lax.stop_gradient, Matches(number, jnp.stack(best.sides, -1), labels))
