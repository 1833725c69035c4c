"""Mobile convolutional blocks, and how a network's blocks follow from the table in its paper.

MNASNet, the MobileNets and the EfficientNets are rows of such blocks, whose widths and depths are multiplied for
larger and smaller variants: `build` does that with the rounding of the original code, which published weights need.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import BatchNorm, Classifier, Conv, DropPath, ImageModel, capture, maybe_remat
from vision_jax.models.registry import Naming, Shape

Activation = Callable[[jax.Array], jax.Array]

# He et al.'s of the output, where each output of a depthwise convolution belongs to one input: its fan is the kernel.
depthwise_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Uniform within 1 / sqrt(classes).
classifier_init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a paper's table: equal blocks in succession.

    Attributes:
        block: their type.
        count: of blocks; only the first has the stride.
        kernel: size of the spatial convolution.
        stride: of the spatial convolution.
        expansion: width within a block as a multiple of its input's.
        width: of the result. Successive rows of the same width are a stage.
        squeeze: reduction of channels by squeeze-and-excitation, such as 0.25; 0: there is none.
        act: activation within the blocks; None: the network's.
    """

    block: type["Block"]
    count: int
    kernel: int
    stride: int
    expansion: float
    width: int
    squeeze: float = 0.0
    act: Activation | None = None


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One block with its final sizes.

    Attributes:
        block: its type.
        kernel: size of the spatial convolution.
        stride: of the spatial convolution.
        expanded: channels within.
        features: channels of the result.
        squeezed: the fewest channels in squeeze-and-excitation; 0: there is none.
        act: activation; None: the network's.
    """

    block: type["Block"]
    kernel: int
    stride: int
    expanded: int
    features: int
    squeezed: int
    act: Activation | None


Stages = tuple[tuple[BlockSpec, ...], ...]


def round_channels(channels: float, limit: float = 0.9) -> int:
    """Returns the nearest multiple of 8, or the next larger where that is less than `limit` of the channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < limit * channels else rounded


def _scale_counts(counts: Sequence[int], factor: float) -> list[int]:
    """Multiplies the depth of a stage, rounded up, and distributes it over its rows, to the later ones first."""
    old, new = sum(counts), math.ceil(sum(counts) * factor)
    scaled = []
    for count in reversed(counts):
        scaled.append(max(1, round(count / old * new)))
        old, new = old - count, new - scaled[-1]
    return scaled[::-1]


def build(
    table: Sequence[Row],
    stem: int,
    width: float = 1.0,
    depth: float | Sequence[float] = 1.0,
    *,
    limit: float = 0.9,
    squeeze_expanded: bool = False,
) -> Stages:
    """Returns the blocks of a network, by stage.

    Args:
        table: what is to be scaled.
        stem: channels that the first block sees; not scaled.
        width: factor of widths.
        depth: factor of the number of blocks, of all stages or of each.
        limit: the share of its channels that rounding must leave a stage; see `round_channels`.
        squeeze_expanded: squeeze-and-excitation reduces the expanded channels, instead of the block's input.
    """
    by_stage = [list(rows) for _, rows in itertools.groupby(table, key=lambda row: row.width)]
    depths = [depth] * len(by_stage) if isinstance(depth, int | float) else depth
    inputs, stages = stem, []
    for rows, factor in zip(by_stage, depths, strict=True):
        features = round_channels(rows[0].width * width, limit)
        stage = []
        for row, count in zip(rows, _scale_counts([row.count for row in rows], factor), strict=True):
            for i in range(count):
                expanded = round_channels(inputs * row.expansion)
                squeezed = round_channels(expanded * row.squeeze) if squeeze_expanded else round(inputs * row.squeeze)
                stage.append(
                    BlockSpec(
                        row.block,
                        row.kernel,
                        row.stride if i == 0 else 1,
                        expanded,
                        features,
                        squeezed if row.squeeze else 0,
                        row.act,
                    )
                )
                inputs = features
        stages.append(tuple(stage))
    return tuple(stages)


