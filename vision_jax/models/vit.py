"""Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929), with the options of its descendants.

Registers are those of Darcet et al. 2023 (arXiv:2309.16588); average pooling and fixed positions those of Beyer et al.
2022 (arXiv:2205.01580). Modules carry timm's names, so that the tree of variables is its state dict, path by path.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError
from vision_jax.models import registry
from vision_jax.models.layers import (
    ATTENTION,
    INTERMEDIATES,
    PERTURBATIONS,
    Classifier,
    ImageModel,
    capture,
    drop_path_rates,
    global_mean,
    maybe_remat,
    transformer_init,
)
from vision_jax.models.registry import HALVES, InputSpec
from vision_jax.models.transformer import LayerScale, Mlp, PatchEmbed, QueryKeyValue, attend, interpolate_positions
from vision_jax.models.vit_weights import from_big_vision, resample, to_authors, to_torchvision


class Attention(nn.Module):
    """Self-attention with several heads, on (batch, tokens, features).

    Attributes:
        num_heads: each sees an equal share of the features.
        drop_rate: probability of dropping a unit of the result, in training.
        dtype: what it computes in; the softmax is in float32.
    """

    num_heads: int
    drop_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        batch, tokens, features = x.shape
        qkv = QueryKeyValue(self.num_heads, self.dtype, name="qkv")(x)
        x = attend(self, qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(batch, tokens, features)
        x = nn.Dense(features, dtype=self.dtype, kernel_init=transformer_init, name="proj")(x)
        return nn.Dropout(self.drop_rate)(x, deterministic=not train)


class Block(nn.Module):
    """Attention and an MLP, each with a norm before it and a shortcut around both.

    Attributes:
        num_heads: of the attention.
        mlp_features: within the MLP.
        layer_scale: initial scale of the branches; None: they are not scaled.
        proj_drop_rate: probability of dropping a unit after a dense layer, in training.
        drop_path_rate: probability of dropping a branch, in training.
        dtype: what it computes in.
    """

    num_heads: int
    mlp_features: int
    layer_scale: float | None
    proj_drop_rate: float
    drop_path_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, drop_path_rate: jax.Array | None = None) -> jax.Array:
        """Applies the block to x, (batch, tokens, features); a `drop_path_rate` given here replaces the block's own."""
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype, use_fast_variance=False)

        def scale(y: jax.Array, name: str) -> jax.Array:
            return y if self.layer_scale is None else LayerScale(self.layer_scale, self.dtype, name=name)(y)

        def drop(y: jax.Array) -> jax.Array:
            rate = self.drop_path_rate if drop_path_rate is None else drop_path_rate
            if not train or (drop_path_rate is None and rate == 0):
                return y
            # The rate may be traced, which the ready-made layers do not take.
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (len(y), 1, 1))
            return jnp.where(keep, y / (1 - rate), 0).astype(y.dtype)

        y = capture(self, norm(name="norm1")(x), "norm1")
        y = Attention(self.num_heads, self.proj_drop_rate, self.dtype, name="attn")(y, train)
        x = x + drop(scale(y, "ls1"))
        y = Mlp(self.mlp_features, self.dtype, self.proj_drop_rate, name="mlp")(norm(name="norm2")(x), train)
        return x + drop(scale(y, "ls2"))


class Blocks(nn.Module):
    """Blocks one after another, each with its own rate of dropping branches."""

    block: Any
    drop_path_rates: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_path_rates):
            x = capture(self, self.block(drop_path_rate=rate, name=str(i))(x, train), str(i))
        return x


