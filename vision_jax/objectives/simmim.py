"""SimMIM (Xie et al. 2021, arXiv:2111.09886; microsoft/SimMIM): predict the pixels that are hidden behind a token."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError
from vision_jax.models.layers import dense_init
from vision_jax.objectives.base import Out, Progress, Variables, Views
from vision_jax.objectives.masked import MaskedObjective, reconstruction_out
from vision_jax.pretrained import OfficialNames


def hidden_error(errors: jax.Array, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean over channels of errors, summed over hidden pixels, and how many of these there are.

    Args:
        errors: (batch, height, width, channels).
        hidden: (batch, rows, columns) bool, which squares of the image are hidden.

    Returns:
        (batch,) float32 each.
    """
    pixels = enlarge(hidden, errors.shape[1]).astype(jnp.float32)
    return (errors.mean(-1) * pixels).sum((1, 2)), pixels.sum((1, 2))


def enlarge(cells: jax.Array, size: int) -> jax.Array:
    """Repeats (batch, rows, columns) to (batch, size, size)."""
    times = size // cells.shape[1]
    return cells.repeat(times, axis=1).repeat(times, axis=2)


class PixelDecoder(nn.Module):
    """A 1x1 convolution to the pixels of each position of a map.

    Beside it is the token that stands for hidden patches, `mask_token`: the backbone needs it first.

    Attributes:
        embed_dim: features of the token.
        image_size: height and width of the images.
        channels: of the images.
        dtype: what it computes in.
    """

    embed_dim: int
    image_size: int
    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Returns images, (batch, height, width, channels) float32, of a map, (batch, rows, columns, features)."""
        del train
        self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.embed_dim), jnp.float32)
        batch, side = features.shape[:2]
        stride = self.image_size // side
        convolution = nn.Conv(stride**2 * self.channels, (1, 1), dtype=self.dtype, kernel_init=dense_init, name="0")
        x = convolution(features).astype(jnp.float32)
        # As torch shuffles pixels: of what a position gives, the channel changes slowest.
        x = x.reshape(batch, side, side, self.channels, stride, stride).transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(batch, self.image_size, self.image_size, self.channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimMIM(MaskedObjective):
    """SimMIM, with a vision transformer or a Swin Transformer: the mean absolute error of hidden pixels.

    All patches are encoded, those that are hidden as a learned token.

    Attributes:
        mask_size: height and width in pixels of the squares that are hidden or not.
        mask_ratio: share of them that is hidden, rounded up.
    """

    mask_size: int = 32
    mask_ratio: float = 0.6

    def __post_init__(self) -> None:
        model, size = self._model, self.setup.image_shape[0]
        if not hasattr(model, "encode_hidden"):
            raise ConfigError(
                f"The objective simmim hides patches of vision transformers and Swin, not of {type(model).__name__}."
            )
        if not getattr(model, "norms_all_tokens", True):
            raise ConfigError("The objective simmim normalizes all tokens: leave model.global_pool at token.")
        if self.mask_size <= 0 or self.mask_size % model.patch_size or size % self.mask_size:
            raise ConfigError(
                f"objective.mask_size is {self.mask_size}: it must be a multiple of the model's patches, of "
                f"{model.patch_size} pixels, and divide data.image_size={size}."
            )
        if not 0 < self.count < self.cells:
            raise ConfigError(
                f"objective.mask_ratio is {self.mask_ratio}: of {self.cells} squares it hides {self.count}, and some "
                "must be hidden and some seen."
            )

    @property
    def cells(self) -> int:
        return (self.setup.image_shape[0] // self.mask_size) ** 2

    @property
    def count(self) -> int:
        """How many squares of an image are hidden."""
        return math.ceil(self.cells * self.mask_ratio)

    @property
    def decoder(self) -> PixelDecoder:
        size, _, channels = self.setup.image_shape
        return PixelDecoder(self._model.embed_dim, size, channels, self._model.dtype)

    @property
    def _model(self) -> Any:
        return self.setup.model

    def decoder_inputs(self) -> tuple[Any, ...]:
        images = jnp.zeros((1, *self.setup.image_shape), jnp.float32)
        hidden, token = self._hidden(jnp.arange(self.cells)[None]), jnp.zeros(self._model.embed_dim)
        features, _ = jax.eval_shape(
            lambda key: self._model.init_with_output(
                key, images, self._patches(hidden), token, train=False, method="encode_hidden"
            ),
            jax.random.key(0),
        )
        return (jnp.zeros(features.shape, features.dtype),)

    @property
    def official(self) -> OfficialNames:
        return OfficialNames({"decoder.mask_token": "encoder.mask_token", "decoder.": "decoder."})

    def _hidden(self, order: jax.Array) -> jax.Array:
        """Returns which squares are hidden, (batch, rows, columns) bool: the first ones of each image's order."""
        side = math.isqrt(self.cells)
        return (jnp.argsort(order, axis=1) < self.count).reshape(-1, side, side)

    def _patches(self, hidden: jax.Array) -> jax.Array:
        """Returns which of the model's patches are hidden."""
        return enlarge(hidden, self.setup.image_shape[0] // self._model.patch_size)

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del targets, progress
        images, hidden = views["image"], self._hidden(views["order"])
        head = {"params": variables["params"]["decoder"]}
        features, updates = self._model.apply(
            variables,
            images,
            self._patches(hidden),
            head["params"]["mask_token"][0, 0],
            train=train,
            method="encode_hidden",
            mutable=["batch_stats"] if train else [],
            rngs={"dropout": key},
        )
        reconstruction: Any = self.decoder.apply(head, features, train=train)
        errors, counts = hidden_error(jnp.abs(reconstruction - images), hidden)
        missed, _ = hidden_error(jnp.square(reconstruction - images), hidden)
        whole, _ = hidden_error(jnp.square(images), hidden)
        return reconstruction_out(errors, (missed, whole), counts, None if train else views["mask"], updates)
