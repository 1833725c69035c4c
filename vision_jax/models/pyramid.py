"""Feature pyramids: maps of one width at several resolutions, of a backbone's maps or of its last one alone.

FPN: Lin et al. 2017 (arXiv:1612.03144), with the two coarse levels of RetinaNet (Lin et al. 2017, arXiv:1708.02002);
the simple pyramid: ViTDet (Li et al. 2022, arXiv:2203.16527).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError
from vision_jax.models.layers import Conv, capture, dense_init, max_pool, uniform_init
from vision_jax.models.upsampling import nearest

# torchvision's and detectron2's: uniform, with the variance 1 / inputs (He et al. 2015 with a slope of 1).
pyramid_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")

_LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)


class MapNorms(nn.Module):
    """A layer norm over the features of each map, for backbones that normalize their last features only.

    Swin and ConvNeXt give each map as the sum of its stage's branches, whose size grows with depth; their authors'
    detectors and segmenters have a norm of its own for each map (SwinTransformer/Swin-Transformer-Object-Detection,
    facebookresearch/ConvNeXt).

    Attributes:
        epsilon: added to the variance.
    """

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Normalizes maps, (batch, height, width, features) each."""
        norm = functools.partial(_LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        return tuple(norm(name=f"norm_{i}")(x) for i, x in enumerate(maps))


class CoarseLevels(nn.Module):
    """The levels 6 and 7 of a pyramid: 3x3 convolutions of stride 2, with a ReLU between them."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: (batch, height, width, features), of which level 6 is made."""
        conv = functools.partial(Conv, self.channels, 3, 2, use_bias=True, dtype=self.dtype, kernel_init=pyramid_init)
        p6 = conv(name="p6")(x)
        return p6, conv(name="p7")(nn.relu(p6))


class FeaturePyramid(nn.Module):
    """FPN on maps of halving resolution, with the levels 6 and 7 of RetinaNet.

    Attributes:
        channels: of all levels.
        coarse_from: what level 6 is made of: "p5", the coarsest level, or "c5", the coarsest map (RetinaNet v2).
        norm_epsilon: of `MapNorms` before; None: there are none.
        dtype: what it computes in.
    """

    channels: int = 256
    coarse_from: str = "p5"
    norm_epsilon: float | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.coarse_from not in ("p5", "c5"):
            raise ConfigError(f"coarse_from is {self.coarse_from!r}: give p5 or c5.")
        super().__post_init__()

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Returns the levels of maps, (batch, height, width, features) each, the finest first; two more than maps."""
        if self.norm_epsilon is not None:
            maps = MapNorms(self.norm_epsilon, self.dtype, name="norms")(maps)
        conv = functools.partial(Conv, self.channels, use_bias=True, dtype=self.dtype, kernel_init=pyramid_init)
        inner = [conv(kernel_size=1, name=f"inner_blocks_{i}")(x) for i, x in enumerate(maps)]
        for i in reversed(range(len(inner) - 1)):
            inner[i] = inner[i] + nearest(inner[i + 1], *inner[i].shape[1:3])
        levels = [conv(kernel_size=3, name=f"layer_blocks_{i}")(x) for i, x in enumerate(inner)]
        source = levels[-1] if self.coarse_from == "p5" else maps[-1]
        levels += CoarseLevels(self.channels, self.dtype, name="extra_blocks")(source)
        return tuple(capture(self, x, f"p{i + 3}") for i, x in enumerate(levels))


class Upscale(nn.Module):
    """A transposed 2x2 convolution of stride 2: every position becomes four, by a matrix of its own each."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # As a dense layer and a reordering, which is the same product without a dilated input.
        batch, height, width, _ = x.shape
        bound = uniform_init(1 / math.sqrt(4 * self.features))  # torch's
        kernel = self.param("kernel", bound, (2, 2, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", bound, (self.features,), jnp.float32)
        y = jnp.einsum("bhwc,ijcd->bhiwjd", x.astype(self.dtype), kernel.astype(self.dtype))
        return y.reshape(batch, 2 * height, 2 * width, self.features) + bias.astype(self.dtype)


class SimpleFeaturePyramid(nn.Module):
    """ViTDet's pyramid: transposed convolutions and pooling of one map, and the levels 6 and 7 of RetinaNet.

    Levels have twice the resolution of the map, its own, half of it, and so on: strides from 8 to 128 for patches of
    16 pixels.

    Attributes:
        channels: of all levels.
        dtype: what it computes in.
    """

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Returns five levels of the last map, (batch, height, width, features) each, the finest first."""
        x = maps[-1]
        norm = functools.partial(_LayerNorm, epsilon=1e-6, dtype=self.dtype)
        conv = functools.partial(Conv, self.channels, dtype=self.dtype, kernel_init=dense_init)
        fine = Upscale(x.shape[-1] // 2, self.dtype, name="upscale")(x)
        levels = []
        for i, y in enumerate((fine, x, max_pool(x, 2, 2))):
            y = norm(name=f"inner_norm_{i}")(conv(kernel_size=1, name=f"inner_blocks_{i}")(y))
            y = norm(name=f"layer_norm_{i}")(conv(kernel_size=3, name=f"layer_blocks_{i}")(y))
            levels.append(y)
        levels += CoarseLevels(self.channels, self.dtype, name="extra_blocks")(levels[-1])
        return tuple(capture(self, x, f"p{i + 3}") for i, x in enumerate(levels))
