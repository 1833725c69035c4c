"""ResNet (He et al. 2015, arXiv:1512.03385), v1.5: the stride is in the 3x3 convolution of a bottleneck.

Modules carry torch's names, so that the tree of variables is the state dict of timm and torchvision, path by path.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.layers import BatchNorm, conv_init, dense_init


class Downsample(nn.Module):
    """The projection of a shortcut: a strided 1x1 convolution and its norm."""

    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.conv(self.features, (1, 1), strides=self.stride, name="0")(x)
        return self.norm(name="1")(x, train=train)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, for ResNet-18 and -34."""

    width: int
    stride: int
    conv: Any
    norm: Any
    last_scale_init: Any
    expansion: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.width, (3, 3), padding=1, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=self.last_scale_init)(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = Downsample(self.width, self.stride, self.conv, self.norm, name="downsample")(x, train=train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, for ResNet-50 and deeper; the result is four times as wide."""

    width: int
    stride: int
    conv: Any
    norm: Any
    last_scale_init: Any
    expansion: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        features = self.width * self.expansion
        y = self.conv(self.width, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = self.conv(features, (1, 1), name="conv3")(y)
        y = self.norm(name="bn3", scale_init=self.last_scale_init)(y, train=train)
        if self.stride != 1 or x.shape[-1] != features:
            x = Downsample(features, self.stride, self.conv, self.norm, name="downsample")(x, train=train)
        return nn.relu(x + y)


class Stage(nn.Module):
    """A sequence of blocks; the first one has the stride."""

    block: type[BasicBlock] | type[Bottleneck]
    depth: int
    width: int
    stride: int
    conv: Any
    norm: Any
    last_scale_init: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i in range(self.depth):
            stride = self.stride if i == 0 else 1
            x = self.block(self.width, stride, self.conv, self.norm, self.last_scale_init, name=str(i))(x, train=train)
        return x


class ResNet(nn.Module):
    """A residual network.

    Attributes:
        block: BasicBlock or Bottleneck.
        depths: blocks in each of the four stages.
        num_classes: length of the logits; 0: the model gives its features.
        dtype: what it computes in.
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
        small_stem: a 3x3 first convolution of stride 1 without max pooling, for images of about 32 pixels.
        zero_init_last: start the last norm scale of each block at zero (Goyal et al. 2017, arXiv:1706.02677).
    """

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    num_classes: int = 1000
    dtype: Any = jnp.float32
    bn_group_size: int = 0
    small_stem: bool = False
    zero_init_last: bool = True

    def setup(self) -> None:
        conv = functools.partial(nn.Conv, use_bias=False, padding=0, dtype=self.dtype, kernel_init=conv_init)
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size)
        if self.small_stem:
            self.conv1 = conv(64, (3, 3), padding=1)
        else:
            self.conv1 = conv(64, (7, 7), strides=2, padding=3)
        self.bn1 = norm()
        last_scale_init = nn.initializers.zeros if self.zero_init_last else nn.initializers.ones
        stage = functools.partial(Stage, self.block, conv=conv, norm=norm, last_scale_init=last_scale_init)
        self.layer1 = stage(self.depths[0], 64, 1)
        self.layer2 = stage(self.depths[1], 128, 2)
        self.layer3 = stage(self.depths[2], 256, 2)
        self.layer4 = stage(self.depths[3], 512, 2)
        if self.num_classes:
            self.fc = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=dense_init)

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the representation before the classifier, averaged over positions.

        Args:
            images: (batch, height, width, channels), normalized.
            train: normalize by the batch's statistics and update the running ones.

        Returns:
            (batch, 512 * expansion) float32.
        """
        x = self.conv1(images.astype(self.dtype))
        x = nn.relu(self.bn1(x, train=train))
        if not self.small_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x, train=train)
        return x.astype(jnp.float32).mean((1, 2))

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits, (batch, num_classes) float32. Arguments as for `features`."""
        x = self.features(images, train=train)
        return self.fc(x).astype(jnp.float32) if self.num_classes else x


VARIANTS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
for _name, (_block, _depths) in VARIANTS.items():
    registry.register(_name, functools.partial(ResNet, _block, _depths))
