"""The ResNets of CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4), under the names of OpenAI's code.

Of a ResNet-D there is the stem of three convolutions and the shortcut with an average; averages take the place of all
strides ("anti-aliased"), and attention that of the last average.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import BatchNorm, Conv, avg_pool, capture
from vision_jax.models.transformer import attend

EXPANSION = 4


class _Shortcut(nn.Module):
    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = avg_pool(x, self.stride, self.stride) if self.stride > 1 else x
        x = Conv(self.features, 1, dtype=self.dtype, name="0")(x)
        return BatchNorm(self.dtype, name="1")(x, train=train)


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut.

    Attributes:
        planes: channels of the inner convolutions.
        stride: of the average before the last one, and before the shortcut's.
        dtype: what it computes in.
    """

    planes: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: (batch, height, width, channels)."""
        features = EXPANSION * self.planes
        y = x
        for number, size in ((1, 1), (2, 3)):
            y = Conv(self.planes, size, dtype=self.dtype, name=f"conv{number}")(y)
            y = nn.relu(BatchNorm(self.dtype, name=f"bn{number}")(y, train=train))
        y = avg_pool(y, self.stride, self.stride) if self.stride > 1 else y
        y = Conv(features, 1, dtype=self.dtype, name="conv3")(y)
        y = BatchNorm(self.dtype, name="bn3")(y, train=train)
        if self.stride > 1 or x.shape[-1] != features:
            x = _Shortcut(features, self.stride, self.dtype, name="downsample")(x, train)
        return nn.relu(x + y)


class _Stage(nn.Module):
    planes: int
    blocks: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.blocks):
            x = Bottleneck(self.planes, self.stride if i == 0 else 1, self.dtype, name=str(i))(x, train)
        return capture(self, x)


class AttentionPool(nn.Module):
    """The average of all positions attends to itself and to them; the result is projected.

    Attributes:
        num_heads: of the attention.
        features: of the result.
        dtype: what it computes in; the last projection is in float32.
    """

    num_heads: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns (batch, features) float32 of (batch, height, width, channels)."""
        batch, channels = x.shape[0], x.shape[-1]
        x = x.reshape(batch, -1, channels)
        mean = x.astype(jnp.float32).mean(1, keepdims=True).astype(x.dtype)
        x = jnp.concatenate([mean, x], axis=1)
        init = nn.initializers.normal(channels**-0.5)
        positions = self.param("positional_embedding", init, (x.shape[1], channels), jnp.float32)
        x = x + positions.astype(x.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=init)

        def heads(values: jax.Array, name: str) -> jax.Array:
            return dense(channels, name=name)(values).reshape(batch, -1, self.num_heads, channels // self.num_heads)

        pooled = attend(self, heads(x[:, :1], "q_proj"), heads(x, "k_proj"), heads(x, "v_proj"))
        pooled = pooled.reshape(batch, channels).astype(jnp.float32)
        return nn.Dense(self.features, dtype=jnp.float32, kernel_init=init, name="c_proj")(pooled)


class ModifiedResNet(nn.Module):
    """CLIP's ResNet as a tower for images.

    Attributes:
        img_size: height and width of the images, multiples of 32.
        width: channels behind the stem.
        depths: blocks of each stage.
        num_heads: of the attention that pools.
        embed_dim: length of the embedding.
        in_channels: of the images.
        dtype: what it computes in.
    """

    img_size: int
    width: int
    depths: tuple[int, int, int, int]
    num_heads: int
    embed_dim: int
    in_channels: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the embeddings, (batch, embed_dim) float32, of images, (batch, height, width, channels)."""
        if images.shape[1:] != (self.img_size, self.img_size, self.in_channels):
            raise ValueError(
                f"the images have the shape {images.shape}, and the model takes (batch, {self.img_size}, "
                f"{self.img_size}, {self.in_channels})"
            )
        x = images.astype(self.dtype)
        for number, (features, stride) in enumerate(((self.width // 2, 2), (self.width // 2, 1), (self.width, 1)), 1):
            x = Conv(features, 3, stride, dtype=self.dtype, name=f"conv{number}")(x)
            x = nn.relu(BatchNorm(self.dtype, name=f"bn{number}")(x, train=train))
        x = avg_pool(x, 2, 2)
        for number, blocks in enumerate(self.depths):
            stage = _Stage(self.width * 2**number, blocks, 2 if number else 1, self.dtype, name=f"layer{number + 1}")
            x = stage(x, train)
        return AttentionPool(self.num_heads, self.embed_dim, self.dtype, name="attnpool")(x)
