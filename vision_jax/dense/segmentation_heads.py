"""The heads of semantic segmentation: from a backbone's maps to a logit of each class at each position of a map.

FCN: Long et al. 2015 (arXiv:1411.4038); DeepLabV3: Chen et al. 2017 (arXiv:1706.05587), both as torchvision has them;
UPerNet: Xiao et al. 2018 (arXiv:1807.10221), as mmsegmentation has it.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import (
    BatchNorm,
    Conv,
    adaptive_avg_pool,
    capture,
    conv_init,
    dense_init,
    global_mean,
    uniform_init,
)
from vision_jax.models.upsampling import bilinear

ASPP_DILATIONS = (12, 24, 36)  # for an output stride of 8
POOL_SCALES = (1, 2, 3, 6)
# Of new classifiers in mmsegmentation.
small_init = nn.initializers.normal(0.01)


class ConvNormRelu(nn.Module):
    """A convolution without bias, a batch norm and a ReLU.

    Attributes:
        features: of the result.
        kernel_size: 1 or 3.
        dilation: positions from one tap to the next.
        group_size: examples that share batch statistics; see `BatchNorm`.
        kernel_init: of the convolution; torch's default where it is not given.
        dtype: what it computes in.
    """

    features: int
    kernel_size: int
    dilation: int = 1
    group_size: int = 0
    kernel_init: nn.initializers.Initializer = dense_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: (batch, height, width, features)."""
        options: dict[str, Any] = {}
        if self.dilation > 1:
            options = {"padding": self.dilation, "kernel_dilation": self.dilation}
        conv = Conv(
            self.features,
            self.kernel_size,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="conv",
            **options,
        )
        norm = BatchNorm(dtype=self.dtype, group_size=self.group_size, name="norm")
        return nn.relu(norm(conv(x), train=train))


class PixelClassifier(nn.Module):
    """Dropout, and a logit of each class at each position, in float32 as classifiers of images are.

    Attributes:
        num_classes: number of logits.
        drop_rate: probability of dropping a unit, in training.
        kernel_init: initial weights; None: torch's default, for the bias too, which otherwise begins at 0.
    """

    num_classes: int
    drop_rate: float = 0.0
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns (batch, height, width, num_classes) float32."""
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        bias_init = uniform_init(1 / math.sqrt(x.shape[-1])) if self.kernel_init is None else nn.initializers.zeros
        conv = Conv(
            self.num_classes,
            1,
            use_bias=True,
            kernel_init=self.kernel_init or dense_init,
            bias_init=bias_init,
            name="conv",
        )
        return conv(x.astype(jnp.float32))


class FcnHead(nn.Module):
    """A 3x3 convolution and the classifier, on one map.

    Attributes:
        num_classes: number of logits.
        index: of the map.
        channels: of the convolution; 0: a quarter of the map's, as in torchvision.
        drop_rate: before the classifier.
        kernel_init, classifier_init: None: torch's defaults.
        group_size: examples that share batch statistics; see `BatchNorm`.
        dtype: what it computes in.
    """

    num_classes: int
    index: int = -1
    channels: int = 0
    drop_rate: float = 0.1
    kernel_init: nn.initializers.Initializer = dense_init
    classifier_init: nn.initializers.Initializer | None = None
    group_size: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """Returns (batch, height, width, num_classes) float32, of the size of the map."""
        x = maps[self.index]
        channels = self.channels or x.shape[-1] // 4
        x = ConvNormRelu(channels, 3, 1, self.group_size, self.kernel_init, self.dtype, name="block")(x, train)
        x = PixelClassifier(self.num_classes, self.drop_rate, self.classifier_init, name="classifier")(x, train)
        return capture(self, x, "logits")


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling: convolutions with several dilations and the mean of the map, side by side."""

    channels: int
    dilations: tuple[int, ...]
    drop_rate: float
    group_size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block = functools.partial(ConvNormRelu, group_size=self.group_size, dtype=self.dtype)
        parts = [block(self.channels, 1, name="convs_0")(x, train)]
        for i, dilation in enumerate(self.dilations):
            parts.append(block(self.channels, 3, dilation, name=f"convs_{i + 1}")(x, train))
        mean = global_mean(x)[:, None, None].astype(self.dtype)
        mean = block(self.channels, 1, name=f"convs_{len(self.dilations) + 1}")(mean, train)
        parts.append(jnp.broadcast_to(mean, parts[0].shape))
        x = block(self.channels, 1, name="project")(jnp.concatenate(parts, -1), train)
        return nn.Dropout(self.drop_rate)(x, deterministic=not train)


