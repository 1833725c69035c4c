"""Wide ResNet for images of about 32 pixels (Zagoruyko and Komodakis 2016, arXiv:1605.07146).

`wrn_28_10` has 28 layers with kernels in its longest path, and is 10 times as wide as the pre-activation ResNet that it
is made of. ImageNet's `wide_resnet50_2` is another model, in resnet.py.
"""

import functools
from typing import Any

import flax.linen as nn
import jax

from vision_jax.errors import ConfigError
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
    global_mean,
    maybe_remat,
)


class Block(nn.Module):
    """Two 3x3 convolutions, each after a norm and an activation, and a shortcut.

    Attributes:
        width: of the result. Where it changes, the shortcut is a 1x1 convolution of what the first norm gives.
        stride: of the first convolution.
        drop_path_rate: probability of dropping the branch.
        conv, norm: make the layers.
    """

    width: int
    stride: int
    drop_path_rate: float
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(self.norm(name="bn1")(x, train=train))
        if x.shape[-1] != self.width:
            x = self.conv(self.width, 1, self.stride, name="downsample")(y)
        y = self.conv(self.width, 3, self.stride, name="conv1")(y)
        y = self.conv(self.width, 3, name="conv2")(nn.relu(self.norm(name="bn2")(y, train=train)))
        return x + DropPath(self.drop_path_rate)(y, train)


class Stage(nn.Module):
    """Blocks of one width; the first one has the stride."""

    block: Any
    stride: int
    drop_path_rates: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_path_rates):
            block = self.block(stride=self.stride if i == 0 else 1, drop_path_rate=rate, name=str(i))
            x = capture(self, block(x, train), str(i))
        return x


class WideResNet(ImageModel, kw_only=True):
    """A pre-activation residual network of three stages.

    `feature_maps` gives the last map after the final norm and activation, and the others, which end in sums, as they
    are.

    Attributes:
        depth: layers with kernels, 6 n + 4.
        width_factor: width of the stages over 16, 32 and 64.
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
    """

    num_classes: int = 10
    depth: int
    width_factor: int
    bn_group_size: int = 0
    remat: bool | str = False

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ConfigError(f"depth is {self.depth}: blocks of two layers in three stages make it 10, 16, 22 ...")
        super().__post_init__()

    def setup(self) -> None:
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size)
        block = functools.partial(maybe_remat(Block, self.remat), conv=conv, norm=norm)
        self.conv1 = conv(16, 3)
        rates = drop_path_rates(self.drop_path_rate, [(self.depth - 4) // 6] * 3)
        for i in range(3):
            wide = functools.partial(block, width=16 * 2**i * self.width_factor)
            setattr(self, f"layer{i + 1}", Stage(wide, 1 if i == 0 else 2, tuple(rates[i])))
        self.norm = norm()
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.fc = Classifier(self.num_classes, kernel_init=dense_init)

    @property
    def gradcam_layer(self) -> str:
        return "norm"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        x, maps = capture(self, self.conv1(self.prepare(images)), "stem"), {}
        for i in range(3):
            maps[2**i] = x = capture(self, getattr(self, f"layer{i + 1}")(x, train), f"layer{i + 1}")
        return maps | {4: capture(self, nn.relu(self.norm(x, train=train)), "norm")}

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return global_mean(self.feature_maps(images, train=train)[4])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.fc(self.dropout(features, deterministic=not train))


# What CIFAR-10's training images have.
CIFAR = registry.InputSpec(32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "bilinear", 1.0)
for _depth, _width in ((16, 1), (16, 4), (28, 10), (34, 10), (40, 2)):
    _create = functools.partial(WideResNet, depth=_depth, width_factor=_width)
    registry.register(f"wrn_{_depth}_{_width}", _create, CIFAR, library="")
