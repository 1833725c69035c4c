"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545) and ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808)."""

import functools
import re
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.layers import (
    Classifier,
    Conv,
    DropPath,
    ImageModel,
    capture,
    dot_after_gelu,
    drop_path_rates,
    gelu,
    global_mean,
    maybe_remat,
    transformer_init,
)
from vision_jax.models.registry import InputSpec, Shape

LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)
BiasedConv = functools.partial(Conv, use_bias=True, kernel_init=transformer_init)


class GlobalResponseNorm(nn.Module):
    """Scales each channel by its norm over all positions, relative to the channels' mean (ConvNeXt V2)."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (batch, height, width, channels)."""
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        squares = jnp.square(y).sum((1, 2), keepdims=True)
        # The root has no finite derivative at zero, where a whole channel may be.
        norms = jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))
        relative = norms / (norms.mean(-1, keepdims=True) + self.epsilon)
        return (y + scale * (y * relative) + bias).astype(x.dtype)


class Mlp(nn.Module):
    """Two layers at each position; the hidden one is four times as wide."""

    conv_mlp: bool
    response_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer: Any
        if self.conv_mlp:
            layer = functools.partial(BiasedConv, kernel_size=1, dtype=self.dtype)
        else:
            layer = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=transformer_init)
        y = layer(4 * x.shape[-1], name="fc1")(x)
        if not (self.conv_mlp or self.response_norm):
            return layer(x.shape[-1], name="fc2", dot_general=dot_after_gelu)(y)
        y = gelu(y)
        if self.response_norm:
            y = GlobalResponseNorm(name="grn")(y)
        return layer(x.shape[-1], name="fc2")(y)


class Block(nn.Module):
    """A depthwise 7x7 convolution, a norm and an MLP, beside a shortcut."""

    drop_path_rate: float
    layer_scale_init: float | None
    conv_mlp: bool
    response_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        y = BiasedConv(width, 7, groups=width, dtype=self.dtype, name="conv_dw")(x)
        y = LayerNorm(dtype=self.dtype, name="norm")(y)
        y = Mlp(self.conv_mlp, self.response_norm, self.dtype, name="mlp")(y)
        if self.layer_scale_init is not None:
            init = nn.initializers.constant(self.layer_scale_init)
            y *= self.param("gamma", init, (width,), jnp.float32).astype(self.dtype)
        return x + DropPath(self.drop_path_rate)(y, train)


class Stem(nn.Module):
    """Embeds patches of 4x4 pixels."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = BiasedConv(self.width, 4, 4, padding=0, dtype=self.dtype, name="0")(x)
        return LayerNorm(dtype=self.dtype, name="1")(x)


class Downsample(nn.Module):
    """Merges squares of 2x2 positions."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = LayerNorm(dtype=self.dtype, name="0")(x)
        return BiasedConv(self.width, 2, 2, padding=0, dtype=self.dtype, name="1")(x)


class Blocks(nn.Module):
    """Blocks in sequence, by number."""

    block: Any
    drop_path_rates: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_path_rates):
            x = capture(self, self.block(rate, name=str(i))(x, train), str(i))
        return x


