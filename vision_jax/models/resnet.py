"""ResNet (He et al. 2015, arXiv:1512.03385), v1.5: the stride is in the 3x3 convolution of a bottleneck; and its kin.

ResNeXt (Xie et al. 2016, arXiv:1611.05431), Wide ResNet (Zagoruyko and Komodakis 2016, arXiv:1605.07146), ResNet-D
(He et al. 2018, arXiv:1812.01187), SE-ResNet (Hu et al. 2017, arXiv:1709.01507), ECA-ResNet (Wang et al. 2019,
arXiv:1910.03151) and ResNet-RS (Bello et al. 2021, arXiv:2103.07579).

Modules carry torch's names, so that the tree of variables is the state dict of timm and torchvision, path by path.
"""

import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError, suggest
from vision_jax.models import registry
from vision_jax.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    DropPath,
    ImageModel,
    avg_pool,
    capture,
    conv_norm,
    dense_init,
    drop_path_rates,
    global_mean,
    max_pool,
    maybe_remat,
    norm_relu_pool,
)

BLUR_POOL = ("conv", "conv+pool")
OUTPUT_STRIDES = (8, 16, 32)


def blur(x: jax.Array, stride: int = 1) -> jax.Array:
    """Averages 3x3 positions with the weights (1, 2, 1) / 4 in each direction; outside of the map there are zeros.

    Before every second position is dropped, it removes what is too fine for the rest (Zhang 2019, arXiv:1904.11486).

    Args:
        x: (batch, height, width, channels).
        stride: of the positions that are computed.

    Returns:
        (batch, about height / stride, about width / stride, channels) of the dtype of x; the sums are in float32.
    """
    y = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(jnp.float32)
    # Sums of shifted maps become one pass over them, which a depthwise convolution would not.
    for axis in (1, 2):
        first, second, third = (jax.lax.slice_in_dim(y, i, i + x.shape[axis], stride, axis) for i in range(3))
        y = (first + 2 * second + third) / 4
    return y.astype(x.dtype)


class BlurConv(nn.Conv):
    """A convolution that blurs before it makes a map smaller, if there are 16 channels: not at the image itself."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(blur(x) if self.strides == 2 and x.shape[-1] >= 16 else x)


class SqueezeExcite(nn.Module):
    """Scales channels by what a small network makes of their means (Hu et al. 2017, arXiv:1709.01507).

    Attributes:
        ratio: width of the hidden layer over that of the map; the width is rounded to a multiple of 8.
    """

    ratio: float = 1 / 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        width = max(8, int(channels * self.ratio + 4) // 8 * 8)
        y = global_mean(x)[:, None, None].astype(self.dtype)
        y = nn.relu(Conv(width, 1, use_bias=True, dtype=self.dtype, name="fc1")(y))
        return x * nn.sigmoid(Conv(channels, 1, use_bias=True, dtype=self.dtype, name="fc2")(y))


class EfficientChannelAttention(nn.Module):
    """Scales channels by a convolution over their means, along the channels (Wang et al. 2019, arXiv:1910.03151)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = int((math.log2(x.shape[-1]) + 1) / 2)
        size = max(3, size if size % 2 else size + 1)
        y = global_mean(x)[..., None].astype(self.dtype)
        y = nn.Conv(1, (size,), use_bias=False, dtype=self.dtype, name="conv")(y)
        return x * nn.sigmoid(y)[:, None, None, :, 0]


class DeepStem(nn.Module):
    """Three 3x3 convolutions, the first one with stride 2; the norm of the last one is not here."""

    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(self.norm(name="1")(self.conv(32, 3, 2, name="0")(x), train=train))
        x = nn.relu(self.norm(name="4")(self.conv(32, 3, name="3")(x), train=train))
        return self.conv(64, 3, name="6")(x)


class StridedConv(nn.Module):
    """A 3x3 convolution of stride 2 that stands where others have max pooling."""

    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.relu(self.norm(name="1")(self.conv(x.shape[-1], 3, 2, name="0")(x), train=train))


class Downsample(nn.Module):
    """The projection of a shortcut: a 1x1 convolution and its norm.

    Attributes:
        average: what has the stride is an average pooling before the convolution, so that all positions count.
        dilated: dilation stands in the place of the stride; then the pooling has stride 1, and as in timm counts zeros
            beyond the edge.
    """

    features: int
    stride: int
    conv: Any
    norm: Any
    average: bool
    dilated: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.average:  # torch counts the pooling as "0"
            if self.stride == 2:
                x = avg_pool(x, 2, 2, ceil=True, count_include_pad=False)
            elif self.dilated:
                x = nn.avg_pool(x, (2, 2), (1, 1), "SAME")
            return conv_norm(self.conv(self.features, 1, name="1"), self.norm(name="2"), x, train=train)
        return conv_norm(self.conv(self.features, 1, self.stride, name="0"), self.norm(name="1"), x, train=train)


