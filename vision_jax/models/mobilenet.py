"""MNASNet (Tan et al. 2018, arXiv:1807.11626) and MobileNet: V1 (Howard et al. 2017, arXiv:1704.04861), V2 (Sandler et
al. 2018, arXiv:1801.04381) and V3 (Howard et al. 2019, arXiv:1905.02244).

Torchvision's V3 has a norm epsilon of 1e-3, unlike timm's, and is here under torchvision's names (mobilenet_v3_large);
the original V3 is also padded as TensorFlow does (tf_mobilenetv3_large_100). Torchvision's V2 and MNASNets are equal to
timm's, and known by both names; it trained the latter with a `norm_momentum` of 0.9997, which takes many steps.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.efficientnet import TENSORFLOW, EfficientNet
from vision_jax.models.layers import Conv, global_mean
from vision_jax.models.mbconv import (
    Activation,
    Block,
    ConvBlock,
    DepthwiseSeparable,
    InvertedResidual,
    MobileNet,
    Row,
    Stages,
    build,
    layers_of,
    places,
    renaming,
    round_channels,
    torchvision_layers,
)
from vision_jax.models.registry import HALVES, InputSpec, Shape


class PlainConv(ConvBlock):
    """A convolution, its norm and its activation, without a shortcut."""

    shortcut = False


class PlainSeparable(Block):
    """A depthwise and a pointwise convolution, both with activations, without a shortcut."""

    layers = (("conv_dw", "bn1"), ("conv_pw", "bn2"))
    shortcut = False

    def branch(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.act(self.norm(name="bn1")(self.depthwise(x), train=train))
        x = self.pointwise(x, self.spec.features, "conv_pw")
        return self.act(self.norm(name="bn2")(x, train=train))


class MobileNetV1(EfficientNet, kw_only=True):
    """Depthwise separable convolutions without shortcuts; with timm's later choice of a bounded activation."""

    residual = False

    act: Activation = nn.relu6


class MobileNetV3(MobileNet, kw_only=True):
    """Stages of mobile blocks whose last one is pointwise, and a layer behind the average instead of before it."""

    act: Activation = nn.hard_swish
    squeeze_act: Activation = nn.relu
    gate: Activation = nn.hard_sigmoid

    def setup(self) -> None:
        super().setup()
        self.conv_head = Conv(self.head_width, 1, use_bias=True, dtype=self.dtype)

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        maps = self.feature_maps(images, train=train)
        x = self.conv_head(global_mean(maps[max(maps)])[:, None, None])
        return self.act(x).reshape(x.shape[0], -1).astype(jnp.float32)


STEM = {"conv_stem": "features.0.0", "bn1": "features.0.1"}


def v2_naming(stages: Stages) -> registry.Naming:
    modules = STEM | {"classifier": "classifier.1"}
    for k, (_, _, ours, spec) in enumerate(places(stages), 1):
        modules |= torchvision_layers(ours, spec, f"features.{k}.conv")
        *_, (conv, norm) = layers = layers_of(spec)
        # The projection and its norm are not wrapped in a layer.
        modules[f"{ours}.{conv}"] = f"features.{k}.conv.{len(layers) - 1}"
        modules[f"{ours}.{norm}"] = f"features.{k}.conv.{len(layers)}"
    return renaming(modules | {"conv_head": f"features.{k + 1}.0", "bn2": f"features.{k + 1}.1"})


def v3_naming(stages: Stages) -> registry.Naming:
    modules = STEM | {"conv_head": "classifier.0", "classifier": "classifier.3"}
    for k, (_, _, ours, spec) in enumerate(places(stages), 1):
        modules |= torchvision_layers(ours, spec, f"features.{k}.block")
    modules |= {f"{ours}.conv": f"features.{k}.0", f"{ours}.bn1": f"features.{k}.1"}  # the last is not a block there
    rename = renaming(modules)

    def rename_and_flatten(name: str, shape: Shape) -> tuple[str, Shape]:
        return rename(name, shape[:2] if name == "conv_head.weight" else shape)  # a dense layer there

    return rename_and_flatten


def mnasnet_naming(stages: Stages) -> registry.Naming:
    # Activations have numbers too; the stem and the block of the first stage are not wrapped.
    modules = {"conv_stem": "layers.0", "bn1": "layers.1", "classifier": "classifier.1"}
    for s, i, ours, spec in places(stages):
        place, first = (f"layers.{s + 7}.{i}.layers", 0) if s else ("layers", 3)
        for j, (conv, norm) in enumerate(layers_of(spec)):
            modules[f"{ours}.{conv}"] = f"{place}.{first + 3 * j}"
            modules[f"{ours}.{norm}"] = f"{place}.{first + 3 * j + 1}"
    return renaming(modules | {"conv_head": f"layers.{s + 8}", "bn2": f"layers.{s + 9}"})


