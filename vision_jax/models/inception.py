"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567).

The published weights expect pixels between -1 and 1. torchvision, with the same tensors, gets them from its usual
normalization by its option `transform_input`, which is not part of the model here.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    ImageModel,
    avg_pool,
    capture,
    global_mean,
    max_pool,
    maybe_remat,
)

# Truncated, in the libraries, twenty deviations away.
inception_init = nn.initializers.normal(0.1)


class ConvNorm(nn.Module):
    """A convolution, its norm and a rectifier.

    Attributes:
        padding: False: none; True: such that the size stays the same.
    """

    width: int
    size: int | tuple[int, int]
    conv: Any
    norm: Any
    stride: int = 1
    padding: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.width, self.size, self.stride, padding=None if self.padding else 0, name="conv")(x)
        return nn.relu(self.norm(name="bn")(x, train=train))


# A convolution's name, width and kernel.
Step = tuple[str, int, int | tuple[int, int]]


class Inception(nn.Module):
    """What the blocks have in common.

    Attributes:
        layer: makes a `ConvNorm`.
    """

    layer: Any

    def chain(self, x: jax.Array, train: bool, *steps: Step) -> jax.Array:
        """Applies convolutions of stride 1, one after the other."""
        for name, width, size in steps:
            x = self.layer(width, size, name=name)(x, train)
        return x

    def pooled(self, x: jax.Array, train: bool, width: int) -> jax.Array:
        """Average pooling and a 1x1 convolution."""
        return self.chain(avg_pool(x, 3, 1, padding=1), train, ("branch_pool", width, 1))

    def reduce(self, x: jax.Array, train: bool, name: str, width: int) -> jax.Array:
        """An unpadded 3x3 convolution of stride 2."""
        return self.layer(width, 3, stride=2, padding=False, name=name)(x, train)


class InceptionA(Inception):
    """1x1; 5x5; two 3x3; pooling, to `width`."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        branches = [
            self.chain(x, train, ("branch1x1", 64, 1)),
            self.chain(x, train, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            self.chain(x, train, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
            self.pooled(x, train, self.width),
        ]
        return jnp.concatenate(branches, -1)


class InceptionB(Inception):
    """From stride 8 to 16: 3x3; two 3x3; max pooling."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        double = self.chain(x, train, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
        branches = [
            self.reduce(x, train, "branch3x3", 384),
            self.reduce(double, train, "branch3x3dbl_3", 96),
            max_pool(x, 3, 2),
        ]
        return jnp.concatenate(branches, -1)


