"""CLIP (Radford et al. 2021, arXiv:2103.00020) and SigLIP (Zhai et al. 2023, arXiv:2303.15343): images and words.

A tower for images and one for texts give embeddings of one length; how well an image and a text fit together is the
cosine of theirs, scaled. Modules carry timm's names as far as timm has them, so that the towers' trees are named alike;
`vision_jax.pretrained.clip` reads the names of OpenAI, open_clip, Hugging Face and big_vision.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError, suggest
from vision_jax.models.layers import ACTIVATIONS, Classifier, ImageModel, capture, maybe_remat, transformer_init
from vision_jax.models.transformer import Mlp, PatchEmbed, attend
from vision_jax.models.vit import Block, Blocks

CLIP_EPSILON, SIGLIP_EPSILON = 1e-5, 1e-6  # of the layer norms
MAX_LOG_SCALE = math.log(100)  # CLIP's training keeps the scale below 100

_positions_init = nn.initializers.normal(0.01)


def unit(x: jax.Array) -> jax.Array:
    """Returns vectors, (..., features), with the length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def class_weights(embeddings: jax.Array) -> jax.Array:
    """Returns the weights of classes: normalized embeddings, averaged over the sentences, and normalized again.

    Args:
        embeddings: (classes, templates, features), of any length.

    Returns:
        (features, classes) float32.
    """
    return unit(unit(embeddings).mean(1)).T


@dataclasses.dataclass(frozen=True)
class Transformer:
    """What both towers are made of: blocks on (batch, tokens, width), and norms.

    Attributes:
        depth: number of blocks.
        num_heads: of each attention.
        mlp_features: within each MLP.
        activation: of the MLPs; one of `layers.ACTIVATIONS`.
        epsilon: of the norms.
        remat: rematerialize the activations within blocks, to save memory; see `maybe_remat`.
        dtype: what it computes in.
    """

    depth: int
    num_heads: int
    mlp_features: int
    activation: str
    epsilon: float
    remat: bool | str = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation is {self.activation!r}: {suggest(self.activation, ACTIVATIONS)}")

    def blocks(self) -> Blocks:
        """Returns new blocks."""
        block = functools.partial(
            maybe_remat(Block, self.remat),
            num_heads=self.num_heads,
            mlp_features=self.mlp_features,
            layer_scale=None,
            proj_drop_rate=0.0,
            dtype=self.dtype,
            epsilon=self.epsilon,
            activation=self.activation,
        )
        return Blocks(block, (0.0,) * self.depth, recompute_attention=not self.remat)

    def norm(self) -> nn.LayerNorm:
        """Returns a new norm."""
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, use_fast_variance=False)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens, and an MLP follows (Lee et al. 2019, arXiv:1810.00825).

    Attributes:
        num_heads: of the attention.
        mlp_features: within the MLP.
        activation: of the MLP.
        epsilon: of the norm before it.
        dtype: what it computes in.
    """

    num_heads: int
    mlp_features: int
    activation: str
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns (batch, features) of (batch, tokens, features)."""
        batch, tokens, features = x.shape
        heads = (self.num_heads, features // self.num_heads)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=transformer_init)
        latent = self.param("latent", transformer_init, (1, 1, features), jnp.float32)
        query = dense(features, name="q")(latent.astype(self.dtype)).reshape(1, 1, *heads)
        key, value = jnp.moveaxis(dense(2 * features, name="kv")(x).reshape(batch, tokens, 2, *heads), 2, 0)
        pooled = attend(self, jnp.broadcast_to(query, (batch, 1, *heads)), key, value).reshape(batch, 1, features)
        pooled = dense(features, name="proj")(pooled)
        norm = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, use_fast_variance=False, name="norm")
        mlp = Mlp(self.mlp_features, self.dtype, activation=self.activation, name="mlp")
        return (pooled + mlp(norm(pooled), train))[:, 0]


