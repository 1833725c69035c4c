"""Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929), with the options of its descendants.

Registers are those of Darcet et al. 2023 (arXiv:2309.16588); average pooling and fixed positions those of Beyer et al.
2022 (arXiv:2205.01580). Modules carry timm's names, so that the tree of variables is its state dict, path by path.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError, suggest
from vision_jax.models import registry
from vision_jax.models.layers import (
    ATTENTION,
    INTERMEDIATES,
    PERTURBATIONS,
    BatchNorm,
    Classifier,
    ImageModel,
    capture,
    drop_path_rates,
    global_mean,
    maybe_remat,
    transformer_init,
    uniform_init,
    xavier_init,
    xavier_thirds_init,
)
from vision_jax.models.positions import TABLES, positions_init, sincos2d
from vision_jax.models.registry import HALVES, InputSpec
from vision_jax.models.transformer import LayerScale, Mlp, PatchEmbed, QueryKeyValue, attend, interpolate_positions
from vision_jax.models.vit_weights import from_big_vision, resample, to_authors, to_torchvision
from vision_jax.models.windows import Windows, evenly_spaced

INITS = ("normal", "xavier", "mocov3")  # `VisionTransformer.weight_init`
POSITIONS = ("learned", *TABLES, "relative")  # `VisionTransformer.positions`


class Attention(nn.Module):
    """Self-attention with several heads, on (batch, tokens, features).

    Attributes:
        num_heads: each sees an equal share of the features.
        drop_rate: probability of dropping a unit of the result, in training.
        dtype: what it computes in; the softmax is in float32.
        kernel_init: of its matrices.
        qkv_init: of the one for queries, keys and values; None: the same.
        recompute: compute the probabilities anew in the backward pass; see `attend`.
    """

    num_heads: int
    drop_rate: float
    dtype: Any
    kernel_init: nn.initializers.Initializer = transformer_init
    qkv_init: nn.initializers.Initializer | None = None
    recompute: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, bias: jax.Array | None = None) -> jax.Array:
        """`bias` is added to the logits of pairs of tokens; see `attend`.

        Tokens may be those of windows, which do not see each other: (batch, tokens, windows, features).
        """
        shape, windows = x.shape, x.shape[2] if x.ndim == 4 else None
        qkv = QueryKeyValue(self.num_heads, self.dtype, self.qkv_init or self.kernel_init, name="qkv")(x)
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        if windows is not None:  # beside the heads, so that the batch stays an axis of its own
            q, k, v = (x.reshape(*shape[:2], -1, x.shape[-1]) for x in (q, k, v))
        x = attend(self, q, k, v, bias, groups=windows, recompute=self.recompute).reshape(shape)
        features = shape[-1]
        x = nn.Dense(features, dtype=self.dtype, kernel_init=self.kernel_init, name="proj")(x)
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
        kernel_init, qkv_init: of the matrices; see `Attention`.
        recompute_attention: compute the probabilities of attention anew in the backward pass; see `attend`.
        epsilon: of the norms.
        activation: of the MLP; one of `layers.ACTIVATIONS`.
        windows: within which the attention is; None: it is of all tokens.
    """

    num_heads: int
    mlp_features: int
    layer_scale: float | None
    proj_drop_rate: float
    drop_path_rate: float
    dtype: Any
    kernel_init: nn.initializers.Initializer = transformer_init
    qkv_init: nn.initializers.Initializer | None = None
    recompute_attention: bool = False
    epsilon: float = 1e-6
    activation: str = "gelu"
    windows: Windows | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, drop_path_rate: jax.Array | None = None, bias: jax.Array | None = None
    ) -> jax.Array:
        """Applies the block to x, (batch, tokens, features); a `drop_path_rate` given here replaces the block's own.

        `bias` is added to the logits of pairs of tokens; see `attend`.
        """
        norm = functools.partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype, use_fast_variance=False)

        def scale(y: jax.Array, name: str) -> jax.Array:
            return y if self.layer_scale is None else LayerScale(self.layer_scale, self.dtype, name=name)(y)

        def drop(y: jax.Array) -> jax.Array:
            rate = self.drop_path_rate if drop_path_rate is None else drop_path_rate
            if not train or (drop_path_rate is None and rate == 0):
                return y
            # The rate may be traced, which the ready-made layers do not take.
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (y.shape[0], 1, 1))
            return jnp.where(keep, y / (1 - rate), 0).astype(y.dtype)

        y = capture(self, norm(name="norm1")(x), "norm1")
        attention = Attention(
            self.num_heads,
            self.proj_drop_rate,
            self.dtype,
            self.kernel_init,
            self.qkv_init,
            recompute=self.recompute_attention,
            name="attn",
        )
        if self.windows is None:
            y = attention(y, train, bias)
        else:
            y = self.windows.join(attention(self.windows.cut(y), train))
        x = x + drop(scale(y, "ls1"))
        mlp = Mlp(
            self.mlp_features,
            self.dtype,
            self.proj_drop_rate,
            self.kernel_init,
            activation=self.activation,
            name="mlp",
        )
        y = mlp(capture(self, norm(name="norm2")(x), "norm2"), train)
        return x + drop(scale(y, "ls2"))