class InceptionC(Inception):
    """1x1; 7x7 of two factors, `width` between them; 7x7 twice; pooling."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        branches = [
            self.chain(x, train, ("branch1x1", 192, 1)),
            self.factors(x, train, "branch7x7", [1, (1, 7), (7, 1)]),
            self.factors(x, train, "branch7x7dbl", [1, (7, 1), (1, 7), (7, 1), (1, 7)]),
            self.pooled(x, train, 192),
        ]
        return jnp.concatenate(branches, -1)

    def factors(self, x: jax.Array, train: bool, name: str, sizes: Sequence[int | tuple[int, int]]) -> jax.Array:
        widths = [self.width] * (len(sizes) - 1) + [192]
        steps = [(f"{name}_{i}", *step) for i, step in enumerate(zip(widths, sizes, strict=True), start=1)]
        return self.chain(x, train, *steps)


class InceptionD(Inception):
    """From stride 16 to 32: 3x3; 7x7 of two factors and 3x3; max pooling."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        three = self.chain(x, train, ("branch3x3_1", 192, 1))
        seven = self.chain(
            x, train, ("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))
        )
        branches = [
            self.reduce(three, train, "branch3x3_2", 320),
            self.reduce(seven, train, "branch7x7x3_4", 192),
            max_pool(x, 3, 2),
        ]
        return jnp.concatenate(branches, -1)


class InceptionE(Inception):
    """1x1; 1x3 and 3x1 side by side, once after 1x1 and once after 3x3; pooling."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        three = self.chain(x, train, ("branch3x3_1", 384, 1))
        double = self.chain(x, train, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
        branches = [
            self.chain(x, train, ("branch1x1", 320, 1)),
            self.chain(three, train, ("branch3x3_2a", 384, (1, 3))),
            self.chain(three, train, ("branch3x3_2b", 384, (3, 1))),
            self.chain(double, train, ("branch3x3dbl_3a", 384, (1, 3))),
            self.chain(double, train, ("branch3x3dbl_3b", 384, (3, 1))),
            self.pooled(x, train, 192),
        ]
        return jnp.concatenate(branches, -1)


class AuxiliaryHead(nn.Module):
    """A classifier of the last map of stride 16, which helps training."""

    num_classes: int
    layer: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if min(x.shape[1:3]) < 17:
            raise ValueError(f"the auxiliary classifier needs a map of 17x17, as of 299x299 pixels, not {x.shape[1:3]}")
        x = self.layer(128, 1, name="conv0")(avg_pool(x, 5, 3), train)
        x = global_mean(self.layer(768, 5, padding=False, name="conv1")(x, train))
        return Classifier(self.num_classes, kernel_init=nn.initializers.normal(0.001), name="fc")(x)


class InceptionV3(ImageModel, kw_only=True):
    """Five convolutions and eleven Inception blocks. Images have at least 75x75 pixels.

    Attributes:
        aux_logits: have an auxiliary classifier, which only `logits_and_auxiliary` uses.
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
    """

    residual = False

    aux_logits: bool = False
    bn_group_size: int = 0
    remat: bool | str = False

    def setup(self) -> None:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=inception_init)
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size, epsilon=1e-3)
        layer = functools.partial(ConvNorm, conv=conv, norm=norm)
        self.Conv2d_1a_3x3 = layer(32, 3, stride=2, padding=False)
        self.Conv2d_2a_3x3 = layer(32, 3, padding=False)
        self.Conv2d_2b_3x3 = layer(64, 3)
        self.Conv2d_3b_1x1 = layer(80, 1)
        self.Conv2d_4a_3x3 = layer(192, 3, padding=False)

        a, b, c, d, e = (
            maybe_remat(block, self.remat) for block in (InceptionA, InceptionB, InceptionC, InceptionD, InceptionE)
        )
        self.Mixed_5b = a(layer, 32)
        self.Mixed_5c = a(layer, 64)
        self.Mixed_5d = a(layer, 64)
        self.Mixed_6a = b(layer)
        self.Mixed_6b = c(layer, 128)
        self.Mixed_6c = c(layer, 160)
        self.Mixed_6d = c(layer, 160)
        self.Mixed_6e = c(layer, 192)
        self.Mixed_7a = d(layer)
        self.Mixed_7b = e(layer)
        self.Mixed_7c = e(layer)

        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.fc = Classifier(self.num_classes, kernel_init=inception_init)
            if self.aux_logits:
                self.AuxLogits = AuxiliaryHead(self.num_classes, layer, self.dtype)

    @property
    def gradcam_layer(self) -> str:
        return "Mixed_7c"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        def layer(name: str, x: jax.Array) -> jax.Array:
            return capture(self, getattr(self, name)(x, train), name)

        maps = {}
        x = layer("Conv2d_2a_3x3", layer("Conv2d_1a_3x3", self.prepare(images)))
        x = maps[2] = layer("Conv2d_2b_3x3", x)
        x = layer("Conv2d_3b_1x1", max_pool(x, 3, 2))
        x = maps[4] = layer("Conv2d_4a_3x3", x)
        x = max_pool(x, 3, 2)
        for stride, blocks in ((8, ("5b", "5c", "5d")), (16, ("6a", "6b", "6c", "6d", "6e")), (32, ("7a", "7b", "7c"))):
            for block in blocks:
                x = layer(f"Mixed_{block}", x)
            maps[stride] = x
        return maps

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return global_mean(self.feature_maps(images, train=train)[32])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.fc(self.dropout(features, deterministic=not train))

    def logits_and_auxiliary(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the logits, and those of the auxiliary classifier; both (batch, num_classes).

        Arguments as for `feature_maps`; it needs `aux_logits`, and images of about 299x299 pixels or more.
        """
        maps = self.feature_maps(images, train=train)
        logits = self.logits(capture(self, global_mean(maps[32]), "features"), train=train)
        return logits, (self.AuxLogits(maps[16], train),)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if self.aux_logits and self.num_classes and self.is_initializing():  # all parameters are made here
            return self.logits_and_auxiliary(images, train=train)[0]
        return super().__call__(images, train=train)


registry.register(
    "inception_v3", InceptionV3, registry.InputSpec(299, registry.HALVES, registry.HALVES), in_torchvision=True
)
