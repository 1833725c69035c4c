"""AlexNet (Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks"): the original in
one tower, and the narrower one of "One weird trick" (Krizhevsky 2014, arXiv:1404.5997) that torchvision has."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.layers import Classifier, Conv, ImageModel, adaptive_avg_pool, capture, dense_init, max_pool


def local_response_norm(x: jax.Array) -> jax.Array:
    """Divides each value by (2 + 0.0001 * sum of the squares of the five channels around it) ** 0.75."""
    squares = jnp.square(x.astype(jnp.float32))
    near = jax.lax.reduce_window(squares, 0.0, jax.lax.add, (1, 1, 1, 5), (1, 1, 1, 1), [(0, 0)] * 3 + [(2, 2)])
    return (x * (2.0 + 1e-4 * near) ** -0.75).astype(x.dtype)


class Convolutions(nn.Module):
    """Five convolutions and three overlapping max poolings.

    Attributes:
        widths: of the convolutions.
        original: as in 2012, with local response normalization and an unpadded first convolution.
        conv: makes a convolution.
        bias_init: of the second, fourth and fifth convolution.
    """

    widths: tuple[int, int, int, int, int]
    original: bool
    conv: Any
    bias_init: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[int, jax.Array]:
        """Returns the last map of each stride."""
        first, second, third, fourth, fifth = self.widths
        normalize = local_response_norm if self.original else lambda x: x
        maps = {}
        x = self.conv(first, 11, 4, padding=0 if self.original else 2, name="0")(x)
        maps[4] = capture(self, normalize(nn.relu(x)), "1")
        x = self.conv(second, 5, bias_init=self.bias_init, name="3")(max_pool(maps[4], 3, 2))
        maps[8] = capture(self, normalize(nn.relu(x)), "4")
        x = capture(self, nn.relu(self.conv(third, 3, name="6")(max_pool(maps[8], 3, 2))), "7")
        x = capture(self, nn.relu(self.conv(fourth, 3, bias_init=self.bias_init, name="8")(x)), "9")
        maps[16] = capture(self, nn.relu(self.conv(fifth, 3, bias_init=self.bias_init, name="10")(x)), "11")
        maps[32] = capture(self, max_pool(maps[16], 3, 2), "12")
        return maps


class DenseLayers(nn.Module):
    """Two hidden layers of 4096 units, and the logits.

    Attributes:
        num_classes: length of the logits; 0: none.
        drop_rate: of the units of two layers.
        original: those are the hidden layers; otherwise each hidden layer's input.
        kernel_init: of all layers.
        bias_init: of the hidden layers.
        dtype: what the hidden layers compute in.
    """

    num_classes: int
    drop_rate: float
    original: bool
    kernel_init: Any
    bias_init: Any
    dtype: Any

    def setup(self) -> None:
        self.dropout = nn.Dropout(self.drop_rate)
        for number in ("1", "4"):
            hidden = nn.Dense(4096, dtype=self.dtype, kernel_init=self.kernel_init, bias_init=self.bias_init)
            setattr(self, number, hidden)
        if self.num_classes:
            setattr(self, "6", Classifier(self.num_classes, kernel_init=self.kernel_init))

    def hidden(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.original:
            x = self.dropout(x, deterministic=not train)
        x = nn.relu(getattr(self, "1")(x))
        return nn.relu(getattr(self, "4")(self.dropout(x, deterministic=not train)))

    def logits(self, x: jax.Array, train: bool) -> jax.Array:
        if self.original:
            x = self.dropout(x, deterministic=not train)
        return getattr(self, "6")(x)


class AlexNet(ImageModel, kw_only=True):
    """Five convolutions and three dense layers.

    The maps of images of any size are pooled to 6x6. Images have at least 63x63 pixels, the original's 67x67.

    Attributes:
        drop_rate: of two dense layers in training: those that the hidden layers see; in the original, the hidden ones.
        widths: of the convolutions.
        original: as in 2012, without the split between two devices, but with its normalization and initial values.
    """

    residual = False

    drop_rate: float = 0.5
    widths: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
    original: bool = False

    def setup(self) -> None:
        kernel_init = nn.initializers.normal(0.01) if self.original else dense_init
        # The original's rectifiers start with positive inputs, so that they learn from the first step on.
        bias_init = nn.initializers.ones if self.original else nn.initializers.zeros
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype, kernel_init=kernel_init)
        self.convolutions = Convolutions(self.widths, self.original, conv, bias_init, name="features")
        self.classifier = DenseLayers(
            self.num_classes, self.drop_rate, self.original, kernel_init, bias_init, self.dtype
        )

    @property
    def gradcam_layer(self) -> str:
        return "features/11"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        return self.convolutions(self.prepare(images))

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = adaptive_avg_pool(self.feature_maps(images, train=train)[32], 6, 6)
        # In the order of torch, which flattens (channels, height, width).
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        return self.classifier.hidden(x, train).astype(jnp.float32)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.classifier.logits(features, train)


registry.register("alexnet", AlexNet, registry.InputSpec(interpolation="bilinear"), library="torchvision")
registry.register(
    "alexnet_original",
    functools.partial(AlexNet, widths=(96, 256, 384, 384, 256), original=True),
    registry.InputSpec(227, interpolation="bilinear", crop_pct=227 / 256),
    library="",
)