class SqueezeExcite(nn.Module):
    """Gates channels by a function of their means (Hu et al. 2017, arXiv:1709.01507)."""

    squeezed: int
    act: Activation
    gate: Activation
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(Conv, kernel_size=1, use_bias=True, dtype=self.dtype)
        y = x.astype(jnp.float32).mean((1, 2), keepdims=True)
        y = self.act(conv(self.squeezed, name="conv_reduce")(y))
        return x * self.gate(conv(x.shape[-1], name="conv_expand")(y))


_SQUEEZE = ("se.conv_reduce", "se.conv_expand")


class Block(nn.Module):
    """What the blocks have in common: a shortcut where input and result have the same shape.

    Attributes:
        spec: its sizes.
        act: its activation.
        squeeze: makes squeeze-and-excitation of a number of channels.
        conv: makes convolutions.
        norm: makes norms.
        drop_path_rate: of the branch beside the shortcut.
    """

    # Names of the layers in their order: a convolution and its norm, or squeeze-and-excitation.
    layers: ClassVar[tuple[tuple[str, str], ...]]
    shortcut: ClassVar[bool] = True

    spec: BlockSpec
    act: Activation
    squeeze: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self.branch(x, train)
        if self.shortcut and self.spec.stride == 1 and x.shape[-1] == y.shape[-1]:
            return x + DropPath(self.drop_path_rate)(y, train)
        return y

    def branch(self, x: jax.Array, train: bool) -> jax.Array:
        raise NotImplementedError

    def pointwise(self, x: jax.Array, features: int, name: str) -> jax.Array:
        return self.conv(features, 1, name=name)(x)

    def depthwise(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        return self.conv(
            channels, self.spec.kernel, self.spec.stride, groups=channels, kernel_init=depthwise_init, name="conv_dw"
        )(x)

    def excite(self, x: jax.Array) -> jax.Array:
        return self.squeeze(self.spec.squeezed, name="se")(x) if self.spec.squeezed else x


class ConvBlock(Block):
    """A convolution, its norm and its activation."""

    layers = (("conv", "bn1"),)

    def branch(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.spec.features, self.spec.kernel, self.spec.stride, name="conv")(x)
        return self.act(self.norm(name="bn1")(x, train=train))


class DepthwiseSeparable(Block):
    """A depthwise convolution and a linear pointwise one: an inverted residual that does not expand."""

    layers = (("conv_dw", "bn1"), _SQUEEZE, ("conv_pw", "bn2"))

    def branch(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.act(self.norm(name="bn1")(self.depthwise(x), train=train))
        x = self.pointwise(self.excite(x), self.spec.features, "conv_pw")
        return self.norm(name="bn2")(x, train=train)


class InvertedResidual(Block):
    """Pointwise expansion, a depthwise convolution, and a linear projection (Sandler et al. 2018, arXiv:1801.04381)."""

    layers = (("conv_pw", "bn1"), ("conv_dw", "bn2"), _SQUEEZE, ("conv_pwl", "bn3"))

    def branch(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.pointwise(x, self.spec.expanded, "conv_pw")
        x = self.act(self.norm(name="bn1")(x, train=train))
        x = self.act(self.norm(name="bn2")(self.depthwise(x), train=train))
        x = self.pointwise(self.excite(x), self.spec.features, "conv_pwl")
        return self.norm(name="bn3")(x, train=train)


class EdgeResidual(Block):
    """An inverted residual whose expansion and depthwise convolution are one full convolution, faster on accelerators.

    EfficientNetV2 calls it Fused-MBConv.
    """

    layers = (("conv_exp", "bn1"), ("conv_pwl", "bn2"))

    def branch(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.spec.expanded, self.spec.kernel, self.spec.stride, name="conv_exp")(x)
        x = self.act(self.norm(name="bn1")(x, train=train))
        x = self.pointwise(x, self.spec.features, "conv_pwl")
        return self.norm(name="bn2")(x, train=train)


class Stage(nn.Module):
    """Blocks in succession; `blocks` makes each from its name."""

    blocks: tuple[Callable[..., nn.Module], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, block in enumerate(self.blocks):
            x = capture(self, block(name=str(i))(x, train), str(i))
        return x


class Trunk(nn.Module):
    """Stages in succession; gives the result of each."""

    stages: tuple[tuple[Callable[..., nn.Module], ...], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        maps = []
        for i, blocks in enumerate(self.stages):
            x = capture(self, Stage(blocks, name=str(i))(x, train), str(i))
            maps.append(x)
        return maps


class MobileNet(ImageModel, kw_only=True):
    """A strided convolution and stages of mobile blocks; what follows them is a subclass's.

    Attributes:
        stages: the blocks; see `build`.
        stem_width: channels of the first convolution.
        head_width: channels of the last convolution.
        act: activation.
        squeeze_act: activation within squeeze-and-excitation.
        gate: activation by which squeeze-and-excitation multiplies.
        padding: None: as much on both sides, as torch does; "SAME": as TensorFlow does.
        norm_epsilon: added to variances.
        norm_momentum: share of the running statistics that a step keeps.
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
    """

    stages: Stages
    stem_width: int = 32
    head_width: int = 1280
    act: Activation = nn.silu
    squeeze_act: Activation = nn.silu
    gate: Activation = nn.sigmoid
    padding: str | None = None
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    bn_group_size: int = 0
    remat: bool | str = False

    def setup(self) -> None:
        conv = functools.partial(Conv, padding=self.padding, dtype=self.dtype)
        squeeze = functools.partial(SqueezeExcite, act=self.squeeze_act, gate=self.gate, dtype=self.dtype)
        self.conv_stem = conv(self.stem_width, 3, 2)
        self.bn1 = self.norm()
        count, total = itertools.count(), sum(len(stage) for stage in self.stages)
        self.blocks = Trunk(
            tuple(
                tuple(
                    functools.partial(
                        maybe_remat(spec.block, self.remat),
                        spec,
                        spec.act or self.act,
                        squeeze,
                        conv,
                        self.norm,
                        # Unlike elsewhere, the last block is dropped a little less often than `drop_path_rate`.
                        self.drop_path_rate * next(count) / total,
                    )
                    for spec in stage
                )
                for stage in self.stages
            )
        )
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.classifier = Classifier(self.num_classes, kernel_init=classifier_init)

    @property
    def norm(self) -> Callable[..., BatchNorm]:
        """Makes the norms."""
        return functools.partial(
            BatchNorm,
            dtype=self.dtype,
            group_size=self.bn_group_size,
            epsilon=self.norm_epsilon,
            momentum=self.norm_momentum,
        )

    @property
    def gradcam_layer(self) -> str:
        return f"blocks/{len(self.stages) - 1}"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        x = capture(self, self.act(self.bn1(self.conv_stem(self.prepare(images)), train=train)), "stem")
        stride, maps = 2, {2: x}
        for stage, result in zip(self.stages, self.blocks(x, train), strict=True):
            stride *= stage[0].stride
            maps[stride] = result
        return maps

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.classifier(self.dropout(features, deterministic=not train))


def places(stages: Stages) -> Iterator[tuple[int, int, str, BlockSpec]]:
    """Yields each block's stage, its index in it, its name in the tree of variables, and itself."""
    for s, stage in enumerate(stages):
        for i, spec in enumerate(stage):
            yield s, i, f"blocks.{s}.{i}", spec


def layers_of(spec: BlockSpec) -> list[tuple[str, str]]:
    """Returns the names of a block's layers in their order: a convolution and its norm, or squeeze-and-excitation."""
    return [layer for layer in spec.block.layers if spec.squeezed or layer is not _SQUEEZE]


def torchvision_layers(ours: str, spec: BlockSpec, theirs: str) -> dict[str, str]:
    """Returns torchvision's names of a block's modules: it numbers layers, and the modules within each."""
    return {
        f"{ours}.{module}": f"{theirs}.{i}.{suffix}"
        for i, layer in enumerate(layers_of(spec))
        for module, suffix in zip(layer, ("fc1", "fc2") if layer is _SQUEEZE else ("0", "1"), strict=True)
    }


def renaming(modules: Mapping[str, str]) -> Naming:
    """Returns the naming by which modules have other names."""

    def rename(name: str, shape: Shape) -> tuple[str, Shape]:
        module, _, leaf = name.rpartition(".")
        return f"{modules[module]}.{leaf}", shape

    return rename