class DeepLabHead(nn.Module):
    """DeepLabV3's: ASPP, a 3x3 convolution and the classifier, on the last map.

    Attributes:
        num_classes: number of logits.
        dilations: of ASPP; those for an output stride of 8.
        channels: of all layers.
        group_size: examples that share batch statistics; see `BatchNorm`.
        dtype: what it computes in.
    """

    num_classes: int
    dilations: tuple[int, ...] = ASPP_DILATIONS
    channels: int = 256
    group_size: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """Returns (batch, height, width, num_classes) float32, of the size of the last map."""
        x = Aspp(self.channels, self.dilations, 0.5, self.group_size, self.dtype, name="aspp")(maps[-1], train)
        x = ConvNormRelu(self.channels, 3, group_size=self.group_size, dtype=self.dtype, name="block")(
            capture(self, x, "aspp"), train
        )
        return capture(self, PixelClassifier(self.num_classes, name="classifier")(x, train), "logits")


class UperHead(nn.Module):
    """UPerNet's: the means of the last map's parts, a feature pyramid of all maps, and all levels joined.

    Attributes:
        num_classes: number of logits.
        channels: of all layers.
        pool_scales: rows and columns of the parts.
        drop_rate: before the classifier.
        group_size: examples that share batch statistics; see `BatchNorm`.
        dtype: what it computes in.
    """

    num_classes: int
    channels: int = 512
    pool_scales: tuple[int, ...] = POOL_SCALES
    drop_rate: float = 0.1
    group_size: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """Returns (batch, height, width, num_classes) float32, of the size of the first map."""
        block = functools.partial(
            ConvNormRelu, self.channels, group_size=self.group_size, kernel_init=conv_init, dtype=self.dtype
        )
        last = maps[-1]
        parts = [last]
        for i, scale in enumerate(self.pool_scales):
            part = block(1, name=f"pooled_{i}")(adaptive_avg_pool(last, scale, scale), train)
            parts.append(bilinear(part, *last.shape[1:3]))
        top = block(3, name="pooling")(jnp.concatenate(parts, -1), train)
        levels = [block(1, name=f"lateral_{i}")(x, train) for i, x in enumerate(maps[:-1])] + [top]
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + bilinear(levels[i + 1], *levels[i].shape[1:3])
        levels = [block(3, name=f"level_{i}")(x, train) for i, x in enumerate(levels[:-1])] + [top]
        size = levels[0].shape[1:3]
        x = block(3, name="fusion")(jnp.concatenate([bilinear(x, *size) for x in levels], -1), train)
        x = capture(self, x, "fusion")
        classifier = PixelClassifier(self.num_classes, self.drop_rate, small_init, name="classifier")
        return capture(self, classifier(x, train), "logits")


class LinearHead(nn.Module):
    """The classifier alone, on the last map: of a vision transformer, each patch by itself.

    Attributes:
        num_classes: number of logits.
        drop_rate: before the classifier.
    """

    num_classes: int
    drop_rate: float = 0.0

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """Returns (batch, height, width, num_classes) float32, of the size of the last map."""
        x = PixelClassifier(self.num_classes, self.drop_rate, small_init, name="classifier")(maps[-1], train)
        return capture(self, x, "logits")