class Block(nn.Module):
    """A residual branch and its shortcut.

    Attributes:
        width: of the 3x3 convolutions, before `base_width` and `groups` change it.
        stride: of the first 3x3 convolution.
        conv, norm: make the layers.
        last_scale_init: initializer of the last norm's scale.
        drop_path_rate: probability of dropping the branch.
        groups: of the 3x3 convolution.
        base_width: of each group, where `width` is 64.
        average_downsample: see `Downsample`.
        attention: makes the layer at the end of the branch; None: there is none.
        dilations: of the first 3x3 convolution, and of the second or, in a bottleneck, of the stage.
    """

    expansion: ClassVar[int]  # width of the result over `width`

    width: int
    stride: int
    conv: Any
    norm: Any
    last_scale_init: Any
    drop_path_rate: float = 0.0
    groups: int = 1
    base_width: int = 64
    average_downsample: bool = False
    attention: Any = None
    dilations: tuple[int, int] = (1, 1)

    def conv3(self, width: int, stride: int, dilation: int, **options: Any) -> nn.Module:
        """Returns a 3x3 convolution whose taps are `dilation` positions apart."""
        if dilation > 1:
            options |= {"padding": dilation, "kernel_dilation": dilation}
        return self.conv(width, 3, stride, **options)

    def join(self, x: jax.Array, y: jax.Array, train: bool) -> jax.Array:
        """Returns the block's result from its input x and what the branch's convolutions made of it."""
        if self.attention is not None:
            y = self.attention(name="se")(y)
        if self.stride != 1 or x.shape[-1] != y.shape[-1]:
            layers = self.conv, self.norm, self.average_downsample, self.dilations[1] > 1
            x = Downsample(y.shape[-1], self.stride, *layers, name="downsample")(x, train)
        return nn.relu(x + DropPath(self.drop_path_rate)(y, train))


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut, for ResNet-18 and -34."""

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if (self.groups, self.base_width) != (1, 64):
            raise ConfigError("groups and base_width are of bottlenecks: a basic block has 1 and 64.")
        y = self.conv3(self.width, self.stride, self.dilations[0], name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv3(self.width, 1, self.dilations[1], name="conv2")(y)
        y = self.norm(name="bn2", scale_init=self.last_scale_init)(y, train=train)
        return self.join(x, y, train)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, for ResNet-50 and deeper; the result is four times as wide."""

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = self.width * self.base_width // 64 * self.groups
        y = self.conv(width, 1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv3(width, self.stride, self.dilations[0], groups=self.groups, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = conv_norm(
            self.conv(self.width * self.expansion, 1, name="conv3"),
            self.norm(name="bn3", scale_init=self.last_scale_init),
            y,
            train=train,
        )
        return self.join(x, y, train)


class Stage(nn.Module):
    """Blocks of one width.

    Attributes:
        stride: of the first block.
        dilations: of the stage before, which the first block's first 3x3 convolution has, and of this one.
    """

    block: Any
    width: int
    stride: int
    drop_path_rates: tuple[float, ...]
    dilations: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_path_rates):
            stride = self.stride if i == 0 else 1
            dilations = self.dilations if i == 0 else (self.dilations[1],) * 2
            block = self.block(self.width, stride, drop_path_rate=rate, dilations=dilations, name=str(i))
            x = capture(self, block(x, train), str(i))
        return x


class ResNet(ImageModel, kw_only=True):
    """A residual network.

    Attributes:
        block: BasicBlock or Bottleneck.
        depths: blocks in each of the four stages.
        groups, base_width: of bottlenecks, as ResNeXt (32 groups of width 4) and wide networks (one of 128) have them.
        deep_stem: three 3x3 convolutions in the place of the first, 7x7, one.
        strided_stem: a convolution of stride 2 in the place of the stem's max pooling.
        average_downsample: shortcuts are averaged where the resolution changes.
        attention: makes the layer at the end of each branch that scales channels; None: there is none.
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
        small_stem: instead of the whole stem a 3x3 convolution of stride 1, for images of about 32 pixels.
        blur_pool: "conv": convolutions of stride 2 see blurred maps, but for the first one; "conv+pool": the stem's
            max pooling has stride 1, too, and a blur of stride 2 behind it; "": nothing is blurred.
        zero_init_last: start the last norm scale of each block at zero (Goyal et al. 2017, arXiv:1706.02677).
        head_bias: where the biases of the classifier begin.
        head_std: standard deviation of its initial weights; None: they are initialized as those of torch.
        output_stride: of the last map: 16 or 8 instead of 32 for segmentation, where dilation stands in the place of
            the strides of the last stages (Chen et al. 2017, arXiv:1706.05587). The first block of such a stage keeps
            the dilation of the stage before, as in torchvision and timm.
        norm_epsilon: added to the variances of batch norms. Some published detectors, such as torchvision's COCO_V1
            weights of RetinaNet, are to be used with 0.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
    """

    block: type[Block]
    depths: tuple[int, int, int, int]
    groups: int = 1
    base_width: int = 64
    deep_stem: bool = False
    strided_stem: bool = False
    average_downsample: bool = False
    attention: Any = None
    bn_group_size: int = 0
    small_stem: bool = False
    blur_pool: str = ""
    zero_init_last: bool = True
    head_bias: float = 0.0
    head_std: float | None = None
    output_stride: int = 32
    norm_epsilon: float = 1e-5
    remat: bool | str = False

    def __post_init__(self) -> None:
        if self.blur_pool and self.blur_pool not in BLUR_POOL:
            raise ConfigError(f"blur_pool is {self.blur_pool!r}: {suggest(self.blur_pool, BLUR_POOL)}")
        if self.output_stride not in OUTPUT_STRIDES:
            raise ConfigError(f"output_stride is {self.output_stride!r}: give 8, 16 or 32.")
        if self.small_stem and self.output_stride != 32:
            raise ConfigError(
                f"output_stride is {self.output_stride}, which counts from a stem of stride 4: leave small_stem unset."
            )
        super().__post_init__()

    def setup(self) -> None:
        conv = functools.partial(Conv, dtype=self.dtype, layer=BlurConv if self.blur_pool else nn.Conv)
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size, epsilon=self.norm_epsilon)
        deep = self.deep_stem and not self.small_stem
        first: Any = DeepStem(conv, norm) if deep else conv(64, 3) if self.small_stem else conv(64, 7, 2)
        self.conv1 = first
        if self.strided_stem and not self.small_stem:
            self.maxpool = StridedConv(conv, norm)  # so it is called in state dicts
        self.bn1 = norm()
        block = functools.partial(
            maybe_remat(self.block, self.remat),
            conv=conv,
            norm=norm,
            last_scale_init=nn.initializers.zeros if self.zero_init_last else nn.initializers.ones,
            groups=self.groups,
            base_width=self.base_width,
            average_downsample=self.average_downsample,
            attention=self.attention and functools.partial(self.attention, dtype=self.dtype),
        )
        rates = drop_path_rates(self.drop_path_rate, self.depths)
        dilation = 1
        for i in range(4):
            before, stride = dilation, 1 if i == 0 else 2
            if 4 * 2**i > self.output_stride:
                dilation, stride = dilation * stride, 1
            stage = Stage(block, 64 * 2**i, stride, tuple(rates[i]), (before, dilation))
            setattr(self, f"layer{i + 1}", stage)
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            bias_init = nn.initializers.constant(self.head_bias)
            kernel_init = dense_init if self.head_std is None else nn.initializers.normal(self.head_std)
            self.fc = Classifier(self.num_classes, kernel_init=kernel_init, bias_init=bias_init)

    @property
    def gradcam_layer(self) -> str:
        return "layer4"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        stem, stages = self._maps(images, train)
        start, stride = (1, 1) if self.small_stem else (2, 4)
        # Where dilation stands in the place of strides, several stages have the last stride: its map is the last one's.
        return {start: stem} | {min(stride * 2**i, self.output_stride): x for i, x in enumerate(stages)}

    def stage_maps(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        return tuple(self._maps(images, train)[1])

    def _maps(self, images: jax.Array, train: bool) -> tuple[jax.Array, list[jax.Array]]:
        """Returns the stem's map and those of the stages."""
        x = self.prepare(images)
        x = self.conv1(x, train) if self.deep_stem and not self.small_stem else self.conv1(x)
        if self.small_stem or self.strided_stem:
            stem = x = capture(self, nn.relu(self.bn1(x, train=train)), "stem")
            if not self.small_stem:
                x = self.maxpool(x, train)
        else:
            pool = functools.partial(max_pool, size=3, stride=1 if self.blur_pool == "conv+pool" else 2, padding=1)
            stem, x = norm_relu_pool(self, self.bn1, x, pool, "stem", train=train)
            if self.blur_pool == "conv+pool":
                x = blur(x, 2)
        stages = []
        for i in range(4):
            x = capture(self, getattr(self, f"layer{i + 1}")(x, train), f"layer{i + 1}")
            stages.append(x)
        return stem, stages

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        maps = self.feature_maps(images, train=train)
        return global_mean(maps[max(maps)])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.fc(self.dropout(features, deterministic=not train))


_BASIC18 = {"block": BasicBlock, "depths": (2, 2, 2, 2)}
_BASIC34 = {"block": BasicBlock, "depths": (3, 4, 6, 3)}
_50 = {"block": Bottleneck, "depths": (3, 4, 6, 3)}
_101 = {"block": Bottleneck, "depths": (3, 4, 23, 3)}
_152 = {"block": Bottleneck, "depths": (3, 8, 36, 3)}
_200 = {"block": Bottleneck, "depths": (3, 24, 36, 3)}
_270 = {"block": Bottleneck, "depths": (4, 29, 53, 4)}
_350 = {"block": Bottleneck, "depths": (4, 36, 72, 4)}
_420 = {"block": Bottleneck, "depths": (4, 44, 87, 4)}

_D = {"deep_stem": True, "average_downsample": True}
_32X4D = {"groups": 32, "base_width": 4}
_32X8D = {"groups": 32, "base_width": 8}
_64X4D = {"groups": 64, "base_width": 4}
_WIDE = {"base_width": 128}
_SE = {"attention": SqueezeExcite}
_ECA = {"attention": EfficientChannelAttention}
_RS = {**_D, "strided_stem": True, "attention": functools.partial(SqueezeExcite, ratio=1 / 4)}

_BICUBIC = registry.InputSpec()
_BILINEAR = registry.InputSpec(interpolation="bilinear")
_95 = registry.InputSpec(crop_pct=0.95)
_256_95 = registry.InputSpec(256, crop_pct=0.95)

# options, input
VARIANTS: dict[str, tuple[dict[str, Any], registry.InputSpec]] = {
    "resnet18": (_BASIC18, _95),
    "resnet34": (_BASIC34, _95),
    "resnet50": (_50, _95),
    "resnet101": (_101, _95),
    "resnet152": (_152, _95),
    "resnet18d": (_BASIC18 | _D, _BICUBIC),
    "resnet34d": (_BASIC34 | _D, _BICUBIC),
    "resnet50d": (_50 | _D, _BICUBIC),
    "resnet101d": (_101 | _D, _256_95),
    "resnet152d": (_152 | _D, _256_95),
    "resnet200d": (_200 | _D, _256_95),
    "resnext50_32x4d": (_50 | _32X4D, _95),
    "resnext101_32x4d": (_101 | _32X4D, _BILINEAR),
    "resnext101_32x8d": (_101 | _32X8D, _BILINEAR),
    "resnext101_64x4d": (_101 | _64X4D, _95),
    "wide_resnet50_2": (_50 | _WIDE, _BICUBIC),
    "wide_resnet101_2": (_101 | _WIDE, _BILINEAR),
    "seresnet18": (_BASIC18 | _SE, _BICUBIC),
    "seresnet34": (_BASIC34 | _SE, _BICUBIC),
    "seresnet50": (_50 | _SE, _95),
    "seresnet101": (_101 | _SE, _BICUBIC),
    "seresnet152": (_152 | _SE, _BICUBIC),
    "seresnext50_32x4d": (_50 | _32X4D | _SE, _BICUBIC),
    "seresnext101_32x4d": (_101 | _32X4D | _SE, _BICUBIC),
    "seresnext101_32x8d": (_101 | _32X8D | _SE, _95),
    "ecaresnet50d": (_50 | _D | _ECA, _BICUBIC),
    "resnetrs50": (_50 | _RS, registry.InputSpec(160, crop_pct=0.91)),
    "resnetrs101": (_101 | _RS, registry.InputSpec(192, crop_pct=0.94)),
    "resnetrs152": (_152 | _RS, registry.InputSpec(256, crop_pct=1.0)),
    "resnetrs200": (_200 | _RS, registry.InputSpec(256, crop_pct=1.0)),
    "resnetrs270": (_270 | _RS, registry.InputSpec(256, crop_pct=1.0)),
    "resnetrs350": (_350 | _RS, registry.InputSpec(288, crop_pct=1.0)),
    "resnetrs420": (_420 | _RS, registry.InputSpec(320, crop_pct=1.0)),
}
# These names stand in torchvision too.
_IN_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
for _name, (_options, _input) in VARIANTS.items():
    registry.register(_name, functools.partial(ResNet, **_options), _input, in_torchvision=_name in _IN_TORCHVISION)
