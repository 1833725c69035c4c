"""Image models of MLPs alone: MLP-Mixer (Tolstikhin et al. 2021, arXiv:2105.01601) and ResMLP.

The tree of variables carries timm's names. Layers that mix positions have a weight for each pair of them, so that a
model and its weights belong to one image size: nothing here can be interpolated.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models import registry
from vision_jax.models.layers import (
    Classifier,
    DropPath,
    ImageModel,
    capture,
    drop_path_rates,
    global_mean,
    maybe_remat,
)
from vision_jax.models.registry import HALVES, InputSpec, Tensors
from vision_jax.models.transformer import Mlp, PatchEmbed

_LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)
_Mlp = functools.partial(Mlp, kernel_init=nn.initializers.xavier_uniform(), bias_init=nn.initializers.normal(1e-6))


class MixerBlock(nn.Module):
    """An MLP across positions, the same for all features, and one across features, the same for all positions.

    Attributes:
        dtype: what it computes in.
        drop_path_rate: probability of dropping either branch.
    """

    dtype: Any
    drop_path_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: (batch, positions, features)."""
        features = x.shape[-1]
        y = capture(self, _LayerNorm(dtype=self.dtype, name="norm1")(x), "norm1").swapaxes(1, 2)
        y = _Mlp(features // 2, dtype=self.dtype, name="mlp_tokens")(y, train).swapaxes(1, 2)
        x = x + DropPath(self.drop_path_rate)(y, train)
        y = capture(self, _LayerNorm(dtype=self.dtype, name="norm2")(x), "norm2")
        y = _Mlp(4 * features, dtype=self.dtype, name="mlp_channels")(y, train)
        return x + DropPath(self.drop_path_rate)(y, train)


class Affine(nn.Module):
    """A scale and an offset for each feature, in the place of a norm."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        alpha = self.param("alpha", nn.initializers.ones, (1, 1, x.shape[-1]), jnp.float32)
        beta = self.param("beta", nn.initializers.zeros, (1, 1, x.shape[-1]), jnp.float32)
        return x.astype(self.dtype) * alpha.astype(self.dtype) + beta.astype(self.dtype)


class ResBlock(nn.Module):
    """A linear layer across positions and an MLP across features, each behind an affine layer and scaled.

    Attributes:
        layer_scale: initial value of the scales of both branches.
        dtype: what it computes in.
        drop_path_rate: probability of dropping either branch.
    """

    layer_scale: float
    dtype: Any
    drop_path_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: (batch, positions, features)."""
        features = x.shape[-1]

        def scale(name: str) -> jax.Array:
            initial = nn.initializers.constant(self.layer_scale)
            return self.param(name, initial, (features,), jnp.float32).astype(self.dtype)

        y = capture(self, Affine(self.dtype, name="norm1")(x), "norm1").swapaxes(1, 2)
        xavier = nn.initializers.xavier_uniform()
        y = nn.Dense(y.shape[-1], dtype=self.dtype, kernel_init=xavier, name="linear_tokens")(y).swapaxes(1, 2)
        x = x + DropPath(self.drop_path_rate)(scale("ls1") * y, train)
        y = capture(self, Affine(self.dtype, name="norm2")(x), "norm2")
        y = _Mlp(4 * features, dtype=self.dtype, name="mlp_channels")(y, train)
        return x + DropPath(self.drop_path_rate)(scale("ls2") * y, train)


class Blocks(nn.Module):
    """Blocks of one kind, named by their numbers."""

    block: Callable[..., nn.Module]
    drop_path_rates: tuple[float, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, rate in enumerate(self.drop_path_rates):
            x = capture(self, self.block(drop_path_rate=rate, name=str(i))(x, train), str(i))
        return x


class MlpMixer(ImageModel, kw_only=True):
    """An MLP-Mixer.

    Attributes:
        patch_size: height and width of the patches that are the positions.
        embed_dim: features.
        depth: number of blocks.
        img_size: height and width of the images, which the parameters depend on.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
        head_bias: where the biases of the classifier begin.
    """

    patch_size: int
    embed_dim: int
    depth: int
    img_size: int = 224
    remat: bool | str = False
    head_bias: float = 0.0

    def setup(self) -> None:
        lecun = nn.initializers.lecun_normal()
        self.stem = PatchEmbed(self.patch_size, self.embed_dim, self.dtype, kernel_init=lecun)
        (rates,) = drop_path_rates(self.drop_path_rate, [self.depth])
        self.blocks = Blocks(self._block(), tuple(rates))
        self.norm = self._norm()
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            zeros, bias_init = nn.initializers.zeros, nn.initializers.constant(self.head_bias)
            self.head = Classifier(self.num_classes, kernel_init=zeros, bias_init=bias_init)

    def _block(self) -> Callable[..., nn.Module]:
        return functools.partial(maybe_remat(MixerBlock, self.remat), dtype=self.dtype)

    def _norm(self) -> nn.Module:
        return _LayerNorm(dtype=self.dtype)

    @property
    def gradcam_layer(self) -> str:
        return "norm"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        if images.shape[1:3] != (self.img_size, self.img_size):
            raise ValueError(
                f"the images have the shape {images.shape}, and the model is made for {self.img_size} x "
                f"{self.img_size} pixels: set img_size"
            )
        x = self.stem(self.prepare(images))
        tokens = capture(self, x.reshape(x.shape[0], -1, self.embed_dim), "stem")
        tokens = self.blocks(tokens, train)
        return {self.patch_size: tokens.reshape(x.shape)}

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return global_mean(capture(self, self.norm(self.feature_maps(images, train=train)[self.patch_size]), "norm"))

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.head(self.dropout(features, deterministic=not train))


class ResMLP(MlpMixer, kw_only=True):
    """A ResMLP (Touvron et al. 2021, arXiv:2105.03404).

    Attributes:
        layer_scale: initial value of the scales of branches, the smaller the deeper the model.
    """

    layer_scale: float

    def _block(self) -> Callable[..., nn.Module]:
        return functools.partial(maybe_remat(ResBlock, self.remat), layer_scale=self.layer_scale, dtype=self.dtype)

    def _norm(self) -> nn.Module:
        return Affine(self.dtype)


# Parts of names, and their counterparts in timm; the rest is called the same, or MixerBlock_ and a number.
_BIG_VISION = {
    "stem": "stem.proj",
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
    "token_mixing": "mlp_tokens",
    "channel_mixing": "mlp_channels",
    "Dense_0": "fc1",
    "Dense_1": "fc2",
    "pre_head_layer_norm": "norm",
    "kernel": "weight",
    "scale": "weight",
}


def from_big_vision(arrays: Tensors) -> dict[str, np.ndarray]:
    """From big_vision's arrays to timm's state dict. Its models have the other GELU, approximated by tanh."""
    state = {}
    for name, value in arrays.items():
        parts = name.removeprefix("params/").replace("MixerBlock_", "blocks/").split("/")
        if parts[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[".".join(_BIG_VISION.get(part, part) for part in parts)] = value
    return state


# patch_size, embed_dim, depth
MIXERS = {
    "mixer_s32_224": (32, 512, 8),
    "mixer_s16_224": (16, 512, 8),
    "mixer_b32_224": (32, 768, 12),
    "mixer_b16_224": (16, 768, 12),
    "mixer_l32_224": (32, 1024, 24),
    "mixer_l16_224": (16, 1024, 24),
}
for _name, (_patch, _dim, _depth) in MIXERS.items():
    registry.register(
        _name,
        functools.partial(MlpMixer, patch_size=_patch, embed_dim=_dim, depth=_depth),
        InputSpec(mean=HALVES, std=HALVES),
        big_vision=from_big_vision,
    )
# patch_size, embed_dim, depth, layer_scale
RESMLPS = {
    "resmlp_12_224": (16, 384, 12, 1e-4),
    "resmlp_24_224": (16, 384, 24, 1e-5),
    "resmlp_36_224": (16, 384, 36, 1e-6),
    "resmlp_big_24_224": (8, 768, 24, 1e-6),
}
for _name, (_patch, _dim, _depth, _scale) in RESMLPS.items():
    registry.register(
        _name, functools.partial(ResMLP, patch_size=_patch, embed_dim=_dim, depth=_depth, layer_scale=_scale)
    )