# block, count, kernel, stride, expansion, width, squeeze, activation
V1 = (
    Row(PlainSeparable, 1, 3, 1, 1, 64),
    Row(PlainSeparable, 2, 3, 2, 1, 128),
    Row(PlainSeparable, 2, 3, 2, 1, 256),
    Row(PlainSeparable, 6, 3, 2, 1, 512),
    Row(PlainSeparable, 2, 3, 2, 1, 1024),
)
V2 = (
    Row(DepthwiseSeparable, 1, 3, 1, 1, 16),
    Row(InvertedResidual, 2, 3, 2, 6, 24),
    Row(InvertedResidual, 3, 3, 2, 6, 32),
    Row(InvertedResidual, 4, 3, 2, 6, 64),
    Row(InvertedResidual, 3, 3, 1, 6, 96),
    Row(InvertedResidual, 3, 3, 2, 6, 160),
    Row(InvertedResidual, 1, 3, 1, 6, 320),
)
V3_LARGE = (
    Row(DepthwiseSeparable, 1, 3, 1, 1, 16, 0, nn.relu),
    Row(InvertedResidual, 1, 3, 2, 4, 24, 0, nn.relu),
    Row(InvertedResidual, 1, 3, 1, 3, 24, 0, nn.relu),
    Row(InvertedResidual, 3, 5, 2, 3, 40, 0.25, nn.relu),
    Row(InvertedResidual, 1, 3, 2, 6, 80),
    Row(InvertedResidual, 1, 3, 1, 2.5, 80),
    Row(InvertedResidual, 2, 3, 1, 2.3, 80),
    Row(InvertedResidual, 2, 3, 1, 6, 112, 0.25),
    Row(InvertedResidual, 3, 5, 2, 6, 160, 0.25),
    Row(PlainConv, 1, 1, 1, 1, 960),
)
V3_SMALL = (
    Row(DepthwiseSeparable, 1, 3, 2, 1, 16, 0.25, nn.relu),
    Row(InvertedResidual, 1, 3, 2, 4.5, 24, 0, nn.relu),
    Row(InvertedResidual, 1, 3, 1, 3.67, 24, 0, nn.relu),
    Row(InvertedResidual, 1, 5, 2, 4, 40, 0.25),
    Row(InvertedResidual, 2, 5, 1, 6, 40, 0.25),
    Row(InvertedResidual, 2, 5, 1, 3, 48, 0.25),
    Row(InvertedResidual, 3, 5, 2, 6, 96, 0.25),
    Row(PlainConv, 1, 1, 1, 1, 576),
)


def _minimal(table: tuple[Row, ...]) -> tuple[Row, ...]:
    """Returns a table without larger kernels, squeeze-and-excitation and any activation but the rectifier."""
    return tuple(dataclasses.replace(row, kernel=min(row.kernel, 3), squeeze=0.0, act=None) for row in table)


MNASNET_B1 = (
    Row(DepthwiseSeparable, 1, 3, 1, 1, 16),
    Row(InvertedResidual, 3, 3, 2, 3, 24),
    Row(InvertedResidual, 3, 5, 2, 3, 40),
    Row(InvertedResidual, 3, 5, 2, 6, 80),
    Row(InvertedResidual, 2, 3, 1, 6, 96),
    Row(InvertedResidual, 4, 5, 2, 6, 192),
    Row(InvertedResidual, 1, 3, 1, 6, 320),
)
MNASNET_A1 = (
    Row(DepthwiseSeparable, 1, 3, 1, 1, 16),
    Row(InvertedResidual, 2, 3, 2, 6, 24),
    Row(InvertedResidual, 3, 5, 2, 3, 40, 0.25),
    Row(InvertedResidual, 4, 3, 2, 6, 80),
    Row(InvertedResidual, 2, 3, 1, 6, 112, 0.25),
    Row(InvertedResidual, 3, 5, 2, 6, 160, 0.25),
    Row(InvertedResidual, 1, 3, 1, 6, 320),
)

_create: Callable[..., nn.Module]

# factor of width, head, input
VARIANTS_V1 = {
    "mobilenetv1_100": (1.0, 0, InputSpec(224, HALVES, HALVES)),
    "mobilenetv1_100h": (1.0, 1024, InputSpec(224, HALVES, HALVES)),
    "mobilenetv1_125": (1.25, 0, InputSpec(224, HALVES, HALVES, crop_pct=0.9)),
}
for _name, (_width, _head, _input) in VARIANTS_V1.items():
    _stem = round_channels(32 * _width)
    _stages = build(V1, _stem, _width)
    _create = functools.partial(MobileNetV1, stages=_stages, stem_width=_stem, head_width=_head)
    registry.register(_name, _create, _input)

