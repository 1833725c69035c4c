"""ResNet-9, which David Page trained on CIFAR-10 in about a minute for Stanford's DAWNBench (2018)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    DropPath,
    ImageModel,
    capture,
    dense_init,
    drop_path_rates,
    max_pool,
    maybe_remat,
)
from vision_jax.models.wideresnet import CIFAR


class ConvNorm(nn.Module):
    """A 3x3 convolution, a norm and an activation; with `pooled`, max pooling that halves the resolution."""

    width: int
    conv: Any
    norm: Any
    pooled: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.width, 3, name="conv")(x)
        norm = self.norm(name="bn")
        if self.pooled:
            _, pooled = norm(x, train=train, pool=functools.partial(max_pool, size=2, stride=2))
            return nn.relu(pooled)
        return nn.relu(norm(x, train=train))


class Layer(nn.Module):
    """Halves the resolution behind a convolution; then there may be a residual branch of two more.

    Attributes:
        layer: makes a convolution with its norm.
        width: of the result.
        residual: there is a branch. Its activation comes before the sum.
        drop_path_rate: probability of dropping it.
    """

    layer: Any
    width: int
    residual: bool
    drop_path_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.layer(self.width, pooled=True, name="0")(x, train)
        if not self.residual:
            return x
        y = self.layer(self.width, name="res2")(self.layer(self.width, name="res1")(x, train), train)
        return x + DropPath(self.drop_path_rate)(y, train)


class ResNet9(ImageModel, kw_only=True):
    """Eight convolutions and a classifier without bias, of which two pairs of convolutions are residual branches.

    Attributes:
        logit_scale: factor of the logits, which makes up for the large learning rate of the classifier.
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
        remat: rematerialize the activations within layers (gradient checkpointing), to save memory; see `maybe_remat`.
    """

    num_classes: int = 10
    logit_scale: float = 0.125
    bn_group_size: int = 0
    remat: bool | str = False

    def setup(self) -> None:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=dense_init)
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size)
        conv_norm = functools.partial(ConvNorm, conv=conv, norm=norm)
        layer = maybe_remat(Layer, self.remat)
        self.prep = conv_norm(64)
        first, last = drop_path_rates(self.drop_path_rate, [2])[0]
        self.layer1 = layer(conv_norm, 128, residual=True, drop_path_rate=first)
        self.layer2 = layer(conv_norm, 256, residual=False, drop_path_rate=0.0)
        self.layer3 = layer(conv_norm, 512, residual=True, drop_path_rate=last)
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.fc = Classifier(self.num_classes, use_bias=False, kernel_init=dense_init)

    @property
    def gradcam_layer(self) -> str:
        return "layer3"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        maps = {1: capture(self, self.prep(self.prepare(images), train), "stem")}
        for i in range(3):
            maps[2 ** (i + 1)] = capture(self, getattr(self, f"layer{i + 1}")(maps[2**i], train), f"layer{i + 1}")
        return maps

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return self.feature_maps(images, train=train)[8].max((1, 2)).astype(jnp.float32)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.fc(self.dropout(features, deterministic=not train)) * self.logit_scale


registry.register("resnet9", ResNet9, CIFAR, library="")
