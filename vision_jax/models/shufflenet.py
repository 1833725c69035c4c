"""ShuffleNet V2 (Ma et al. 2018, arXiv:1807.11164)."""

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
    ImageModel,
    capture,
    dense_init,
    global_mean,
    max_pool,
    maybe_remat,
)


def shuffle(x: jax.Array) -> jax.Array:
    """Puts channels of the first half and of the second in turn."""
    halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    return halves.swapaxes(-1, -2).reshape(x.shape)


class ConvNorm(nn.Module):
    """A convolution, its norm and a rectifier."""

    width: int
    size: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.width, self.size, self.stride, name="0")(x)
        return nn.relu(self.norm(name="1")(x, train=train))


class Shortcut(nn.Module):
    """The left branch of a unit with a stride: 3x3 by channel, and 1x1."""

    width: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(x.shape[-1], 3, 2, groups=x.shape[-1], name="0")(x)
        x = self.conv(self.width, 1, name="2")(self.norm(name="1")(x, train=train))
        return nn.relu(self.norm(name="3")(x, train=train))


class Branch(nn.Module):
    """The right branch of a unit: 1x1, 3x3 by channel, and 1x1."""

    width: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(self.norm(name="1")(self.conv(self.width, 1, name="0")(x), train=train))
        x = self.conv(self.width, 3, self.stride, groups=self.width, name="3")(x)
        x = self.conv(self.width, 1, name="5")(self.norm(name="4")(x, train=train))
        return nn.relu(self.norm(name="6")(x, train=train))


class Unit(nn.Module):
    """Two branches, whose channels are shuffled; without a stride, each has half the input, and the left one keeps it.

    Attributes:
        width: of the output.
    """

    width: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        half = self.width // 2
        if self.stride == 1:
            left, right = jnp.split(x, 2, axis=-1)
        else:
            left, right = Shortcut(half, self.conv, self.norm, name="branch1")(x, train), x
        right = Branch(half, self.stride, self.conv, self.norm, name="branch2")(right, train)
        return shuffle(jnp.concatenate([left, right], -1))


class Stage(nn.Module):
    """Units of one width; the first one halves the resolution."""

    unit: Any
    depth: int
    width: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.depth):
            unit = self.unit(self.width, 2 if i == 0 else 1, self.conv, self.norm, name=str(i))
            x = capture(self, unit(x, train), str(i))
        return x


class ShuffleNetV2(ImageModel, kw_only=True):
    """A convolution, three stages of 4, 8 and 4 units, and a 1x1 convolution.

    Attributes:
        widths: of the stages, and of the last convolution.
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
        remat: rematerialize the activations within units (gradient checkpointing), to save memory; see `maybe_remat`.
    """

    residual = False

    widths: tuple[int, int, int, int]
    bn_group_size: int = 0
    remat: bool | str = False

    def setup(self) -> None:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=dense_init)  # torch's default for convolutions too
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size)
        unit = maybe_remat(Unit, self.remat)
        self.conv1 = ConvNorm(24, 3, 2, conv, norm)
        for number, depth, width in zip((2, 3, 4), (4, 8, 4), self.widths[:3], strict=True):
            setattr(self, f"stage{number}", Stage(unit, depth, width, conv, norm))
        self.conv5 = ConvNorm(self.widths[3], 1, 1, conv, norm)
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.fc = Classifier(self.num_classes, kernel_init=dense_init)

    @property
    def gradcam_layer(self) -> str:
        return "conv5"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        maps = {2: capture(self, self.conv1(self.prepare(images), train), "stem")}
        maps[4] = capture(self, max_pool(maps[2], 3, 2, padding=1), "maxpool")
        maps[8] = capture(self, self.stage2(maps[4], train), "stage2")
        maps[16] = capture(self, self.stage3(maps[8], train), "stage3")
        last = capture(self, self.stage4(maps[16], train), "stage4")
        return maps | {32: capture(self, self.conv5(last, train), "conv5")}

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return global_mean(self.feature_maps(images, train=train)[32])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.fc(self.dropout(features, deterministic=not train))


# widths, shorter side of evaluation images before they are cropped to 224 pixels
VARIANTS: dict[str, tuple[tuple[int, int, int, int], int]] = {
    "shufflenet_v2_x0_5": ((48, 96, 192, 1024), 256),
    "shufflenet_v2_x1_0": ((116, 232, 464, 1024), 256),
    "shufflenet_v2_x1_5": ((176, 352, 704, 1024), 232),
    "shufflenet_v2_x2_0": ((244, 488, 976, 2048), 232),
}
for _name, (_widths, _resize) in VARIANTS.items():
    registry.register(
        _name,
        functools.partial(ShuffleNetV2, widths=_widths),
        registry.InputSpec(interpolation="bilinear", crop_pct=224 / _resize),
        library="torchvision",
    )