# factors of width and depth, torchvision's name
VARIANTS_V2: dict[str, tuple[float, float, str | None]] = {
    "mobilenetv2_035": (0.35, 1.0, None),
    "mobilenetv2_050": (0.5, 1.0, None),
    "mobilenetv2_075": (0.75, 1.0, None),
    "mobilenetv2_100": (1.0, 1.0, "mobilenet_v2"),
    "mobilenetv2_140": (1.4, 1.0, None),
    "mobilenetv2_110d": (1.1, 1.2, None),
    "mobilenetv2_120d": (1.2, 1.4, None),
}
for _name, (_width, _depth, _alias) in VARIANTS_V2.items():
    # The deeper ones keep stem, head, and the depth of the first and the last stage.
    _stem, _head = (32, 1280) if _depth > 1 else (round_channels(32 * _width), max(1280, round_channels(1280 * _width)))
    _stages = build(V2, _stem, _width, (1.0, *[_depth] * 5, 1.0))
    _create = functools.partial(EfficientNet, stages=_stages, stem_width=_stem, head_width=_head, act=nn.relu6)
    _naming = v2_naming(_stages) if _alias else None
    registry.register(_name, _create, torchvision=_naming, aliases=[_alias] if _alias else [])

# table, factor of width, torchvision's name
VARIANTS_MNASNET: dict[str, tuple[tuple[Row, ...], float, str | None]] = {
    "mnasnet_050": (MNASNET_B1, 0.5, "mnasnet0_5"),
    "mnasnet_075": (MNASNET_B1, 0.75, "mnasnet0_75"),
    "mnasnet_100": (MNASNET_B1, 1.0, "mnasnet1_0"),
    "mnasnet_140": (MNASNET_B1, 1.4, None),
    "semnasnet_050": (MNASNET_A1, 0.5, None),
    "semnasnet_075": (MNASNET_A1, 0.75, None),
    "semnasnet_100": (MNASNET_A1, 1.0, None),
    "semnasnet_140": (MNASNET_A1, 1.4, None),
    "mnasnet1_3": (MNASNET_B1, 1.3, "mnasnet1_3"),  # which timm has not
}
for _name, (_table, _width, _alias) in VARIANTS_MNASNET.items():
    _stem = round_channels(32 * _width)
    _stages = build(_table, _stem, _width)
    _create = functools.partial(EfficientNet, stages=_stages, stem_width=_stem, act=nn.relu, squeeze_act=nn.relu)
    _input = InputSpec(interpolation="bilinear", crop_pct=0.965) if _alias == _name else InputSpec()
    _naming = mnasnet_naming(_stages) if _alias else None
    registry.register(_name, _create, _input, torchvision=_naming, aliases=[_alias] if _alias else [])


# table, factors of width and depth, input
_TF = InputSpec(224, HALVES, HALVES, "bilinear")
VARIANTS_V3: dict[str, tuple[tuple[Row, ...], float, float, InputSpec]] = {
    "mobilenetv3_large_075": (V3_LARGE, 0.75, 1.0, InputSpec(interpolation="bilinear")),
    "mobilenetv3_large_100": (V3_LARGE, 1.0, 1.0, InputSpec()),
    "mobilenetv3_large_150d": (V3_LARGE, 1.5, 1.2, InputSpec(256, HALVES, HALVES, "bilinear", 0.95)),
    "mobilenetv3_small_050": (V3_SMALL, 0.5, 1.0, InputSpec()),
    "mobilenetv3_small_075": (V3_SMALL, 0.75, 1.0, InputSpec()),
    "mobilenetv3_small_100": (V3_SMALL, 1.0, 1.0, InputSpec()),
    "tf_mobilenetv3_large_075": (V3_LARGE, 0.75, 1.0, _TF),
    "tf_mobilenetv3_large_100": (V3_LARGE, 1.0, 1.0, _TF),
    "tf_mobilenetv3_large_minimal_100": (_minimal(V3_LARGE), 1.0, 1.0, _TF),
    "tf_mobilenetv3_small_075": (V3_SMALL, 0.75, 1.0, _TF),
    "tf_mobilenetv3_small_100": (V3_SMALL, 1.0, 1.0, _TF),
    "tf_mobilenetv3_small_minimal_100": (_minimal(V3_SMALL), 1.0, 1.0, _TF),
    "mobilenet_v3_large": (V3_LARGE, 1.0, 1.0, InputSpec(interpolation="bilinear", crop_pct=0.965)),
    "mobilenet_v3_small": (V3_SMALL, 1.0, 1.0, InputSpec(interpolation="bilinear")),
}
for _name, (_table, _width, _depth, _input) in VARIANTS_V3.items():
    _stem = max(16, round_channels(16 * _width))
    _head = 1024 if "_small" in _name else 1280
    _stages = build(_table, _stem, _width, _depth, squeeze_expanded=True)
    _create = functools.partial(MobileNetV3, stages=_stages, stem_width=_stem, head_width=_head)
    if "_minimal" in _name:
        _create = functools.partial(_create, act=nn.relu)
    if _name.startswith("tf_"):
        registry.register(_name, functools.partial(_create, **TENSORFLOW), _input)
    elif _name.startswith("mobilenet_v3"):
        _create = functools.partial(_create, norm_epsilon=1e-3, norm_momentum=0.99)
        registry.register(_name, _create, _input, torchvision=v3_naming(_stages))
    else:
        registry.register(_name, _create, _input)
