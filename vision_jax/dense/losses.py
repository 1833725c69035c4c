"""The losses of detectors and of semantic segmentation, as sums and their weights.

Every function returns `{name: (sum, weight)}`, each () float32, and the loss under `loss`: sums and weights of parts of
a batch, of micro-batches and of devices add up, and the sum over the weight is the loss of all. A padded example has a
`mask` of 0 and counts in neither. The definitions are torchvision's (`models/detection/retinanet.py` and `fcos.py`,
`references/segmentation/train.py`).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.dense.boxes import BoxCoder, LinearCoder, giou_loss
from vision_jax.dense.matching import IGNORED, match_by_center, match_by_iou
from vision_jax.errors import ConfigError, suggest

Sums = dict[str, tuple[jax.Array, jax.Array]]
REGRESSIONS = ("l1", "giou")
_BOX_CODER, _LINEAR_CODER = BoxCoder(), LinearCoder()


class Heads(Protocol):
    """What a detector gives for each anchor, float32.

    Attributes:
        cls_logits: (batch, anchors, classes).
        bbox_regression: (batch, anchors, 4).
        bbox_ctrness: (batch, anchors, 1), of FCOS.
    """

    @property
    def cls_logits(self) -> jax.Array: ...

    @property
    def bbox_regression(self) -> jax.Array: ...

    @property
    def bbox_ctrness(self) -> jax.Array | None: ...


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the binary cross-entropy of sigmoid(logits), elementwise, without overflow."""
    return jnp.maximum(logits, 0.0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def sigmoid_focal_loss(logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Returns the focal loss (Lin et al. 2017), elementwise: alpha_t (1 - p_t)^gamma times the binary cross-entropy.

    Its derivative is written out, so that one number for each logit is kept for the gradient, of ten million in an
    image, and not every step of the computation. Targets have none.

    Args:
        logits: any shape, float32.
        targets: of the same shape, bool or 0 and 1.
        alpha: weight of targets 1, that of targets 0 is 1 - alpha; negative: all weights are 1.
        gamma: exponent.
    """
    return _focal(logits, targets, alpha, gamma)[0]


@sigmoid_focal_loss.defjvp
def _focal_jvp(
    alpha: float, gamma: float, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, Any]
) -> tuple[jax.Array, jax.Array]:
    loss, slope = _focal(*primals, alpha, gamma)
    return loss, slope * tangents[0]


def _focal(logits: jax.Array, targets: jax.Array, alpha: float, gamma: float) -> tuple[jax.Array, jax.Array]:
    """Returns the focal loss and its derivative by the logits."""
    positive = targets if targets.dtype == bool else targets > 0  # a comparison of bools would make integers of them
    toward = jnp.where(positive, logits, -logits)  # the logit of the right answer
    right, wrong = jax.nn.sigmoid(toward), jax.nn.sigmoid(-toward)
    entropy = jax.nn.softplus(-toward)
    # An integer power is a product; others take a logarithm and an exponential.
    factor = wrong ** (int(gamma) if gamma == int(gamma) else gamma)
    if alpha >= 0:
        factor = factor * jnp.where(positive, alpha, 1.0 - alpha)
    slope = factor * (gamma * right * entropy + wrong)
    return factor * entropy, jnp.where(positive, -slope, slope)


def retinanet_loss(
    outputs: Heads,
    levels: Sequence[np.ndarray],
    boxes: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None = None,
    *,
    regression: str = "l1",
    coder: BoxCoder = _BOX_CODER,
    foreground: float = 0.5,
    background: float = 0.4,
) -> Sums:
    """Returns RetinaNet's losses: of each image divided by its number of foreground anchors, averaged over images.

    Args:
        outputs: of the heads.
        levels: the anchors of each level, (anchors of the level, 4), static.
        boxes: (batch, boxes, 4) in pixels of the canvas.
        labels: (batch, boxes) integers, -1 for padding.
        mask: (batch,), 0 for padded examples; None: there are none.
        regression: l1, of the codes, or giou, of the boxes (RetinaNet v2).
        coder: of the boxes.
        foreground, background: the matcher's thresholds.

    Returns:
        `loss`, `classification` and `bbox_regression`; their weight is the number of images.

    Raises:
        ConfigError: if `regression` is unknown.
    """
    if regression not in REGRESSIONS:
        raise ConfigError(f"There is no loss of boxes named {regression!r}: {suggest(regression, REGRESSIONS)}")
    anchors = np.concatenate(levels)
    found = match_by_iou(anchors, boxes, labels, foreground=foreground, background=background)
    focal = _focal_of_anchors(outputs.cls_logits, found.labels)
    classification = jnp.sum(jnp.where(found.number == IGNORED, 0.0, focal), axis=1)
    codes, beside = jnp.asarray(outputs.bbox_regression, jnp.float32), jnp.asarray(anchors)
    if regression == "l1":
        error = jnp.sum(jnp.abs(codes - coder.encode(found.boxes, beside)), -1)
    else:
        error = giou_loss(coder.decode(codes, beside), found.boxes)
    count = jnp.maximum(jnp.sum(found.foreground, axis=1), 1).astype(jnp.float32)
    weights = _weights(mask, len(codes))
    images = jnp.sum(weights)
    parts = {
        "classification": _dot(weights, classification / count),
        "bbox_regression": _dot(weights, jnp.sum(jnp.where(found.foreground, error, 0.0), axis=1) / count),
    }
    return _with_total(parts, images)


def fcos_loss(
    outputs: Heads,
    levels: Sequence[np.ndarray],
    boxes: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None = None,
    *,
    coder: LinearCoder = _LINEAR_CODER,
    radius: float = 1.5,
) -> Sums:
    """Returns FCOS' losses: sums over the batch, to be divided by its number of foreground points, or 1 if it has none.

    Args:
        outputs: of the heads.
        levels: the anchors of each level, (anchors of the level, 4), static.
        boxes: (batch, boxes, 4) in pixels of the canvas.
        labels: (batch, boxes) integers, -1 for padding.
        mask: (batch,), 0 for padded examples; None: there are none.
        coder: of the boxes.
        radius: of the middle of a box in which its points are, in anchor sizes.

    Returns:
        `loss`, `classification`, `bbox_regression` and `bbox_ctrness`; their weight is the number of foreground points,
        which may be 0.

    Raises:
        ConfigError: if the network has no centre-ness.
    """
    if outputs.bbox_ctrness is None:
        raise ConfigError("FCOS' loss needs a head for centre-ness: take an fcos network, or the loss of RetinaNet.")
    found = match_by_center(levels, boxes, labels, radius=radius)
    weights = _weights(mask, len(outputs.cls_logits))
    focal = jnp.sum(_focal_of_anchors(outputs.cls_logits, found.labels), axis=1)
    beside = jnp.asarray(np.concatenate(levels))
    error = giou_loss(coder.decode(outputs.bbox_regression, beside), found.boxes)
    target = centerness(coder.encode(found.boxes, beside), found.foreground)
    logits = jnp.asarray(outputs.bbox_ctrness, jnp.float32)[..., 0]
    off_center = sigmoid_cross_entropy(logits, target)
    count = _dot(weights, jnp.sum(found.foreground, axis=1).astype(jnp.float32))
    parts = {
        "classification": _dot(weights, focal),
        "bbox_regression": _dot(weights, jnp.sum(jnp.where(found.foreground, error, 0.0), axis=1)),
        "bbox_ctrness": _dot(weights, jnp.sum(jnp.where(found.foreground, off_center, 0.0), axis=1)),
    }
    return _with_total(parts, count)


def centerness(distances: jax.Array, foreground: jax.Array) -> jax.Array:
    """Returns sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) of points in boxes, 0 for others.

    Args:
        distances: l, t, r, b: (..., 4).
        foreground: whether a point is in a box, (...) bool.
    """
    left, top, right, bottom = (jnp.where(foreground, distances[..., side], 1.0) for side in range(4))
    across = jnp.minimum(left, right) / jnp.maximum(left, right)
    along = jnp.minimum(top, bottom) / jnp.maximum(top, bottom)
    return jnp.where(foreground, jnp.sqrt(across * along), 0.0)


def segmentation_cross_entropy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None, *, ignored: int = 255
) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the cross-entropy of pixels, and their number, without those that are ignored.

    Args:
        logits: (batch, height, width, classes).
        labels: (batch, height, width) integers.
        mask: (batch,), 0 for padded examples; None: there are none.
        ignored: the label of pixels that do not count.

    Returns:
        () float32 each.
    """
    logits, labels = logits.astype(jnp.float32), labels.astype(jnp.int32)
    of_label = jnp.sum(jnp.where(labels[..., None] == jnp.arange(logits.shape[-1]), logits, 0.0), -1)
    counted = labels != ignored
    loss = jnp.where(counted, jax.nn.logsumexp(logits, -1) - of_label, 0.0)
    weights = _weights(mask, len(labels))
    pixels = jnp.sum(counted, axis=(1, 2)).astype(jnp.float32)
    return _dot(weights, jnp.sum(loss, axis=(1, 2))), _dot(weights, pixels)


def segmentation_loss(
    outputs: Mapping[str, jax.Array],
    labels: jax.Array,
    mask: jax.Array | None = None,
    *,
    aux_weight: float = 0.5,
    ignored: int = 255,
) -> Sums:
    """Returns the cross-entropy of `out`, and `aux_weight` times that of `aux`, if the network has one.

    Args:
        outputs: `out` and maybe `aux`, (batch, height, width, classes).
        labels: (batch, height, width) integers.
        mask: (batch,), 0 for padded examples; None: there are none.
        aux_weight: of the auxiliary head: .5 in torchvision's recipe, .4 in those of UperNet.
        ignored: the label of pixels that do not count.

    Returns:
        `loss`, `out` and `aux`; their weight is the number of pixels that count.
    """
    total, pixels = segmentation_cross_entropy(outputs["out"], labels, mask, ignored=ignored)
    found = {"out": (total, pixels)}
    if "aux" in outputs:
        aux, _ = segmentation_cross_entropy(outputs["aux"], labels, mask, ignored=ignored)
        found["aux"] = (aux, pixels)
        total = total + aux_weight * aux
    return {"loss": (total, pixels), **found}


def _focal_of_anchors(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the focal loss of each anchor, summed over classes: (batch, anchors) float32; a label of -1 is none."""
    logits = jnp.asarray(logits, jnp.float32)
    targets = labels[..., None] == jnp.arange(logits.shape[-1])
    return jnp.sum(sigmoid_focal_loss(logits, targets), -1)


def _weights(mask: jax.Array | None, batch: int) -> jax.Array:
    return jnp.ones(batch) if mask is None else (mask > 0).astype(jnp.float32)


def _dot(weights: jax.Array, values: jax.Array) -> jax.Array:
    # Not a product: what comes of padding may be no number.
    return jnp.sum(jnp.where(weights > 0, values, 0.0))


def _with_total(parts: Mapping[str, jax.Array], weight: jax.Array) -> Sums:
    total = sum(parts.values(), jnp.zeros(()))
    return {name: (value, weight) for name, value in (("loss", total), *parts.items())}