class ImageTower(nn.Module):
    """The vision transformers of CLIP and SigLIP.

    Attributes:
        img_size: height and width of the images.
        patch_size: height and width of a patch.
        width: features of a token.
        transformer: the blocks.
        embed_dim: length of the embedding.
        pool: "token": CLIP's, of a class token, with a norm before the first block, and a projection behind the last
            norm; "map": SigLIP's, by attention, without a projection: `embed_dim` is then `width`.
        in_channels: of the images.
        dtype: what it computes in.
    """

    img_size: int
    patch_size: int
    width: int
    transformer: Transformer
    embed_dim: int
    pool: str = "token"
    in_channels: int = 3
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.pool not in ("token", "map"):
            raise ConfigError(f"pool is {self.pool!r}: there are token and map.")
        if self.pool == "map" and self.embed_dim != self.width:
            raise ConfigError(f"embed_dim is {self.embed_dim}, and pooling by attention gives the width, {self.width}.")
        super().__post_init__()

    def setup(self) -> None:
        parts = self.transformer
        has_token = self.pool == "token"
        self.patch_embed = PatchEmbed(self.patch_size, self.width, self.dtype, use_bias=not has_token)
        tokens = int(has_token) + (self.img_size // self.patch_size) ** 2
        self.pos_embed = self.param("pos_embed", _positions_init, (1, tokens, self.width), jnp.float32)
        self.blocks, self.norm = parts.blocks(), parts.norm()
        if has_token:
            self.cls_token = self.param("cls_token", transformer_init, (1, 1, self.width), jnp.float32)
            self.norm_pre = parts.norm()
            self.head = Classifier(self.embed_dim, use_bias=False, kernel_init=nn.initializers.normal(self.width**-0.5))
        else:
            options = parts.mlp_features, parts.activation, parts.epsilon, self.dtype
            self.attn_pool = AttentionPool(parts.num_heads, *options)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the embeddings, (batch, embed_dim) float32, of images, (batch, height, width, channels)."""
        if images.shape[1:] != (self.img_size, self.img_size, self.in_channels):
            raise ValueError(
                f"the images have the shape {images.shape}, and the model takes (batch, {self.img_size}, "
                f"{self.img_size}, {self.in_channels})"
            )
        side = self.img_size // self.patch_size * self.patch_size  # what is left over at the edge is not seen
        x = self.patch_embed(images[:, :side, :side].astype(self.dtype)).reshape(images.shape[0], -1, self.width)
        if self.pool == "token":
            token = jnp.broadcast_to(self.cls_token.astype(self.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)
        x = x + self.pos_embed.astype(self.dtype)
        if self.pool == "map":
            x = self.norm(self.blocks(x, train))
            return capture(self, self.attn_pool(x, train).astype(jnp.float32), "features")
        x = self.blocks(self.norm_pre(x), train)[:, 0]
        return self.head(capture(self, self.norm(x), "features").astype(jnp.float32))


class TextTower(nn.Module):
    """The transformers of CLIP and SigLIP for texts.

    Attributes:
        vocab_size: number of different tokens.
        context_length: tokens of a text, with those that fill it up.
        width: features of a token.
        transformer: the blocks.
        embed_dim: length of the embedding.
        causal: tokens see those before them alone, as in CLIP.
        pool: of which token the embedding is: "argmax": of the one with the largest number, CLIP's end of the text, or
            the first of several; "last": of the last one.
        head_bias: the projection has a bias, as SigLIP's.
        dtype: what it computes in.
    """

    vocab_size: int
    context_length: int
    width: int
    transformer: Transformer
    embed_dim: int
    causal: bool = True
    pool: str = "argmax"
    head_bias: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.pool not in ("argmax", "last"):
            raise ConfigError(f"pool is {self.pool!r}: there are argmax and last.")
        super().__post_init__()

    def setup(self) -> None:
        options: Any = {"dtype": self.dtype, "embedding_init": transformer_init}
        self.token_embedding = nn.Embed(self.vocab_size, self.width, **options)
        self.pos_embed = self.param("pos_embed", _positions_init, (1, self.context_length, self.width), jnp.float32)
        self.blocks, self.norm = self.transformer.blocks(), self.transformer.norm()
        kernel_init = nn.initializers.normal(self.width**-0.5)
        self.head = Classifier(self.embed_dim, use_bias=self.head_bias, kernel_init=kernel_init)

    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Returns the embeddings, (batch, embed_dim) float32, of tokens, (batch, context_length) integers."""
        length = self.context_length
        if tokens.shape[1:] != (length,):
            raise ValueError(f"the tokens have the shape {tokens.shape}, and the model takes (batch, {length})")
        x = self.token_embedding(tokens) + self.pos_embed.astype(self.dtype)
        hidden = jnp.where(jnp.tril(jnp.ones((length, length), bool)), 0.0, -jnp.inf)[None, None]
        x = self.blocks(x, train, hidden if self.causal else None)
        if self.pool == "last":
            x = x[:, -1]
        else:
            # A product with ones and zeros, which is exact, in place of fetching tokens one by one.
            chosen = jax.nn.one_hot(jnp.argmax(tokens, axis=-1), length, dtype=x.dtype)
            x = jnp.einsum("btf,bt->bf", x, chosen, precision="highest")
        return self.head(capture(self, self.norm(x), "features").astype(jnp.float32))


class Projected(nn.Module):
    """Any model for images as a tower: its features, and a projection.

    Attributes:
        backbone: one of `vision_jax.create_model`, whose classifier does not matter.
        embed_dim: length of the embedding.
        img_size: height and width of the images.
    """

    backbone: ImageModel
    embed_dim: int
    img_size: int

    @property
    def in_channels(self) -> int:
        return self.backbone.in_channels

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the embeddings, (batch, embed_dim) float32, of images, (batch, height, width, channels)."""
        features = self.backbone.features(images, train=train)
        init = nn.initializers.normal(features.shape[-1] ** -0.5)
        return Classifier(self.embed_dim, use_bias=False, kernel_init=init, name="head")(features)


class Clip(nn.Module):
    """Both towers, and how cosines become logits.

    Attributes:
        visual: the tower for images; called as `visual(images, train=...)`, as all models here are, with the
            embeddings for its result.
        text: the tower for texts.
        initial_scale: of the cosines.
        initial_bias: of the logits; None: they have none, as CLIP's.
    """

    visual: nn.Module
    text: TextTower
    initial_scale: float = 1 / 0.07
    initial_bias: float | None = None

    def setup(self) -> None:
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(self.initial_scale)), ())
        if self.initial_bias is not None:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(self.initial_bias), ())

    @property
    def in_channels(self) -> int:
        return self.visual.in_channels

    @property
    def img_size(self) -> int:
        return self.visual.img_size

    def encode_images(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the embeddings of images, (batch, features) float32, whose lengths are not 1."""
        return self.visual(images, train=train)

    def encode_texts(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Returns the embeddings of tokens, (batch, features) float32, whose lengths are not 1."""
        return self.text(tokens, train=train)

    def encode(self, images: jax.Array, tokens: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the embeddings of images and of tokens."""
        return self.encode_images(images, train=train), self.encode_texts(tokens, train=train)

    def log_scale_and_bias(self) -> tuple[jax.Array, jax.Array]:
        """Returns the logarithm of the scale, and the bias: 0 where there is none."""
        return self.logit_scale, jnp.float32(0) if self.initial_bias is None else self.logit_bias

    def logits_of_classes(self, images: jax.Array, weights: jax.Array) -> jax.Array:
        """Returns the logits, (images, classes) float32, of embeddings and of weights, (features, classes).

        The lengths of embeddings do not matter, those of weights do: they are 1.
        """
        log_scale, bias = self.log_scale_and_bias()
        return jnp.exp(log_scale) * jnp.matmul(unit(images), weights, precision="highest") + bias

    def __call__(self, images: jax.Array, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits of all pairs of images and texts, (images, texts) float32."""
        features, texts = self.encode(images, tokens, train=train)
        return self.logits_of_classes(features, unit(texts).T)
