"""Boxes as x1 y1 x2 y2 in pixels: their overlap, and the codes by which a detector describes them beside its anchors.

The formulas are those of torchvision (`ops/boxes.py`, `ops/giou_loss.py`, `models/detection/_utils.py`). All functions
compute in float32, and the leading dimensions of their arguments are broadcast against each other.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

# A code of width or height makes a box at most 62.5 times as large as its anchor, as exp would else overflow.
LARGEST_LOG_SIZE = math.log(1000 / 16)


class Coder(Protocol):
    """How a box is written beside an anchor."""

    def encode(self, boxes: jax.Array, anchors: jax.Array) -> jax.Array: ...

    def decode(self, codes: jax.Array, anchors: jax.Array) -> jax.Array: ...


def split(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns x1, y1, x2 and y2 of (..., 4), each (...) float32."""
    boxes = jnp.asarray(boxes, jnp.float32)
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def area(boxes: jax.Array) -> jax.Array:
    """Returns the area of (..., 4) boxes: (...) float32; a box with x2 < x1 has a negative one."""
    x1, y1, x2, y2 = split(boxes)
    return _rounded((x2 - x1) * (y2 - y1))


def clip(boxes: jax.Array, height: jax.Array | float, width: jax.Array | float) -> jax.Array:
    """Returns the part of boxes (..., 4) that is inside an image; `height` and `width` are numbers or (...)."""
    x1, y1, x2, y2 = split(boxes)
    low = [jnp.minimum(jnp.maximum(at, 0.0), limit) for at, limit in ((x1, width), (y1, height))]
    high = [jnp.minimum(jnp.maximum(at, 0.0), limit) for at, limit in ((x2, width), (y2, height))]
    return jnp.stack([*low, *high], -1)


def intersection_and_union(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the areas of the intersection and of the union of boxes (..., 4): (...) float32 each."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = split(a), split(b)
    width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
    height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
    # With `where`, boxes that just touch have no gradient of the intersection, as in torchvision.
    intersection = _rounded(jnp.where(width > 0, width, 0.0) * jnp.where(height > 0, height, 0.0))
    return intersection, area(a) + area(b) - intersection


def _rounded(product: jax.Array) -> jax.Array:
    """Returns a product that is rounded before anything is added to it.

    Compilers make one instruction of a product and a sum, with one rounding, in some of the places where an expression
    is computed and not in others. A maximum with the lowest number, which changes nothing, keeps them from it. So an
    IoU is the same wherever it is computed, equal ones can be found, and it is the same as in other libraries.
    """
    return jnp.maximum(product, jnp.finfo(jnp.float32).min)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the intersection over union of boxes (..., 4), broadcast: (...) float32.

    For all pairs of (n, 4) and (m, 4) give (n, 1, 4) and (1, m, 4). Of two boxes without area it is NaN.
    """
    intersection, union = intersection_and_union(a, b)
    return intersection / union


def _hull_area(a: jax.Array, b: jax.Array) -> jax.Array:
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = split(a), split(b)
    width = jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1)
    return width * (jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1))


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the generalized IoU (Rezatofighi et al. 2019) of boxes (..., 4), broadcast: (...) float32.

    With C the smallest box around both and U their union it is IoU - (C - U) / C.
    """
    intersection, union = intersection_and_union(a, b)
    hull = _hull_area(a, b)
    return intersection / union - (hull - union) / hull


def giou_loss(predicted: jax.Array, target: jax.Array, eps: float = 1e-7) -> jax.Array:
    """Returns 1 - GIoU of boxes (..., 4), with `eps` added to both divisors: (...) float32."""
    intersection, union = intersection_and_union(predicted, target)
    hull = _hull_area(predicted, target)
    return 1.0 - (intersection / (union + eps) - (hull - union) / (hull + eps))


@dataclasses.dataclass(frozen=True)
class BoxCoder:
    """The codes of R-CNN (Girshick et al. 2014): shifts of the centre in sizes of the anchor, and logarithms of sizes.

    Attributes:
        weights: factors of the codes of x, y, width and height: 1 for RetinaNet and proposals, (10, 10, 5, 5) for the
            heads of Faster R-CNN.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, boxes: jax.Array, anchors: jax.Array) -> jax.Array:
        """Returns the codes (..., 4) float32 of boxes (..., 4) beside anchors (..., 4)."""
        x, y, width, height = _centre_and_size(anchors)
        box_x, box_y, box_width, box_height = _centre_and_size(boxes)
        codes = (
            (box_x - x) / width,
            (box_y - y) / height,
            jnp.log(box_width / width),
            jnp.log(box_height / height),
        )
        return jnp.stack([code * weight for code, weight in zip(codes, self.weights, strict=True)], -1)

    def decode(self, codes: jax.Array, anchors: jax.Array) -> jax.Array:
        """Returns the boxes (..., 4) float32 of codes (..., 4) beside anchors (..., 4)."""
        x, y, width, height = _centre_and_size(anchors)
        dx, dy, dw, dh = (code / weight for code, weight in zip(split(codes), self.weights, strict=True))
        centre_x, centre_y = dx * width + x, dy * height + y
        half_width = 0.5 * (jnp.exp(jnp.minimum(dw, LARGEST_LOG_SIZE)) * width)
        half_height = 0.5 * (jnp.exp(jnp.minimum(dh, LARGEST_LOG_SIZE)) * height)
        return jnp.stack(
            [centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height], -1
        )


@dataclasses.dataclass(frozen=True)
class LinearCoder:
    """The codes of FCOS (Tian et al. 2019): distances of the sides from the anchor's centre, in sizes of the anchor.

    Attributes:
        by_size: whether distances are divided by the width and the height of the anchor, or are in pixels.
    """

    by_size: bool = True

    def encode(self, boxes: jax.Array, anchors: jax.Array) -> jax.Array:
        """Returns left, top, right and bottom (..., 4) float32 of boxes (..., 4) as seen from anchors (..., 4)."""
        x, y, width, height = self._centre_and_unit(anchors)
        x1, y1, x2, y2 = split(boxes)
        return jnp.stack([(x - x1) / width, (y - y1) / height, (x2 - x) / width, (y2 - y) / height], -1)

    def decode(self, codes: jax.Array, anchors: jax.Array) -> jax.Array:
        """Returns the boxes (..., 4) float32 of codes (..., 4) as seen from anchors (..., 4)."""
        x, y, width, height = self._centre_and_unit(anchors)
        left, top, right, bottom = split(codes)
        return jnp.stack([x - left * width, y - top * height, x + right * width, y + bottom * height], -1)

    def _centre_and_unit(self, anchors: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | float, jax.Array | float]:
        x1, y1, x2, y2 = split(anchors)
        width, height = (x2 - x1, y2 - y1) if self.by_size else (1.0, 1.0)
        return 0.5 * (x1 + x2), 0.5 * (y1 + y2), width, height


def _centre_and_size(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x1, y1, x2, y2 = split(boxes)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
