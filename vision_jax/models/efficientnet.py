"""EfficientNet (Tan and Le 2019, arXiv:1905.11946) and EfficientNetV2 (Tan and Le 2021, arXiv:2104.00298).

Models whose names begin with tf_ are the original ones: TensorFlow pads otherwise than torch where a stride is 2, and
their norms have a larger epsilon and forget more slowly. The rest are timm's. Torchvision's B0 to B4 are equal to them;
its B5 to B7 are not, although tensors and names agree, because their `norm_epsilon` is 1e-3. Their weights are not
converted, since nobody would notice that the function is another. Torchvision's EfficientNetV2 has that epsilon too,
and is here under torchvision's names (efficientnet_v2_s).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from vision_jax.models import registry
from vision_jax.models.layers import Conv, capture, global_mean
from vision_jax.models.mbconv import (
    ConvBlock,
    DepthwiseSeparable,
    EdgeResidual,
    InvertedResidual,
    MobileNet,
    Row,
    Stages,
    build,
    places,
    renaming,
    round_channels,
    torchvision_layers,
)
from vision_jax.models.registry import HALVES, InputSpec


class EfficientNet(MobileNet, kw_only=True):
    """Stages of mobile blocks and a pointwise convolution, the result of which is averaged over positions.

    Besides both versions of EfficientNet, MobileNetV2 and MNASNet are of this form.
    """

    def setup(self) -> None:
        super().setup()
        if self.head_width:
            self.conv_head = Conv(self.head_width, 1, dtype=self.dtype)
            self.bn2 = self.norm()

    @property
    def gradcam_layer(self) -> str:
        return "conv_head" if self.head_width else super().gradcam_layer

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        maps = self.feature_maps(images, train=train)
        x = maps[max(maps)]
        if self.head_width:
            x = capture(self, self.act(self.bn2(self.conv_head(x), train=train)), "conv_head")
        return global_mean(x)


def torchvision_naming(stages: Stages) -> registry.Naming:
    head = f"features.{len(stages) + 1}"
    modules = {"conv_stem": "features.0.0", "bn1": "features.0.1", "classifier": "classifier.1"}
    modules |= {"conv_head": f"{head}.0", "bn2": f"{head}.1"}
    for s, i, ours, spec in places(stages):
        modules |= torchvision_layers(ours, spec, f"features.{s + 1}.{i}.block")
    return renaming(modules)


# As the original code has it; momentum 0.99 is torch's 0.01.
TENSORFLOW: dict[str, Any] = {"padding": "SAME", "norm_epsilon": 1e-3, "norm_momentum": 0.99}

# block, count, kernel, stride, expansion, width, squeeze
V1 = (
    Row(DepthwiseSeparable, 1, 3, 1, 1, 16, 0.25),
    Row(InvertedResidual, 2, 3, 2, 6, 24, 0.25),
    Row(InvertedResidual, 2, 5, 2, 6, 40, 0.25),
    Row(InvertedResidual, 3, 3, 2, 6, 80, 0.25),
    Row(InvertedResidual, 3, 5, 1, 6, 112, 0.25),
    Row(InvertedResidual, 4, 5, 2, 6, 192, 0.25),
    Row(InvertedResidual, 1, 3, 1, 6, 320, 0.25),
)


def _v2(counts: Sequence[int], widths: Sequence[int], first: Any = ConvBlock) -> tuple[Row, ...]:
    """The rows of all EfficientNetV2s, which differ in the numbers of blocks and their widths."""
    blocks = (first, EdgeResidual, EdgeResidual, *[InvertedResidual] * 4)
    strides, expansions = (1, 2, 2, 2, 1, 2, 1), (1, 4, 4, 4, 6, 6, 6)
    return tuple(
        Row(block, count, 3, stride, expansion, width, 0.25 if block is InvertedResidual else 0)
        for block, count, stride, expansion, width in zip(blocks, counts, strides, expansions, widths, strict=False)
    )


V2_BASE = _v2((1, 2, 2, 3, 5, 8), (16, 32, 48, 96, 112, 192))
V2_S = _v2((2, 4, 4, 6, 9, 15), (24, 48, 64, 128, 160, 256))
V2_M = _v2((3, 5, 5, 7, 14, 18, 5), (24, 48, 80, 160, 176, 304, 512))
V2_L = _v2((4, 7, 7, 10, 19, 25, 7), (32, 64, 96, 192, 224, 384, 640))
V2_XL = _v2((4, 8, 8, 16, 24, 32, 8), (32, 64, 96, 192, 256, 512, 640))
# Made from the paper's figure, before the original code was public.
V2_RW = _v2((2, 4, 4, 6, 9, 15), (24, 48, 64, 128, 160, 272), EdgeResidual)

# factors of width and depth; input of timm's weights, and of the original ones
VARIANTS_V1 = {
    "efficientnet_b0": (1.0, 1.0, InputSpec(224), InputSpec(224)),
    "efficientnet_b1": (1.0, 1.1, InputSpec(240, HALVES, HALVES, crop_pct=0.9), InputSpec(240, crop_pct=0.882)),
    "efficientnet_b2": (1.1, 1.2, InputSpec(256), InputSpec(260, crop_pct=0.89)),
    "efficientnet_b3": (1.2, 1.4, InputSpec(288), InputSpec(300, crop_pct=0.904)),
    "efficientnet_b4": (1.4, 1.8, InputSpec(320), InputSpec(380, crop_pct=0.922)),
    "efficientnet_b5": (1.6, 2.2, InputSpec(448, crop_pct=1.0), InputSpec(456, crop_pct=0.934)),
    "efficientnet_b6": (1.8, 2.6, InputSpec(528, crop_pct=0.942), InputSpec(528, crop_pct=0.942)),
    "efficientnet_b7": (2.0, 3.1, InputSpec(600, crop_pct=0.949), InputSpec(600, crop_pct=0.949)),
    "efficientnet_b8": (2.2, 3.6, InputSpec(672, crop_pct=0.954), InputSpec(672, HALVES, HALVES, crop_pct=0.954)),
    "efficientnet_l2": (4.3, 5.3, InputSpec(800, crop_pct=0.961), InputSpec(475, crop_pct=0.936)),
}
LIKE_TORCHVISION = [f"efficientnet_b{i}" for i in range(5)]
for _name, (_width, _depth, _timm, _original) in VARIANTS_V1.items():
    _stem = round_channels(32 * _width)
    _stages = build(V1, _stem, _width, _depth)
    _create = functools.partial(
        EfficientNet, stages=_stages, stem_width=_stem, head_width=round_channels(1280 * _width)
    )
    _naming = torchvision_naming(_stages) if _name in LIKE_TORCHVISION else None
    registry.register(_name, _create, _timm, torchvision=_naming)
    registry.register(f"tf_{_name}", functools.partial(_create, **TENSORFLOW), _original)

# table, factors of width and depth, stem, head, input
VARIANTS_V2: dict[str, tuple[tuple[Row, ...], float, float | Sequence[float], int, int, InputSpec]] = {
    "efficientnetv2_s": (V2_S, 1.0, 1.0, 24, 1280, InputSpec(288, crop_pct=1.0)),
    "efficientnetv2_m": (V2_M, 1.0, 1.0, 24, 1280, InputSpec(320, crop_pct=1.0)),
    "efficientnetv2_l": (V2_L, 1.0, 1.0, 32, 1280, InputSpec(384, crop_pct=1.0)),
    "efficientnetv2_xl": (V2_XL, 1.0, 1.0, 32, 1280, InputSpec(384, crop_pct=1.0)),
    "efficientnetv2_rw_t": (V2_S, 0.8, 0.9, 24, 1280, InputSpec(224, crop_pct=1.0)),
    "efficientnetv2_rw_s": (V2_RW, 1.0, 1.0, 24, 1792, InputSpec(288, crop_pct=1.0)),
    "efficientnetv2_rw_m": (V2_RW, 1.2, (1.2,) * 4 + (1.6,) * 2, 24, 1792, InputSpec(320, crop_pct=1.0)),
    "tf_efficientnetv2_b0": (V2_BASE, 1.0, 1.0, 32, 1280, InputSpec(192)),
    "tf_efficientnetv2_b1": (V2_BASE, 1.0, 1.1, 32, 1280, InputSpec(192, crop_pct=0.882)),
    "tf_efficientnetv2_b2": (V2_BASE, 1.1, 1.2, 32, 1280, InputSpec(208, crop_pct=0.89)),
    "tf_efficientnetv2_b3": (V2_BASE, 1.2, 1.4, 32, 1280, InputSpec(240, HALVES, HALVES, crop_pct=0.9)),
    "tf_efficientnetv2_s": (V2_S, 1.0, 1.0, 24, 1280, InputSpec(300, HALVES, HALVES, crop_pct=1.0)),
    "tf_efficientnetv2_m": (V2_M, 1.0, 1.0, 24, 1280, InputSpec(384, HALVES, HALVES, crop_pct=1.0)),
    "tf_efficientnetv2_l": (V2_L, 1.0, 1.0, 32, 1280, InputSpec(384, HALVES, HALVES, crop_pct=1.0)),
    "tf_efficientnetv2_xl": (V2_XL, 1.0, 1.0, 32, 1280, InputSpec(384, HALVES, HALVES, crop_pct=1.0)),
    "efficientnet_v2_s": (V2_S, 1.0, 1.0, 24, 1280, InputSpec(384, interpolation="bilinear", crop_pct=1.0)),
    "efficientnet_v2_m": (V2_M, 1.0, 1.0, 24, 1280, InputSpec(480, interpolation="bilinear", crop_pct=1.0)),
    "efficientnet_v2_l": (V2_L, 1.0, 1.0, 32, 1280, InputSpec(480, HALVES, HALVES, crop_pct=1.0)),
}
for _name, (_table, _width, _depths, _stem, _head, _input) in VARIANTS_V2.items():
    _limit = 0.0 if _table is V2_BASE else 0.9  # the base models round to the nearest, however much they lose
    _stem, _head = (round_channels(channels * _width, _limit) for channels in (_stem, _head))
    _stages = build(_table, _stem, _width, _depths, limit=_limit)
    _create = functools.partial(EfficientNet, stages=_stages, stem_width=_stem, head_width=_head)
    if _name.startswith("tf_"):
        registry.register(_name, functools.partial(_create, **TENSORFLOW), _input)
    elif _name.startswith("efficientnet_v2"):
        _create = functools.partial(_create, norm_epsilon=1e-3)
        registry.register(_name, _create, _input, torchvision=torchvision_naming(_stages))
    else:
        registry.register(_name, _create, _input)