class Stage(nn.Module):
    """Blocks of one width; all stages but the first halve the resolution before."""

    width: int
    block: Any
    drop_path_rates: tuple[float, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if x.shape[-1] != self.width:
            x = Downsample(self.width, self.dtype, name="downsample")(x)
        return Blocks(self.block, self.drop_path_rates, name="blocks")(x, train)


class Stages(nn.Module):
    """The stages, by number; gives the result of each."""

    widths: tuple[int, ...]
    block: Any
    drop_path_rates: tuple[tuple[float, ...], ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        maps = []
        for i, (width, rates) in enumerate(zip(self.widths, self.drop_path_rates, strict=True)):
            x = capture(self, Stage(width, self.block, rates, self.dtype, name=str(i))(x, train), str(i))
            maps.append(x)
        return maps


class Head(nn.Module):
    """The norm of the pooled features and the classifier, both in float32."""

    num_classes: int
    drop_rate: float

    def setup(self) -> None:
        self.norm = LayerNorm(dtype=jnp.float32)
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.fc = Classifier(self.num_classes, kernel_init=transformer_init)

    def pool(self, x: jax.Array) -> jax.Array:
        return self.norm(global_mean(x))

    def classify(self, features: jax.Array, train: bool) -> jax.Array:
        return self.fc(self.dropout(features, deterministic=not train))


class ConvNeXt(ImageModel, kw_only=True):
    """A ConvNeXt, or a ConvNeXt V2.

    Attributes:
        depths: blocks in each of the four stages.
        widths: their features.
        layer_scale_init: start of the factors of residual branches (Touvron et al. 2021, arXiv:2103.17239); None: there
            are none.
        response_norm: global response normalization within MLPs, of V2.
        conv_mlp: keep the weights of MLPs as those of 1x1 convolutions, as the published ones of small models are.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
    """

    map_norm_epsilon: ClassVar[float | None] = 1e-6

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    layer_scale_init: float | None = 1e-6
    response_norm: bool = False
    conv_mlp: bool = False
    remat: bool | str = False

    def setup(self) -> None:
        self.stem = Stem(self.widths[0], self.dtype)
        block = functools.partial(
            maybe_remat(Block, self.remat),
            layer_scale_init=self.layer_scale_init,
            conv_mlp=self.conv_mlp,
            response_norm=self.response_norm,
            dtype=self.dtype,
        )
        rates = tuple(map(tuple, drop_path_rates(self.drop_path_rate, self.depths)))
        self.stages = Stages(self.widths, block, rates, self.dtype)
        self.head = Head(self.num_classes, self.drop_rate)

    @property
    def gradcam_layer(self) -> str:
        return f"stages/{len(self.depths) - 1}"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        maps = self.stages(capture(self, self.stem(self.prepare(images)), "stem"), train)
        return {4 * 2**i: x for i, x in enumerate(maps)}

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        maps = self.feature_maps(images, train=train)
        return self.head.pool(maps[max(maps)])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.head.classify(features, train)


_TORCHVISION_LAYERS = {"conv_dw": "block.0", "norm": "block.2", "mlp.fc1": "block.3", "mlp.fc2": "block.5"}


def _torchvision(name: str, shape: Shape) -> tuple[str, Shape]:
    name = name.replace("stem.", "features.0.").replace("head.norm.", "classifier.0.")
    name = name.replace("head.fc.", "classifier.2.")
    if inside := re.fullmatch(r"stages\.(\d)\.(downsample|blocks)\.(\d+)\.(.+)", name):
        stage, kind, number, rest = inside.groups()
        if kind == "downsample":
            return f"features.{2 * int(stage)}.{number}.{rest}", shape
        name = f"features.{2 * int(stage) + 1}.{number}"
        if rest == "gamma":
            return f"{name}.layer_scale", (*shape, 1, 1)
        layer, _, leaf = rest.rpartition(".")
        name = f"{name}.{_TORCHVISION_LAYERS[layer]}.{leaf}"
    return name, shape


_AUTHORS_LAYERS = {"conv_dw": "dwconv", "norm": "norm", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2", "mlp.grn": "grn"}


def _authors(name: str, shape: Shape) -> tuple[str, Shape]:
    """From timm's names to those of facebookresearch's ConvNeXt and ConvNeXt-V2."""
    match name.split("."):
        case ["stem", number, leaf]:
            return f"downsample_layers.0.{number}.{leaf}", shape
        case ["stages", stage, "downsample", number, leaf]:
            return f"downsample_layers.{stage}.{number}.{leaf}", shape
        case ["stages", stage, "blocks", number, "gamma"]:
            return f"stages.{stage}.{number}.gamma", shape
        case ["stages", stage, "blocks", number, *modules, leaf]:
            layer = _AUTHORS_LAYERS[".".join(modules)]
            if layer == "grn":
                return f"stages.{stage}.{number}.grn.{'gamma' if leaf == 'weight' else 'beta'}", (1, 1, 1, *shape)
            # Theirs are dense layers where timm's small models have 1x1 convolutions.
            dense = layer.startswith("pwconv") and leaf == "weight"
            return f"stages.{stage}.{number}.{layer}.{leaf}", shape[:2] if dense else shape
        case ["head", module, leaf]:
            return f"{'head' if module == 'fc' else module}.{leaf}", shape
    return name, shape


# blocks of the stages, features of the first one (each of the others has twice as many)
_SIZES = {
    "atto": ((2, 2, 6, 2), 40),
    "femto": ((2, 2, 6, 2), 48),
    "pico": ((2, 2, 6, 2), 64),
    "nano": ((2, 2, 8, 2), 80),
    "tiny": ((3, 3, 9, 3), 96),
    "small": ((3, 3, 27, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
    "xlarge": ((3, 3, 27, 3), 256),
    "huge": ((3, 3, 27, 3), 352),
}
VARIANTS: dict[str, InputSpec] = {
    "convnext_atto": InputSpec(),
    "convnext_femto": InputSpec(),
    "convnext_pico": InputSpec(),
    "convnext_nano": InputSpec(crop_pct=0.95),
    "convnext_tiny": InputSpec(crop_pct=0.95),
    "convnext_small": InputSpec(crop_pct=0.95),
    "convnext_base": InputSpec(),
    "convnext_large": InputSpec(),
    "convnext_xlarge": InputSpec(),
    "convnextv2_atto": InputSpec(),
    "convnextv2_femto": InputSpec(),
    "convnextv2_pico": InputSpec(),
    "convnextv2_nano": InputSpec(),
    "convnextv2_tiny": InputSpec(),
    "convnextv2_small": InputSpec(),
    "convnextv2_base": InputSpec(),
    "convnextv2_large": InputSpec(),
    "convnextv2_huge": InputSpec(384, crop_pct=1.0),
}
for _name, _input in VARIANTS.items():
    _family, _, _size = _name.partition("_")
    _depths, _width = _SIZES[_size]
    _second = _family == "convnextv2"
    registry.register(
        _name,
        functools.partial(
            ConvNeXt,
            depths=_depths,
            widths=tuple(_width * 2**i for i in range(4)),
            layer_scale_init=None if _second else 1e-6,
            response_norm=_second,
            conv_mlp=_size in ("atto", "femto", "pico", "nano"),
        ),
        _input,
        torchvision=None if _second or _size not in ("tiny", "small", "base", "large") else _torchvision,
        authors=_authors,
    )
