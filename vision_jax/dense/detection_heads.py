"""The heads of one-stage detectors, applied alike to each level of a pyramid.

RetinaNet: Lin et al. 2017 (arXiv:1708.02002); FCOS: Tian et al. 2019 (arXiv:1904.01355). Layers, their order and their
initialization are torchvision's.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import Conv, capture

PRIOR = 0.01  # probability of a class at each anchor in the beginning
NORM_GROUPS = 32
_init = nn.initializers.normal(0.01)


class HeadOutputs(NamedTuple):
    """What a detector says of its anchors, float32; they are in the order level, row, column, anchor.

    Attributes:
        cls_logits: (batch, anchors, classes), one sigmoid each.
        bbox_regression: (batch, anchors, 4), codes of boxes relative to anchors.
        bbox_ctrness: (batch, anchors, 1), logits of the centre-ness of FCOS; None: there is none.
    """

    cls_logits: jax.Array
    bbox_regression: jax.Array
    bbox_ctrness: jax.Array | None = None


class Prediction(nn.Module):
    """The last 3x3 convolution of a head: its bias is added in float32, beside which the rest is small at first."""

    features: int
    bias: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (batch, height, width, features)."""
        kernel = self.param("kernel", _init, (3, 3, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.constant(self.bias), (self.features,), jnp.float32)
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), (1, 1), "SAME", dimension_numbers=layout
        )
        return y.astype(jnp.float32) + bias


class Tower(nn.Module):
    """3x3 convolutions that keep the width, each with a ReLU behind it.

    Attributes:
        depth: number of convolutions.
        norm: a group norm of 32 groups behind each.
        use_bias: of the convolutions.
        dtype: what it computes in.
    """

    depth: int = 4
    norm: bool = False
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (batch, height, width, features)."""
        width = x.shape[-1]
        for i in range(self.depth):
            conv = Conv(width, 3, use_bias=self.use_bias, dtype=self.dtype, kernel_init=_init, name=f"conv_{i}")
            x = conv(x)
            if self.norm:
                norm = nn.GroupNorm(
                    NORM_GROUPS, epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=f"norm_{i}"
                )
                x = norm(x)
            x = nn.relu(x)
        return x


class Classification(nn.Module):
    """The tower of the classes: gives (batch, height * width * anchors, classes) float32."""

    num_classes: int
    num_anchors: int
    tower: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bias = -math.log((1 - PRIOR) / PRIOR)
        width = self.num_anchors * self.num_classes
        y = Prediction(width, bias, self.dtype, name="cls_logits")(self.tower(name="conv")(x))
        return y.reshape(y.shape[0], -1, self.num_classes)


class Regression(nn.Module):
    """The tower of the boxes: gives (batch, height * width * anchors, 4) float32, and with `centerness` (…, 1) too.

    Attributes:
        centerness: FCOS: codes are distances, which a ReLU keeps positive, and there is centre-ness.
    """

    num_anchors: int
    tower: Any
    centerness: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        x = self.tower(name="conv")(x)
        boxes = Prediction(4 * self.num_anchors, dtype=self.dtype, name="bbox_reg")(x)
        boxes = boxes.reshape(x.shape[0], -1, 4)
        if not self.centerness:
            return boxes, None
        centers = Prediction(self.num_anchors, dtype=self.dtype, name="bbox_ctrness")(x)
        return nn.relu(boxes), centers.reshape(x.shape[0], -1, 1)


class DetectionHead(nn.Module):
    """Two towers over all levels of a pyramid.

    Attributes:
        num_classes: logits of each anchor.
        num_anchors: at each position.
        norm: group norms within the towers.
        use_bias: of the towers' convolutions.
        centerness: FCOS; see `Regression`.
        dtype: what it computes in.
    """

    num_classes: int
    num_anchors: int = 9
    norm: bool = False
    use_bias: bool = True
    centerness: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        tower = functools.partial(Tower, norm=self.norm, use_bias=self.use_bias, dtype=self.dtype)
        self.classification_head = Classification(self.num_classes, self.num_anchors, tower, self.dtype)
        self.regression_head = Regression(self.num_anchors, tower, self.centerness, self.dtype)

    def __call__(self, levels: Sequence[jax.Array]) -> HeadOutputs:
        """Returns what is said of the anchors of levels, (batch, height, width, channels) each."""
        logits = [self.classification_head(x) for x in levels]
        boxes, centers = zip(*(self.regression_head(x) for x in levels), strict=True)

        def joined(parts: Sequence[jax.Array], name: str) -> jax.Array:
            return capture(self, jnp.concatenate(parts, axis=1), name)

        return HeadOutputs(
            joined(logits, "cls_logits"),
            joined(boxes, "bbox_regression"),
            joined(centers, "bbox_ctrness") if self.centerness else None,
        )