class Blocks(nn.Module):
    """Blocks one after another, each with its own rate of dropping branches.

    Attributes:
        block: the class, or a function that makes one.
        drop_path_rates: of each.
        results: 1: the result is that of the last block; more: a list of the results of so many of the last ones.
        recompute_attention: every second one computes the probabilities of its attention anew in the backward pass.
            They are what takes most memory to keep; doing so in all would be 1.2 % more operations for a ViT-S.
        whole: the numbers of those that see all tokens, where others see windows.
    """

    block: Any
    drop_path_rates: tuple[float, ...]
    results: int = 1
    recompute_attention: bool = False
    whole: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, bias: jax.Array | None = None, windows: Windows | None = None) -> Any:
        found = []
        for i, rate in enumerate(self.drop_path_rates):
            options: dict[str, Any] = {"recompute_attention": True} if self.recompute_attention and i % 2 == 1 else {}
            if windows is not None and i not in self.whole:
                options["windows"] = windows
            x = capture(self, self.block(drop_path_rate=rate, name=str(i), **options)(x, train, None, bias), str(i))
            found.append(x)
        return x if self.results == 1 else found[-self.results :]


class RelativePositionBias(nn.Module):
    """A bias of attention for each offset between two patches, which all blocks share (Xie et al. 2021, after BEiT).

    Of pairs with a token before the patches there are three more: of such a token that sees a patch, of a patch that
    sees such a token, and of two such tokens.

    Attributes:
        num_heads: of the attention.
        grid: height and width of the map of patches.
        num_prefix_tokens: before the patches; 0: without the three biases.
    """

    num_heads: int
    grid: int
    num_prefix_tokens: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns (1, heads, tokens, tokens) float32, of queries and keys.

        The table has a row for each vertical offset of the query from the key, and within it for each horizontal one,
        from -(grid - 1) on. Offsets are chosen by products with ones and zeros, which are exact: a TPU would fetch the
        biases of pairs one by one, and add up their gradients so.
        """
        grid, before = self.grid, self.num_prefix_tokens
        offsets = 2 * grid - 1
        rows = offsets**2 + (3 if before else 0)
        table = self.param("relative_position_bias_table", nn.initializers.zeros, (rows, self.num_heads), jnp.float32)
        places = np.arange(grid)
        chosen = (places[:, None, None] - places[:, None] + grid - 1 == np.arange(offsets)).astype(np.float32)
        of_offsets = table[: offsets**2].reshape(offsets, offsets, self.num_heads)
        bias = jnp.einsum("qka,abh->hqkb", chosen, of_offsets, precision="highest")
        bias = jnp.einsum("hqkb,rlb->hqrkl", bias, chosen, precision="highest")
        bias = bias.reshape(1, self.num_heads, grid**2, grid**2)
        if not before:
            return bias
        to_patches, from_patches, among = (x[None, :, None, None] for x in table[-3:])
        above = jnp.broadcast_to(to_patches, (1, self.num_heads, before, grid**2))
        left = jnp.broadcast_to(from_patches, (1, self.num_heads, grid**2, before))
        corner = jnp.broadcast_to(among, (1, self.num_heads, before, before))
        return jnp.concatenate([jnp.concatenate([corner, above], 3), jnp.concatenate([left, bias], 3)], 2)


class VisionTransformer(ImageModel, kw_only=True):
    """A vision transformer.

    Attributes:
        patch_size, embed_dim, depth, num_heads: of the variant.
        mlp_ratio: features within an MLP for each one outside.
        img_size: height and width of the images, which learned positions are for.
        global_pool: the features are "token": the class token; "avg": the average of the patches; "token+avg": both,
            one after the other.
        feature_blocks: the features have the class tokens of so many of the last blocks, from the first of these to the
            last, each behind the last norm (Caron et al. 2021, arXiv:2104.14294).
        class_token: there is one; with "avg" it only takes part in attention.
        num_registers: further tokens that only take part in attention.
        positions: "learned" embeddings; "sincos2d": fixed ones, as big_vision computes them, for patches alone; "mae",
            "mocov3": learned ones that begin as `sincos2d` tables, and are fixed where `pos_embed` is frozen;
            "relative": no embeddings, but a bias of attention for each offset, see `RelativePositionBias`.
        no_embed_class: learned positions are for patches alone too.
        interpolate_positions: images may have other sizes than `img_size`: learned positions are then interpolated.
        norm_after_pooling: normalize the pooled features instead of all tokens; None: with "avg", but not with windows,
            which are for maps of features.
        layer_scale: initial scale of residual branches; None: they are not scaled.
        drop_path_uniform: all blocks drop branches with the probability `drop_path_rate`, as in DeiT III, instead of
            earlier ones less often.
        proj_drop_rate: probability of dropping a unit after a dense layer in a block, in training.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
        scan_blocks: compile one block instead of all. Parameters are stacked along a first axis.
        head_bias: where the biases of the classifier begin.
        head_std: standard deviation of its initial weights.
        norm_before_head: batch norm without scale and bias before the classifier, as in the linear probe of masked
            autoencoders (He et al. 2021, arXiv:2111.06377).
        attention_window: height and width, in patches, of the windows within which most blocks attend; None: all see
            all patches. It is for models without tokens before the patches. See `vision_jax.models.windows`.
        global_blocks: how many blocks, evenly spaced, see all patches where others see windows.
        weight_init: the other initial weights: "normal", as in timm; "xavier", as in masked autoencoders, which also
            begin with larger tokens and, as torch does by itself, with random biases of the projection of patches;
            "mocov3": uniform as well, where queries, keys and values are a matrix each (Chen et al. 2021).
    """

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    img_size: int = 224
    global_pool: str = "token"
    feature_blocks: int = 1
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
    head_std: float = 0.02
    norm_before_head: bool = False
    attention_window: int | None = None
    global_blocks: int = 4
    weight_init: str = "normal"

    def __post_init__(self) -> None:
        if self.weight_init not in INITS:
            raise ConfigError(f"weight_init is {self.weight_init!r}: {suggest(self.weight_init, INITS)}")
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"num_heads is {self.num_heads}, which does not divide the {self.embed_dim} features.")
        if self.global_pool not in ("token", "avg", "token+avg"):
            raise ConfigError(f"global_pool is {self.global_pool!r}: there are token, avg and token+avg.")
        if self.positions not in POSITIONS:
            raise ConfigError(f"positions is {self.positions!r}: {suggest(self.positions, POSITIONS)}")
        if self.positions == "relative" and self.interpolate_positions:
            raise ConfigError("positions is 'relative', which are for one size of images: unset interpolate_positions.")
        if self.global_pool != "avg" and not self.class_token:
            raise ConfigError("Without class_token, global_pool must be avg.")
        if self.attention_window is not None:
            self._check_windows()
        if not 1 <= self.feature_blocks <= self.depth:
            raise ConfigError(f"feature_blocks is {self.feature_blocks}, and the model has {self.depth} blocks.")
        if self.feature_blocks > 1 and (self.global_pool == "avg" or not self.norms_all_tokens):
            raise ConfigError(
                f"feature_blocks is {self.feature_blocks}, and the features are the class tokens of these blocks, each "
                "behind the norm of all tokens: set global_pool to token or token+avg, and norm_after_pooling to False."
            )
        super().__post_init__()

    def _check_windows(self) -> None:
        if self.attention_window is not None and self.attention_window < 1:
            raise ConfigError(f"attention_window is {self.attention_window}: give a number of patches, such as 14.")
        if not 0 <= self.global_blocks <= self.depth:
            raise ConfigError(f"global_blocks is {self.global_blocks}, and the model has {self.depth} blocks.")
        if self.num_prefix_tokens:
            raise ConfigError(
                f"attention_window is {self.attention_window}, and windows have no place for "
                f"{' and '.join(self.tokens())}: set class_token to False, and global_pool to avg."
            )
        if self.scan_blocks or self.positions == "relative":
            other = "scan_blocks" if self.scan_blocks else "positions='relative'"
            raise ConfigError(
                f"attention_window is {self.attention_window}, which does not go with {other}: unset one."
            )

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

    @property
    def norms_all_tokens(self) -> bool:
        """Whether the last norm is that of all tokens; else, it is that of the pooled features."""
        if self.norm_after_pooling is not None:
            return not self.norm_after_pooling
        return self.global_pool != "avg" or self.attention_window is not None

    def setup(self) -> None:
        kernel_init: Any = transformer_init
        token_init = nn.initializers.normal(1e-6)
        patch_inits: tuple[Any, ...] = ()
        qkv_init: Any = None
        if self.weight_init == "xavier":
            kernel_init, token_init = xavier_init, nn.initializers.normal(0.02)
            patch_inits = (xavier_init, uniform_init(1 / math.sqrt(self.in_channels * self.patch_size**2)))
        elif self.weight_init == "mocov3":
            kernel_init, qkv_init, patch_inits = xavier_init, xavier_thirds_init, (xavier_init,)
        self.patch_embed = PatchEmbed(self.patch_size, self.embed_dim, self.dtype, *patch_inits)
        for name, count in self.tokens().items():
            setattr(self, name, self.param(name, token_init, (1, count, self.embed_dim), jnp.float32))
        grid = self.img_size // self.patch_size
        if self.positions == "relative":
            self.rel_pos_bias = RelativePositionBias(self.num_heads, grid, self.num_prefix_tokens)
        elif self.positions != "sincos2d":
            before = 0 if self.no_embed_class else self.num_prefix_tokens
            shape = (1, before + grid**2, self.embed_dim)
            init = transformer_init if self.positions == "learned" else positions_init(self.positions, grid)
            self.pos_embed = self.param("pos_embed", init, shape, jnp.float32)

        block = functools.partial(
            maybe_remat(Block, self.remat),
            num_heads=self.num_heads,
            mlp_features=int(self.embed_dim * self.mlp_ratio),
            layer_scale=self.layer_scale,
            proj_drop_rate=self.proj_drop_rate,
            dtype=self.dtype,
            kernel_init=kernel_init,
            qkv_init=qkv_init,
        )
        if self.scan_blocks:
            self.blocks = block(drop_path_rate=0.0)
        else:
            rates = tuple(self._drop_path_rates())
            whole = evenly_spaced(self.depth, self.global_blocks)
            self.blocks = Blocks(block, rates, self.feature_blocks, not self.remat, whole)
        norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, use_fast_variance=False)
        self.norm: nn.Module | None = norm if self.norms_all_tokens else None
        self.fc_norm: nn.Module | None = None if self.norms_all_tokens else norm
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            if self.norm_before_head:
                self.head_norm = BatchNorm(epsilon=1e-6, use_scale=False, use_bias=False)
            self.head = self.make_head()

    def make_head(self) -> nn.Module:
        """Returns a new classifier."""
        kernel_init, bias_init = nn.initializers.normal(self.head_std), nn.initializers.constant(self.head_bias)
        return Classifier(self.num_classes, kernel_init=kernel_init, bias_init=bias_init)

    def encode(
        self,
        images: jax.Array,
        *,
        train: bool,
        kept: jax.Array | None = None,
        hidden: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns what becomes of the tokens before the patches, and of the patches.

        Args:
            images: (batch, height, width, channels).
            train: apply dropout.
            kept: (batch, kept) int32, the numbers of the patches that are encoded, row by row from the top left. They
                alone are computed, and see each other. None: all.
            hidden: which patches are replaced by a token, before positions are added: (batch, rows, columns) bool and
                (features,). None: none.

        Returns:
            (batch, tokens, features) and (batch, height / patch_size, width / patch_size, features), or with `kept`
            (batch, kept, features).

        Raises:
            ValueError: if there are no positions for images of this size, no relative ones of `kept` patches, or no
                windows of these.
        """
        before, patches, _ = self._encode(images, train, kept, hidden)
        return before, patches

    def _encode(
        self,
        images: jax.Array,
        train: bool,
        kept: jax.Array | None = None,
        hidden: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """Returns what `encode` does, and the class tokens of the blocks before the last, as `feature_blocks` says."""
        patches = self.patch_embed(self.prepare(images), kept)
        if hidden is not None:
            patches = jnp.where(hidden[0][..., None], hidden[1].astype(self.dtype), patches)
        batch, count = patches.shape[0], self.num_prefix_tokens
        x = capture(self, patches.reshape(batch, -1, self.embed_dim), "patch_embed")
        height, width = (length // self.patch_size for length in images.shape[1:3])
        bias, of_tokens = None, None
        if self.positions == "relative":
            if kept is not None:
                raise ValueError("positions is 'relative', and these are of all patches: some alone are not encoded")
            self._check_grid(height, width)
            bias = self.rel_pos_bias()
        else:
            positions = self._positions(height, width)[0]
            of_tokens, of_patches = jnp.split(positions, [len(positions) - height * width])
            if kept is not None:  # in float32, in which their gradients are then added up
                of_patches = of_patches.astype(jnp.float32).at[kept].get(mode="promise_in_bounds").astype(self.dtype)
            x = x + of_patches
        if count:
            before = jnp.concatenate([getattr(self, name).astype(self.dtype) for name in self.tokens()], axis=1)
            if of_tokens is not None and len(of_tokens):
                before = before + of_tokens
            x = jnp.concatenate([jnp.broadcast_to(before, (batch, count, self.embed_dim)), x], axis=1)
        windows = None
        if self.attention_window is not None:
            if kept is not None:
                raise ValueError("attention_window is of all patches: some alone are not encoded")
            windows = Windows(height, width, self.attention_window)
        earlier: list[jax.Array] = []
        if self.scan_blocks:
            x, earlier = self._scan(x, train, bias)
        elif self.feature_blocks == 1:
            x = self.blocks(x, train, bias, windows)
        else:
            *results, x = self.blocks(x, train, bias, windows)
            earlier = [result[:, 0] for result in results]
        if self.norm is not None:
            x = capture(self, self.norm(x), "norm")
            earlier = [self.norm(token) for token in earlier]
        return x[:, :count], x[:, count:].reshape(patches.shape), earlier

    def encode_hidden(self, images: jax.Array, hidden: jax.Array, token: jax.Array, *, train: bool) -> jax.Array:
        """Returns the map of features where some patches are hidden behind a token; arguments as of `encode`."""
        return self.encode(images, train=train, hidden=(hidden, token))[1]

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
            self._check_grid(height, width)
        prefix = self.pos_embed.shape[1] - grid**2
        return interpolate_positions(self.pos_embed, prefix, height, width).astype(self.dtype)

    def _check_grid(self, height: int, width: int) -> None:
        """Raises ValueError if images of so many patches have no positions."""
        if (height, width) != (self.img_size // self.patch_size,) * 2:
            advice = "set img_size" if self.positions == "relative" else "set img_size, or interpolate_positions"
            raise ValueError(
                f"the images have {height * self.patch_size} x {width * self.patch_size} pixels, and there are "
                f"positions for {self.img_size} x {self.img_size}: {advice}"
            )

    def _scan(self, x: jax.Array, train: bool, bias: jax.Array | None) -> tuple[jax.Array, list[jax.Array]]:
        """Returns the result of all blocks, and the class tokens that `_encode` returns, before the norm."""

        def step(
            block: nn.Module, x: jax.Array, rate: jax.Array | None, bias: jax.Array | None
        ) -> tuple[jax.Array, jax.Array | None]:
            x = capture(block, block(x, train, rate, bias))
            return x, None if self.feature_blocks == 1 else x[:, 0]

        rates = jnp.asarray(self._drop_path_rates()) if self.drop_path_rate else None
        scan = nn.scan(
            step,
            variable_axes=dict.fromkeys(("params", INTERMEDIATES, ATTENTION, PERTURBATIONS), 0),
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=self.depth,
        )
        x, tokens = scan(self.blocks, x, rates, bias)
        return x, [] if tokens is None else list(tokens[-self.feature_blocks : -1])

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        return {self.patch_size: self.encode(images, train=train)[1]}

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        before, patches, parts = self._encode(images, train)
        if self.global_pool != "avg":
            parts = [*parts, before[:, 0]]
        if self.global_pool != "token":
            parts = [*parts, global_mean(patches)]
        x = jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)
        if self.fc_norm is not None:
            x = self.fc_norm(x).astype(jnp.float32)
        return x

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        if self.norm_before_head:
            features = self.head_norm(features, train=train)
        return self.head(self.dropout(features, deterministic=not train))


# embed_dim, depth, num_heads
SIZES = {
    "pico": (96, 4, 3),
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
    ("pico", 7, (28,), 0),  # this project's, for MNIST and the like; without published weights
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
CROPS = {28: 1.0, 224: 0.9, 256: 0.95, 384: 1.0}
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
# The self-supervised weights that timm has.
BACKBONES = {
    **{f"vit_{size}_patch{patch}_224": ("dino",) for size in ("small", "base") for patch in (8, 16)},
    "vit_base_patch16_224": ("dino", "mae"),
    "vit_large_patch16_224": ("mae",),
    "vit_huge_patch14_224": ("mae",),
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
            backbones={tag: InputSpec(crop_pct=0.9) for tag in BACKBONES.get(_name, ())},
        )
