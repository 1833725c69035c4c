"""RegNet X and Y (Radosavovic et al. 2020, arXiv:2003.13678): networks whose widths follow a quantized line."""

import functools
import math
import re
from collections import Counter
from typing import Any

import flax.linen as nn
import jax

from vision_jax.models import registry
from vision_jax.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    DropPath,
    ImageModel,
    capture,
    drop_path_rates,
    global_mean,
    maybe_remat,
)
from vision_jax.models.registry import InputSpec, Shape


def stage_shapes(
    depth: int, initial: int, slope: float, multiplier: float, group_width: int, *, half_up: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the widths of the stages and their numbers of blocks.

    The width of block i is on the line `initial + slope * i`, moved to the nearest power of `multiplier` times
    `initial` and rounded to eights; blocks of the same width are a stage. Then widths are rounded to whole groups.

    Args:
        depth: blocks in all.
        half_up: round up where a width is amid two numbers of groups, as torchvision does; False: to the even number
            of groups, as the paper's code does.
    """
    blocks: Counter[int] = Counter()
    for i in range(depth):
        power = round(math.log(1 + slope * i / initial, multiplier))
        blocks[8 * round(initial * multiplier**power / 8)] += 1
    widths = []
    for width in blocks:
        group = min(group_width, width)
        rounded = group * (math.floor(width / group + 0.5) if half_up else round(width / group))
        widths.append(rounded + group if half_up and rounded < 0.9 * width else rounded)
    return tuple(widths), tuple(blocks.values())


class ConvNorm(nn.Module):
    """A convolution and its norm."""

    features: int
    kernel_size: int
    stride: int
    conv: Any
    norm: Any
    groups: int = 1
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.features, self.kernel_size, self.stride, groups=self.groups, name="conv")(x)
        return self.norm(scale_init=self.scale_init, name="bn")(x, train=train)


class SqueezeExcite(nn.Module):
    """Scales each channel by a function of all channels' means (Hu et al. 2018, arXiv:1709.01507)."""

    hidden: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = global_mean(x)[:, None, None].astype(x.dtype)
        y = nn.relu(self.conv(self.hidden, 1, use_bias=True, name="fc1")(y))
        return x * nn.sigmoid(self.conv(x.shape[-1], 1, use_bias=True, name="fc2")(y))


class Block(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions of one width, and a shortcut."""

    width: int
    stride: int
    group_width: int
    se_ratio: float
    conv: Any
    norm: Any
    last_scale_init: nn.initializers.Initializer
    drop_path_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = functools.partial(ConvNorm, self.width, conv=self.conv, norm=self.norm)
        groups = self.width // min(self.group_width, self.width)
        y = nn.relu(layer(1, 1, name="conv1")(x, train))
        y = nn.relu(layer(3, self.stride, groups=groups, name="conv2")(y, train))
        if self.se_ratio:  # of the block's input, unlike in other families
            y = SqueezeExcite(round(x.shape[-1] * self.se_ratio), self.conv, name="se")(y)
        y = layer(1, 1, scale_init=self.last_scale_init, name="conv3")(y, train)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = layer(1, self.stride, name="downsample")(x, train)
        return nn.relu(x + DropPath(self.drop_path_rate)(y, train))


class Stage(nn.Module):
    """Blocks of one width; the first one halves the resolution."""

    block: Any
    drop_path_rates: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_path_rates):
            block = self.block(stride=2 if i == 0 else 1, drop_path_rate=rate, name=f"b{i + 1}")
            x = capture(self, block(x, train), f"b{i + 1}")
        return x


class Head(nn.Module):
    """The classifier."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Classifier(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="fc")(x)


class RegNet(ImageModel, kw_only=True):
    """A RegNet.

    Attributes:
        widths: features of each of the four stages.
        depths: their numbers of blocks.
        group_width: channels of a group of the 3x3 convolutions.
        se_ratio: hidden channels of squeeze and excitation per input channel of a block; 0: there is none (RegNet X).
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
        zero_init_last: start the last norm scale of each block at zero (Goyal et al. 2017, arXiv:1706.02677).
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    group_width: int
    se_ratio: float = 0.0
    bn_group_size: int = 0
    zero_init_last: bool = True
    remat: bool | str = False

    def setup(self) -> None:
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size)
        self.stem = ConvNorm(32, 3, 2, conv, norm)
        rates = drop_path_rates(self.drop_path_rate, self.depths)
        for i, width in enumerate(self.widths):
            block = functools.partial(
                maybe_remat(Block, self.remat),
                width=width,
                group_width=self.group_width,
                se_ratio=self.se_ratio,
                conv=conv,
                norm=norm,
                last_scale_init=nn.initializers.zeros if self.zero_init_last else nn.initializers.ones,
            )
            setattr(self, f"s{i + 1}", Stage(block, tuple(rates[i])))
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.head = Head(self.num_classes)

    @property
    def gradcam_layer(self) -> str:
        return f"s{len(self.widths)}"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        x = capture(self, nn.relu(self.stem(self.prepare(images), train)), "stem")
        maps = {2: x}
        for i in range(len(self.widths)):
            x = capture(self, getattr(self, f"s{i + 1}")(x, train), f"s{i + 1}")
            maps[4 * 2**i] = x
        return maps

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        maps = self.feature_maps(images, train=train)
        return global_mean(maps[max(maps)])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.head(self.dropout(features, deterministic=not train))


_TORCHVISION_LAYERS = {"conv1": "f.a", "conv2": "f.b", "conv3": "f.c", "se": "f.se", "downsample": "proj"}


def _torchvision(name: str, shape: Shape) -> tuple[str, Shape]:
    name = name.replace(".conv.", ".0.").replace(".bn.", ".1.").removeprefix("head.")
    if block := re.fullmatch(r"s(\d)\.b(\d+)\.(\w+)\.(.+)", name):
        stage, number, layer, rest = block.groups()
        name = f"trunk_output.block{stage}.block{stage}-{int(number) - 1}.{_TORCHVISION_LAYERS[layer]}.{rest}"
    return name, shape


# depth, initial width, slope, multiplier, width of groups; share of the image that evaluation crops; torchvision's name
VARIANTS: dict[str, tuple[tuple[int, int, float, float, int], float, str]] = {
    "regnetx_002": ((13, 24, 36.44, 2.49, 8), 0.875, ""),
    "regnetx_004": ((22, 24, 24.48, 2.54, 16), 0.875, ""),
    "regnetx_004_tv": ((22, 24, 24.48, 2.54, 16), 0.965, "regnet_x_400mf"),
    "regnetx_006": ((16, 48, 36.97, 2.24, 24), 0.875, ""),
    "regnetx_008": ((16, 56, 35.73, 2.28, 16), 0.965, "regnet_x_800mf"),
    "regnetx_016": ((18, 80, 34.01, 2.25, 24), 0.965, "regnet_x_1_6gf"),
    "regnetx_032": ((25, 88, 26.31, 2.25, 48), 0.965, "regnet_x_3_2gf"),
    "regnetx_040": ((23, 96, 38.65, 2.43, 40), 0.875, ""),
    "regnetx_064": ((17, 184, 60.83, 2.07, 56), 0.875, ""),
    "regnetx_080": ((23, 80, 49.56, 2.88, 120), 0.965, "regnet_x_8gf"),
    "regnetx_120": ((19, 168, 73.36, 2.37, 112), 0.875, ""),
    "regnetx_160": ((22, 216, 55.59, 2.1, 128), 0.965, "regnet_x_16gf"),
    "regnetx_320": ((23, 320, 69.86, 2.0, 168), 0.965, "regnet_x_32gf"),
    "regnety_002": ((13, 24, 36.44, 2.49, 8), 0.875, ""),
    "regnety_004": ((16, 48, 27.89, 2.09, 8), 0.965, "regnet_y_400mf"),
    "regnety_006": ((15, 48, 32.54, 2.32, 16), 0.875, ""),
    "regnety_008": ((14, 56, 38.84, 2.4, 16), 0.875, ""),
    "regnety_008_tv": ((14, 56, 38.84, 2.4, 16), 0.965, "regnet_y_800mf"),
    "regnety_016": ((27, 48, 20.71, 2.65, 24), 0.965, "regnet_y_1_6gf"),
    "regnety_032": ((21, 80, 42.63, 2.66, 24), 0.95, "regnet_y_3_2gf"),
    "regnety_040": ((22, 96, 31.41, 2.24, 64), 0.95, ""),
    "regnety_064": ((25, 112, 33.22, 2.27, 72), 0.95, ""),
    "regnety_080": ((17, 192, 76.82, 2.19, 56), 0.95, ""),
    "regnety_080_tv": ((17, 192, 76.82, 2.19, 56), 0.965, "regnet_y_8gf"),
    "regnety_120": ((19, 168, 73.36, 2.37, 112), 0.95, ""),
    "regnety_160": ((18, 200, 106.23, 2.48, 112), 0.95, "regnet_y_16gf"),
    "regnety_320": ((20, 232, 115.89, 2.53, 232), 0.965, "regnet_y_32gf"),
    "regnety_1280": ((27, 456, 160.83, 2.52, 264), 1.0, "regnet_y_128gf"),
}
for _name, (_line, _crop_pct, _alias) in VARIANTS.items():
    _widths, _depths = stage_shapes(*_line, half_up=_name.endswith("_tv"))
    registry.register(
        _name,
        functools.partial(
            RegNet,
            widths=_widths,
            depths=_depths,
            group_width=_line[-1],
            se_ratio=0.25 if _name.startswith("regnety") else 0.0,
        ),
        InputSpec(384 if _name == "regnety_1280" else 224, crop_pct=_crop_pct),
        torchvision=_torchvision if _alias else None,
        aliases=(_alias,) if _alias else (),
    )
