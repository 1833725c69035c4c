"""Pre-activation ResNet (He et al. 2016, arXiv:1603.05027); Big Transfer (Kolesnikov et al. 2019, arXiv:1912.11370).

Modules carry timm's names, so that the tree of variables is its state dict, path by path.
"""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models import registry
from vision_jax.models.layers import (
    BatchNorm,
    Conv,
    DropPath,
    ImageModel,
    avg_pool,
    capture,
    conv_init,
    drop_path_rates,
    global_mean,
    max_pool,
    maybe_remat,
)


class StdConv(nn.Module):
    """A convolution whose kernel is standardized for each output (Qiao et al. 2019, arXiv:1903.10520).

    The kernel that is applied has mean 0 and variance 1, computed in float32.
    """

    features: int
    kernel_size: int
    strides: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", conv_init, shape, jnp.float32)
        kernel = (kernel - kernel.mean((0, 1, 2))) * jax.lax.rsqrt(kernel.var((0, 1, 2)) + 1e-8)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.strides, self.strides),
            [((self.kernel_size - 1) // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class GroupNorm(nn.GroupNorm):
    """Group normalization that is called as `BatchNorm` is."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # type: ignore[override]
        return super().__call__(x)


class Stem(nn.Module):
    """A 7x7 convolution, or three of 3x3, with stride 2; no norm at the end."""

    features: int
    deep: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.deep:
            return self.conv(self.features, 7, 2, name="conv")(x)
        x = self.conv(self.features // 2, 3, 2, name="conv1")(x)
        x = self.conv(self.features // 2, 3, name="conv2")(nn.relu(self.norm(name="norm1")(x, train=train)))
        return self.conv(self.features, 3, name="conv3")(nn.relu(self.norm(name="norm2")(x, train=train)))


class Downsample(nn.Module):
    """The projection of a shortcut: a 1x1 convolution.

    Attributes:
        average: what has the stride is an average pooling before the convolution, so that all positions count.
    """

    features: int
    stride: int
    average: bool
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stride = self.stride
        if self.average and stride == 2:
            x, stride = avg_pool(x, 2, 2, ceil=True, count_include_pad=False), 1
        return self.conv(self.features, 1, stride, name="conv")(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after a norm, and a shortcut that nothing is applied to.

    Attributes:
        features: of the result; the 3x3 convolution has a quarter.
        project: the shortcut is a convolution of what the first norm gives.
        average_downsample: see `Downsample`.
    """

    features: int
    stride: int
    project: bool
    drop_path_rate: float
    average_downsample: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = self.features // 4
        y = nn.relu(self.norm(name="norm1")(x, train=train))
        if self.project:
            x = Downsample(self.features, self.stride, self.average_downsample, self.conv, name="downsample")(y)
        y = self.conv(width, 1, name="conv1")(y)
        y = self.conv(width, 3, self.stride, name="conv2")(nn.relu(self.norm(name="norm2")(y, train=train)))
        y = self.conv(self.features, 1, name="conv3")(nn.relu(self.norm(name="norm3")(y, train=train)))
        return x + DropPath(self.drop_path_rate)(y, train)


class Blocks(nn.Module):
    """Blocks of one width; the first one has the stride and a projection."""

    block: Any
    stride: int
    drop_path_rates: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_path_rates):
            first = i == 0
            block = self.block(stride=self.stride if first else 1, project=first, drop_path_rate=rate, name=str(i))
            x = capture(self, block(x, train), str(i))
        return x


class Stage(nn.Module):
    """A module that has the blocks as its `blocks`."""

    block: Any
    stride: int
    drop_path_rates: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return Blocks(self.block, self.stride, self.drop_path_rates, name="blocks")(x, train)


class Stages(nn.Module):
    """All stages.

    Attributes:
        block: makes a block.
        features: of the first stage; the others have twice as many as the one before.
        drop_path_rates: of each block of each stage.
    """

    block: Any
    features: int
    drop_path_rates: tuple[tuple[float, ...], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        """Returns what each stage gives."""
        maps = []
        for i, rates in enumerate(self.drop_path_rates):
            block = functools.partial(self.block, features=self.features * 2**i)
            x = capture(self, Stage(block, 1 if i == 0 else 2, rates, name=str(i))(x, train), str(i))
            maps.append(x)
        return maps


class Head(nn.Module):
    """The classifier, which is a 1x1 convolution in state dicts; in float32, as `Classifier`."""

    num_classes: int
    bias: float
    std: float

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        init, bias_init = nn.initializers.normal(self.std), nn.initializers.constant(self.bias)
        conv = functools.partial(Conv, kernel_init=init, bias_init=bias_init)
        fc = conv(self.num_classes, 1, use_bias=True, name="fc")
        return fc(features[:, None, None])[:, 0, 0]


class PreActResNet(ImageModel, kw_only=True):
    """A residual network whose shortcuts have no activations; a subclass says which convolutions and norms it has.

    `feature_maps` gives the last map after the final norm and activation, and the others, which end in sums, as they
    are.

    Attributes:
        depths: blocks in each of the four stages.
        width_factor: widens all layers.
        deep_stem: three 3x3 convolutions in the place of the first, 7x7, one.
        average_downsample: shortcuts are averaged where the resolution changes.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
        head_bias: where the biases of the classifier begin.
        head_std: standard deviation of its initial weights.
    """

    depths: tuple[int, int, int, int]
    width_factor: int = 1
    deep_stem: bool = False
    average_downsample: bool = False
    remat: bool | str = False
    head_bias: float = 0.0
    head_std: float = 0.01

    def layers(self) -> tuple[Any, Any]:
        """Returns what makes a convolution, of (features, kernel size, stride), and a norm."""
        raise NotImplementedError

    def pool(self, x: jax.Array) -> jax.Array:
        """Halves the resolution behind the stem."""
        return max_pool(x, 3, 2, padding=1)

    def setup(self) -> None:
        conv, norm = self.layers()
        self.stem = Stem(64 * self.width_factor, self.deep_stem, conv, norm)
        block = functools.partial(
            maybe_remat(Bottleneck, self.remat), average_downsample=self.average_downsample, conv=conv, norm=norm
        )
        rates = tuple(tuple(stage) for stage in drop_path_rates(self.drop_path_rate, self.depths))
        self.stages = Stages(block, 256 * self.width_factor, rates)
        self.norm = norm()
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.head = Head(self.num_classes, self.head_bias, self.head_std)

    @property
    def gradcam_layer(self) -> str:
        return "norm"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        x = capture(self, self.stem(self.prepare(images), train), "stem")
        *maps, last = self.stages(self.pool(x), train)
        maps = [x, *maps, capture(self, nn.relu(self.norm(last, train=train)), "norm")]
        return {2 * 2**i: x for i, x in enumerate(maps)}

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        maps = self.feature_maps(images, train=train)
        return global_mean(maps[max(maps)])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.head(self.dropout(features, deterministic=not train))


class ResNetV2(PreActResNet, kw_only=True):
    """A pre-activation residual network with batch norms.

    Attributes:
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
    """

    bn_group_size: int = 0

    def layers(self) -> tuple[Any, Any]:
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size)
        return functools.partial(Conv, dtype=self.dtype), norm


class BigTransfer(PreActResNet, kw_only=True):
    """A pre-activation residual network with group norms and standardized kernels: no statistics of the batch."""

    def layers(self) -> tuple[Any, Any]:
        norm = functools.partial(GroupNorm, num_groups=32, epsilon=1e-5, dtype=self.dtype, use_fast_variance=False)
        return functools.partial(StdConv, dtype=self.dtype), norm

    def pool(self, x: jax.Array) -> jax.Array:
        # What is beyond the edge counts as zero here. It matters, because the stem's results are of both signs.
        return max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)


