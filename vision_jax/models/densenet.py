"""DenseNet (Huang et al. 2016, arXiv:1608.06993), the variant BC: with bottlenecks, and transitions that halve."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    ImageModel,
    avg_pool,
    capture,
    dense_init,
    global_mean,
    max_pool,
    maybe_remat,
    norm_relu_pool,
)

# He et al. 2015, with the fan of the input.
densenet_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class DenseLayer(nn.Module):
    """Norms before a 1x1 convolution to four times `growth` and a 3x3 one to `growth`: the features that are new."""

    growth: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(self.norm(name="norm1")(x, train=train))
        x = self.conv(4 * self.growth, 1, name="conv1")(x)
        x = nn.relu(self.norm(name="norm2")(x, train=train))
        return self.conv(self.growth, 3, name="conv2")(x)


class DenseBlock(nn.Module):
    """Layers, each of which sees the block's input and what all layers before it found."""

    layer: Any
    depth: int
    growth: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(1, self.depth + 1):
            new = self.layer(self.growth, self.conv, self.norm, name=f"denselayer{i}")(x, train)
            x = jnp.concatenate([x, capture(self, new, f"denselayer{i}")], -1)
        return x


class Transition(nn.Module):
    """A norm, a 1x1 convolution to half the features, and average pooling to half the size."""

    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(self.norm(name="norm")(x, train=train))
        return avg_pool(self.conv(x.shape[-1] // 2, 1, name="conv")(x), 2, 2)


class Body(nn.Module):
    """All layers before the classifier."""

    layer: Any
    depths: tuple[int, int, int, int]
    growth: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[int, jax.Array]:
        """Returns the last map of each stride."""
        x = self.conv(2 * self.growth, 7, 2, name="conv0")(x)
        pool = functools.partial(max_pool, size=3, stride=2, padding=1)
        stem, x = norm_relu_pool(self, self.norm(name="norm0"), x, pool, "norm0", train=train)
        maps = {2: stem}
        for i, depth in enumerate(self.depths, start=1):
            block = DenseBlock(self.layer, depth, self.growth, self.conv, self.norm, name=f"denseblock{i}")
            x = maps[2 ** (i + 1)] = capture(self, block(x, train), f"denseblock{i}")
            if i < len(self.depths):
                x = capture(self, Transition(self.conv, self.norm, name=f"transition{i}")(x, train), f"transition{i}")
        return maps | {32: capture(self, nn.relu(self.norm(name="norm5")(x, train=train)), "norm5")}


class DenseNet(ImageModel, kw_only=True):
    """A convolution and four dense blocks. Images have at least 29x29 pixels.

    Attributes:
        depths: layers in each block.
        growth: features that each layer adds.
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
        remat: rematerialize the activations within layers (gradient checkpointing), to save memory; see `maybe_remat`.
            It saves most of it, as each layer would keep all features before it.
    """

    residual = False

    depths: tuple[int, int, int, int]
    growth: int = 32
    bn_group_size: int = 0
    remat: bool | str = False

    def setup(self) -> None:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=densenet_init)
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size)
        layer = maybe_remat(DenseLayer, self.remat)
        self.body = Body(layer, self.depths, self.growth, conv, norm, name="features")
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.classifier = Classifier(self.num_classes, kernel_init=dense_init)

    @property
    def gradcam_layer(self) -> str:
        return "features/norm5"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        return self.body(self.prepare(images), train)

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return global_mean(self.feature_maps(images, train=train)[32])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.classifier(self.dropout(features, deterministic=not train))


# depths, growth
VARIANTS: dict[str, tuple[tuple[int, int, int, int], int]] = {
    "densenet121": ((6, 12, 24, 16), 32),
    "densenet161": ((6, 12, 36, 24), 48),
    "densenet169": ((6, 12, 32, 32), 32),
    "densenet201": ((6, 12, 48, 32), 32),
}
for _name, (_depths, _growth) in VARIANTS.items():
    registry.register(_name, functools.partial(DenseNet, depths=_depths, growth=_growth), in_torchvision=True)
