"""Masked autoencoders, MAE (He et al. 2021, arXiv:2111.06377; facebookresearch/mae): reconstruct what was removed."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError
from vision_jax.models.layers import maybe_remat, xavier_init
from vision_jax.models.positions import positions_init
from vision_jax.models.transformer import permute_tokens, to_patches
from vision_jax.models.vit import Block, Blocks, VisionTransformer
from vision_jax.objectives.base import Out, Progress, Variables, Views
from vision_jax.objectives.masked import MaskedObjective, reconstruction_out
from vision_jax.pretrained import OfficialNames


def patch_targets(images: jax.Array, patch_size: int, *, normalize: bool) -> jax.Array:
    """Returns what is predicted of each patch, (batch, patches, pixels * channels) float32, channels last.

    Args:
        images: (batch, height, width, channels), normalized.
        patch_size: height and width of a patch.
        normalize: subtract the mean of each patch, and divide by the square root of its unbiased variance + 1e-6.
    """
    patches = to_patches(images.astype(jnp.float32), patch_size)
    patches = patches.reshape(len(images), patches.shape[1] * patches.shape[2], -1)
    if not normalize:
        return patches
    return (patches - patches.mean(-1, keepdims=True)) / jnp.sqrt(patches.var(-1, keepdims=True, ddof=1) + 1e-6)


def reconstruction_loss(predictions: jax.Array, targets: jax.Array, removed: jax.Array) -> jax.Array:
    """Returns the mean squared error of each patch, summed over those that were removed, (batch,) float32.

    Args:
        predictions, targets: (batch, patches, pixels * channels).
        removed: (batch, patches), 1 for patches that were removed, else 0.
    """
    return (jnp.square(predictions - targets).mean(-1) * removed).sum(1)


class Decoder(nn.Module):
    """The decoder, which sees the encoded patches and, in place of those that were removed, a token.

    Attributes:
        patch_size, channels: of the images.
        width, depth, num_heads: of the transformer.
        dtype: what it computes in.
        remat: see `layers.maybe_remat`.
    """

    patch_size: int
    channels: int
    width: int
    depth: int
    num_heads: int
    dtype: Any = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(self, before: jax.Array, kept: jax.Array, order: jax.Array, *, train: bool) -> jax.Array:
        """Returns predictions for all patches, (batch, patches, pixels * channels) float32.

        Args:
            before: (batch, tokens, features), a class token and the like, encoded.
            kept: (batch, kept, features), encoded patches.
            order: (batch, patches) int32, the numbers of the patches that are kept and, behind them, of those that
                were removed.
            train: for dropout, of which there is none.
        """
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=xavier_init)
        tokens, patches = before.shape[1], order.shape[1]
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width), jnp.float32)
        init = positions_init("mae", round(patches**0.5))
        positions = self.param("pos_embed", init, (1, tokens + patches, self.width), jnp.float32)

        x = dense(self.width, name="embed")(jnp.concatenate([before, kept], axis=1))
        removed = jnp.broadcast_to(token.astype(self.dtype), (len(x), patches - kept.shape[1], self.width))
        whole = permute_tokens(jnp.concatenate([x[:, tokens:], removed], axis=1), jnp.argsort(order, axis=1), order)
        x = jnp.concatenate([x[:, :tokens], whole], axis=1) + positions.astype(self.dtype)
        block = functools.partial(
            maybe_remat(Block, self.remat),
            num_heads=self.num_heads,
            mlp_features=4 * self.width,
            layer_scale=None,
            proj_drop_rate=0.0,
            dtype=self.dtype,
            kernel_init=xavier_init,
        )
        x = Blocks(block, (0.0,) * self.depth, name="blocks")(x, train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, use_fast_variance=False, name="norm")(x[:, tokens:])
        return dense(self.patch_size**2 * self.channels, name="pred")(x).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAE(MaskedObjective):
    """A masked autoencoder: the backbone, a vision transformer, encodes a quarter of the patches, and sees no others.

    The published positions are `model.positions=mae`, and fixed: freeze pos_embed, which the decoder has too. The
    weights begin as published, whatever the model's own `weight_init`.

    Attributes:
        mask_ratio: share of the patches that is removed.
        normalize_pixels: the targets are normalized within each patch, which gives the better features.
        decoder_width, decoder_depth, decoder_heads: of the decoder's transformer.
    """

    mask_ratio: float = 0.75
    normalize_pixels: bool = True
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    def __post_init__(self) -> None:
        model, size = self.setup.model, self.setup.image_shape[0]
        if not isinstance(model, VisionTransformer):
            raise ConfigError(
                f"The objective mae removes patches of vision transformers, not of {type(model).__name__}."
            )
        if not model.norms_all_tokens:
            raise ConfigError("The objective mae normalizes all tokens: leave model.global_pool at token.")
        if model.positions == "relative":
            raise ConfigError(
                "The objective mae encodes some patches alone, without a bias of each pair: set other "
                "model.positions than relative, such as mae."
            )
        if size % model.patch_size:
            raise ConfigError(f"data.image_size is {size}, which patches of {model.patch_size} pixels do not divide.")
        if not 0 < self.kept < self.cells:
            raise ConfigError(
                f"objective.mask_ratio is {self.mask_ratio}: of {self.cells} patches it keeps {self.kept}, and there "
                "must be some to keep and some to reconstruct."
            )
        for option in ("decoder_width", "decoder_depth", "decoder_heads"):
            if getattr(self, option) < 1:
                raise ConfigError(f"objective.{option} is {getattr(self, option)}, which must be positive.")
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise ConfigError(
                f"objective.decoder_width is {self.decoder_width}: it must be a multiple of objective.decoder_heads="
                f"{self.decoder_heads}, and of 4."
            )

    @property
    def cells(self) -> int:
        return (self.setup.image_shape[0] // self._model.patch_size) ** 2

    @property
    def kept(self) -> int:
        """How many patches of an image are encoded."""
        return int(self.cells * (1 - self.mask_ratio))

    @property
    def decoder(self) -> Decoder:
        return Decoder(
            patch_size=self._model.patch_size,
            channels=self.setup.image_shape[2],
            width=self.decoder_width,
            depth=self.decoder_depth,
            num_heads=self.decoder_heads,
            dtype=self._model.dtype,
            remat=self._model.remat,
        )

    @property
    def initial_model(self) -> nn.Module:
        return self._model.clone(weight_init="xavier")

    @property
    def _model(self) -> VisionTransformer:
        model: Any = self.setup.model
        return model

    def decoder_inputs(self) -> tuple[Any, ...]:
        tokens, features = self._model.num_prefix_tokens, self._model.embed_dim
        before, kept = jnp.zeros((1, tokens, features)), jnp.zeros((1, self.kept, features))
        return before, kept, jnp.arange(self.cells)[None]

    @property
    def official(self) -> OfficialNames:
        return OfficialNames({"decoder.mask_token": "mask_token", "decoder.": "decoder_"})

    def reconstruct(
        self, variables: Variables, images: jax.Array, order: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Encodes the first patches of each image in a given order, and predicts all of them.

        Args:
            variables: `params`.
            images: (batch, height, width, channels), normalized.
            order: (batch, patches) int32, the numbers of the patches of each image; the first ones are kept.
            key: of dropout.
            train: apply dropout.

        Returns:
            predictions, (batch, patches, pixels * channels) float32, in the order of the image; which patches were
            removed, (batch, patches) float32; and collections that were updated.
        """
        rngs = {"dropout": key}
        (before, kept), updates = self._model.apply(
            variables,
            images,
            train=train,
            kept=order[:, : self.kept],
            method="encode",
            mutable=["batch_stats"] if train else [],
            rngs=rngs,
        )
        head = {"params": variables["params"]["decoder"]}
        predictions: Any = self.decoder.apply(head, before, kept, order, train=train, rngs=rngs)
        removed = (jnp.argsort(order, axis=1) >= self.kept).astype(jnp.float32)
        return predictions, removed, updates

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del targets, progress
        images = views["image"]
        predictions, removed, updates = self.reconstruct(variables, images, views["order"], key, train=train)
        goals = patch_targets(images, self._model.patch_size, normalize=self.normalize_pixels)
        errors = reconstruction_loss(predictions, goals, removed)
        squares = reconstruction_loss(jnp.zeros_like(goals), goals, removed)
        mask = None if train else views["mask"]
        return reconstruction_out(errors, (errors, squares), removed.sum(1), mask, updates)