# Modules of a unit, or outside of units, in the published files of TensorFlow and in big_vision's own.
_BIG_VISION_MODULES = {
    "root_block/standardized_conv2d": "stem.conv",
    "root_block/conv_root": "stem.conv",
    "group_norm": "norm",
    "norm-pre-head": "norm",
    "head/conv2d": "head.fc",
    "head": "head.fc",
    **{f"{letter}/standardized_conv2d": f"conv{i}" for i, letter in enumerate("abc", 1)},
    **{f"{letter}/group_norm": f"norm{i}" for i, letter in enumerate("abc", 1)},
    "a/proj/standardized_conv2d": "downsample.conv",
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
    **{f"gn{i}": f"norm{i}" for i in (1, 2, 3)},
    "conv_proj": "downsample.conv",
}
_BIG_VISION_LEAVES = {"kernel": "weight", "gamma": "weight", "scale": "weight", "beta": "bias", "bias": "bias"}


def from_big_vision(arrays: registry.Tensors) -> dict[str, np.ndarray]:
    """Converts the arrays of Big Transfer's published `.npz` files, or of big_vision's, into a state dict of timm.

    Arrays of unknown names are returned as they are.
    """
    state = {}
    for key, value in arrays.items():
        # Some files number the convolutions.
        name = re.sub(r"(?<=/standardized_conv2d)_\d+(?=/)", "", key.removeprefix("resnet/").removeprefix("params/"))
        place = ""
        if unit := re.match(r"block(\d+)/unit(\d+)/", name):
            place = f"stages.{int(unit[1]) - 1}.blocks.{int(unit[2]) - 1}."
            name = name[unit.end() :]
        module, _, leaf = name.rpartition("/")
        if module not in _BIG_VISION_MODULES or leaf not in _BIG_VISION_LEAVES:
            state[key] = value
            continue
        if leaf == "kernel":
            value = value[None, None] if value.ndim == 2 else value  # of a classifier that is no convolution
            value = value.transpose(3, 2, 0, 1)
        else:
            value = value.reshape(-1)
        state[f"{place}{_BIG_VISION_MODULES[module]}.{_BIG_VISION_LEAVES[leaf]}"] = value
    return state