class VisionTransformer(ImageModel, kw_only=True):
    """A vision transformer.

    Attributes:
        patch_size, embed_dim, depth, num_heads: of the variant.
        mlp_ratio: features within an MLP for each one outside.
        img_size: height and width of the images, which learned positions are for.
        global_pool: the features are "token": the class token; "avg": the average of the patches.
        class_token: there is one; with "avg" it only takes part in attention.
        num_registers: further tokens that only take part in attention.
        positions: "learned" embeddings; "sincos2d": fixed ones, as big_vision computes them, for patches alone.
        no_embed_class: learned positions are for patches alone too.
        interpolate_positions: images may have other sizes than `img_size`: learned positions are then interpolated.
        norm_after_pooling: normalize the pooled features instead of all tokens; None: with "avg".
        layer_scale: initial scale of residual branches; None: they are not scaled.
        drop_path_uniform: all blocks drop branches with the probability `drop_path_rate`, as in DeiT III, instead of
            earlier ones less often.
        proj_drop_rate: probability of dropping a unit after a dense layer in a block, in training.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
        scan_blocks: compile one block instead of all. Parameters are stacked along a first axis.
        head_bias: where the biases of the classifier begin.
    """

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    img_size: int = 224
    global_pool: str = "token"
    class_token: bool = True
    num_registers: int = 0
    positions: str = "learned"
    no_embed_class: bool = False
    interpolate_positions: bool = False
    norm_after_pooling: bool | None = None
    layer_scale: float | None = None
    drop_path_uniform: bool = False
    proj_drop_rate: float = 0.0
    remat: bool | str = False
    scan_blocks: bool = False
    head_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.global_pool not in ("token", "avg"):
            raise ConfigError(f"global_pool is {self.global_pool!r}: there are token and avg.")
        if self.positions not in ("learned", "sincos2d"):
            raise ConfigError(f"positions is {self.positions!r}: there are learned and sincos2d.")
        if self.global_pool == "token" and not self.class_token:
            raise ConfigError("Without class_token, global_pool must be avg.")
        super().__post_init__()

    def tokens(self) -> dict[str, int]:
        """Returns how many tokens there are before the patches, by name, in their order."""
        counts = {"cls_token": int(self.class_token), "reg_token": self.num_registers}
        return {name: count for name, count in counts.items() if count}

    @property
    def gradcam_layer(self) -> str:
        """What the last attention sees: of what comes after it, the class token alone reaches the classifier."""
        return f"blocks/{self.depth - 1}/norm1"

    @property
    def num_prefix_tokens(self) -> int:
        return sum(self.tokens().values())

    def setup(self) -> None:
        self.patch_embed = PatchEmbed(self.patch_size, self.embed_dim, self.dtype)
        for name, count in self.tokens().items():
            init = nn.initializers.normal(1e-6)
            setattr(self, name, self.param(name, init, (1, count, self.embed_dim), jnp.float32))
        if self.positions == "learned":
            length = (self.img_size // self.patch_size) ** 2
            length += 0 if self.no_embed_class else self.num_prefix_tokens
            self.pos_embed = self.param("pos_embed", transformer_init, (1, length, self.embed_dim), jnp.float32)

        block = functools.partial(
            maybe_remat(Block, self.remat),
            num_heads=self.num_heads,
            mlp_features=int(self.embed_dim * self.mlp_ratio),
            layer_scale=self.layer_scale,
            proj_drop_rate=self.proj_drop_rate,
            dtype=self.dtype,
        )
        if self.scan_blocks:
            self.blocks = block(drop_path_rate=0.0)
        else:
            self.blocks = Blocks(block, tuple(self._drop_path_rates()))
        norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, use_fast_variance=False)
        after = self.global_pool == "avg" if self.norm_after_pooling is None else self.norm_after_pooling
        self.norm: nn.Module | None = None if after else norm
        self.fc_norm: nn.Module | None = norm if after else None
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.head = self.make_head()

    def make_head(self) -> nn.Module:
        """Returns a new classifier."""
        bias_init = nn.initializers.constant(self.head_bias)
        return Classifier(self.num_classes, kernel_init=transformer_init, bias_init=bias_init)

    def encode(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns what becomes of the tokens before the patches, and of the patches.

        Returns:
            (batch, tokens, features) and (batch, height / patch_size, width / patch_size, features).
        """
        patches = self.patch_embed(self.prepare(images))
        batch, count = len(patches), self.num_prefix_tokens
        before = [getattr(self, name).astype(self.dtype) for name in self.tokens()]
        before = [jnp.broadcast_to(token, (batch, *token.shape[1:])) for token in before]
        x = capture(self, patches.reshape(batch, -1, self.embed_dim), "patch_embed")
        positions = self._positions(*patches.shape[1:3])
        if positions.shape[1] == x.shape[1]:
            x = jnp.concatenate([*before, x + positions], axis=1)
        else:
            x = jnp.concatenate([*before, x], axis=1) + positions
        x = self._scan(x, train) if self.scan_blocks else self.blocks(x, train)
        if self.norm is not None:
            x = capture(self, self.norm(x), "norm")
        return x[:, :count], x[:, count:].reshape(patches.shape)

    def _drop_path_rates(self) -> list[float]:
        if self.drop_path_uniform:
            return [self.drop_path_rate] * self.depth
        return drop_path_rates(self.drop_path_rate, [self.depth])[0]

    def _positions(self, height: int, width: int) -> jax.Array:
        """Returns embeddings of positions, (1, tokens, features), of the patches alone or of all tokens."""
        if self.positions == "sincos2d":
            return jnp.asarray(sincos2d(height, width, self.embed_dim), self.dtype)
        grid = self.img_size // self.patch_size
        if height == width == grid:
            return self.pos_embed.astype(self.dtype)
        if not self.interpolate_positions:
            raise ValueError(
                f"the images have {height * self.patch_size} x {width * self.patch_size} pixels, and there are "
                f"positions for {self.img_size} x {self.img_size}: set img_size, or interpolate_positions"
            )
        prefix = self.pos_embed.shape[1] - grid**2
        return interpolate_positions(self.pos_embed, prefix, height, width).astype(self.dtype)

    def _scan(self, x: jax.Array, train: bool) -> jax.Array:
        def step(block: nn.Module, x: jax.Array, rate: jax.Array | None) -> tuple[jax.Array, None]:
            return capture(block, block(x, train, rate)), None

        rates = jnp.asarray(self._drop_path_rates()) if self.drop_path_rate else None
        scan = nn.scan(
            step,
            variable_axes=dict.fromkeys(("params", INTERMEDIATES, ATTENTION, PERTURBATIONS), 0),
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )
        return scan(self.blocks, x, rates)[0]

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        return {self.patch_size: self.encode(images, train=train)[1]}

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        before, patches = self.encode(images, train=train)
        x = before[:, 0] if self.global_pool == "token" else global_mean(patches)
        if self.fc_norm is not None:
            x = self.fc_norm(x)
        return x.astype(jnp.float32)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.head(self.dropout(features, deterministic=not train))


def sincos2d(height: int, width: int, features: int) -> np.ndarray:
    """Returns fixed embeddings of positions, (1, height * width, features) float32.

    Sines and cosines of the column, then of the row, with wavelengths from 2 pi to 20000 pi. MoCo v3 (Chen et al. 2021,
    arXiv:2104.02057) began with such ones; these are big_vision's.
    """
    if features % 4 or features < 8:
        raise ConfigError(f"positions sincos2d need features in fours, at least 8; there are {features}.")
    frequencies = 10_000.0 ** -np.linspace(0, 1, features // 4)
    rows, columns = np.indices((height, width)).reshape(2, -1, 1) * frequencies
    parts = [np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)]
    return np.concatenate(parts, axis=1, dtype=np.float32)[None]


# embed_dim, depth, num_heads
SIZES = {
    "wee": (256, 14, 4),
    "tiny": (192, 12, 3),
    "little": (320, 14, 5),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "mediumd": (512, 20, 8),
    "betwixt": (640, 12, 10),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
    "gigantic": (1664, 48, 16),
}


def register_variant(
    name: str,
    create: Callable[..., VisionTransformer],
    size: str,
    patch_size: int,
    input: InputSpec,
    options: dict[str, Any] | None = None,
    **naming: Any,
) -> None:
    """Registers a variant; `options` are the module's, `naming` that of the registry."""
    embed_dim, depth, num_heads = SIZES[size]
    shape = {"patch_size": patch_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    create = functools.partial(create, img_size=input.size, **shape, **(options or {}))
    registry.register(name, create, input, resample=resample, authors=to_authors, **naming)


# size, patch_size, image sizes; without class token: registers
VARIANTS: tuple[tuple[str, int, tuple[int, ...], int], ...] = (
    ("tiny", 16, (224, 384), 0),
    ("small", 32, (224, 384), 0),
    ("small", 16, (224, 384), 0),
    ("small", 8, (224,), 0),
    ("base", 32, (224, 384), 0),
    ("base", 16, (224, 384), 0),
    ("base", 8, (224,), 0),
    ("large", 32, (224, 384), 0),
    ("large", 16, (224, 384), 0),
    ("large", 14, (224,), 0),
    ("huge", 14, (224,), 0),
    ("giant", 14, (224,), 0),
    ("gigantic", 14, (224,), 0),
    ("wee", 16, (256,), 1),
    ("little", 16, (256,), 1),
    ("little", 16, (256,), 4),
    ("medium", 16, (256,), 1),
    ("medium", 16, (256,), 4),
    ("mediumd", 16, (256, 384), 4),
    ("betwixt", 16, (256,), 1),
    ("betwixt", 16, (256, 384), 4),
    ("base", 16, (256,), 4),
)
MLP_RATIOS = {"giant": 48 / 11, "gigantic": 64 / 13, "wee": 5.0, "little": 5.6}
CROPS = {224: 0.9, 256: 0.95, 384: 1.0}
INPUTS = {
    "vit_small_patch8_224": InputSpec(crop_pct=0.9),
    "vit_base_patch16_reg4_gap_256": InputSpec(256, HALVES, HALVES, crop_pct=0.9),
}
TORCHVISION = {
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
    "vit_large_patch32_224": "vit_l_32",
    "vit_huge_patch14_224": "vit_h_14",
}
for _size, _patch_size, _img_sizes, _registers in VARIANTS:
    _options: dict[str, Any] = {"mlp_ratio": MLP_RATIOS.get(_size, 4.0)}
    if _registers:
        _options |= {"class_token": False, "num_registers": _registers, "no_embed_class": True, "global_pool": "avg"}
        _options["layer_scale"] = None if _size == "base" else 1e-5
    for _img_size in _img_sizes:
        _name = f"vit_{_size}_patch{_patch_size}_" + (f"reg{_registers}_gap_" if _registers else "") + str(_img_size)
        _input = INPUTS.get(_name, InputSpec(_img_size, HALVES, HALVES, crop_pct=CROPS[_img_size]))
        register_variant(
            _name,
            VisionTransformer,
            _size,
            _patch_size,
            _input,
            _options,
            big_vision=from_big_vision,
            torchvision=to_torchvision if _name in TORCHVISION else None,
            aliases={TORCHVISION[_name]: InputSpec(interpolation="bilinear")} if _name in TORCHVISION else (),
        )