_50, _101, _152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_D = {"deep_stem": True, "average_downsample": True}
_input = functools.partial(registry.InputSpec, mean=registry.HALVES, std=registry.HALVES)

# depths, options, input
VARIANTS: dict[str, tuple[tuple[int, int, int, int], dict[str, Any], registry.InputSpec]] = {
    "resnetv2_50": (_50, {}, _input(crop_pct=0.95)),
    "resnetv2_101": (_101, {}, _input(crop_pct=0.95)),
    "resnetv2_152": (_152, {}, _input()),
    "resnetv2_50d": (_50, _D, _input()),
    "resnetv2_101d": (_101, _D, _input()),
    "resnetv2_152d": (_152, _D, _input()),
}
# depths, width factor, input
BIG_TRANSFER_VARIANTS: dict[str, tuple[tuple[int, int, int, int], int, registry.InputSpec]] = {
    "resnetv2_50x1_bit": (_50, 1, _input()),
    "resnetv2_50x3_bit": (_50, 3, _input(448, interpolation="bilinear", crop_pct=1.0)),
    "resnetv2_101x1_bit": (_101, 1, _input(448, interpolation="bilinear", crop_pct=1.0)),
    "resnetv2_101x3_bit": (_101, 3, _input(448, interpolation="bilinear", crop_pct=1.0)),
    "resnetv2_152x2_bit": (_152, 2, _input()),
    "resnetv2_152x4_bit": (_152, 4, _input(480, interpolation="bilinear", crop_pct=1.0)),
}
for _name, (_depths, _options, _spec) in VARIANTS.items():
    registry.register(_name, functools.partial(ResNetV2, depths=_depths, **_options), _spec)
for _name, (_depths, _width, _spec) in BIG_TRANSFER_VARIANTS.items():
    _create = functools.partial(BigTransfer, depths=_depths, width_factor=_width)
    registry.register(_name, _create, _spec, big_vision=from_big_vision)
