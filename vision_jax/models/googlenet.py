"""GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842), with batch normalization, as torchvision has it.

As in torchvision, the third branch of a block has a 3x3 convolution where the paper has 5x5. The published weights
expect pixels between -1 and 1, which torchvision's option `transform_input` makes of its usual normalization.
"""

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
    adaptive_avg_pool,
    capture,
    global_mean,
    max_pool,
    maybe_remat,
)

googlenet_init = nn.initializers.normal(0.01)


class ConvNorm(nn.Module):
    """A convolution, its norm and a rectifier."""

    width: int
    size: int
    conv: Any
    norm: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.conv(self.width, self.size, self.stride, name="conv")(x)
        return nn.relu(self.norm(name="bn")(x, train=train))


class Branch(nn.Module):
    """A 1x1 convolution to `reduced`, and a 3x3 one to `width`."""

    reduced: int
    width: int
    layer: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.layer(self.reduced, 1, name="0")(x, train)
        return self.layer(self.width, 3, name="1")(x, train)


class PoolBranch(nn.Module):
    """Max pooling, and a 1x1 convolution to `width`."""

    width: int
    layer: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.layer(self.width, 1, name="1")(max_pool(x, 3, 1, padding=1), train)


class Inception(nn.Module):
    """Four branches side by side.

    Attributes:
        widths: the first branch's; the second's, reduced and full; the third's, likewise; the fourth's.
        layer: makes a `ConvNorm`.
    """

    widths: tuple[int, int, int, int, int, int]
    layer: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        one, reduced2, three, reduced3, five, pooled = self.widths
        branches = [
            self.layer(one, 1, name="branch1")(x, train),
            Branch(reduced2, three, self.layer, name="branch2")(x, train),
            Branch(reduced3, five, self.layer, name="branch3")(x, train),
            PoolBranch(pooled, self.layer, name="branch4")(x, train),
        ]
        return jnp.concatenate(branches, -1)


class AuxiliaryHead(nn.Module):
    """A classifier of a map in the middle, which helps training; seven in ten of its hidden units are dropped."""

    num_classes: int
    layer: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.layer(128, 1, name="conv")(adaptive_avg_pool(x, 4, 4), train)
        # In the order of torch, which flattens (channels, height, width).
        hidden = nn.Dense(1024, dtype=self.dtype, kernel_init=googlenet_init, name="fc1")
        x = nn.relu(hidden(x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)))
        x = nn.Dropout(0.7)(x, deterministic=not train)
        return Classifier(self.num_classes, kernel_init=googlenet_init, name="fc2")(x)


# Widths of the blocks, by stride.
BLOCKS: dict[int, dict[str, tuple[int, int, int, int, int, int]]] = {
    8: {
        "inception3a": (64, 96, 128, 16, 32, 32),
        "inception3b": (128, 128, 192, 32, 96, 64),
    },
    16: {
        "inception4a": (192, 96, 208, 16, 48, 64),
        "inception4b": (160, 112, 224, 24, 64, 64),
        "inception4c": (128, 128, 256, 24, 64, 64),
        "inception4d": (112, 144, 288, 32, 64, 64),
        "inception4e": (256, 160, 320, 32, 128, 128),
    },
    32: {
        "inception5a": (256, 160, 320, 32, 128, 128),
        "inception5b": (384, 192, 384, 48, 128, 128),
    },
}
AUXILIARY = {"inception4a": "aux1", "inception4d": "aux2"}


class GoogLeNet(ImageModel, kw_only=True):
    """Three convolutions and nine Inception blocks. Images have at least 15x15 pixels.

    Attributes:
        drop_rate: probability of dropping a unit before the classifier, in training.
        aux_logits: have two auxiliary classifiers, which only `logits_and_auxiliary` uses.
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
    """

    residual = False

    drop_rate: float = 0.2
    aux_logits: bool = False
    bn_group_size: int = 0
    remat: bool | str = False

    def setup(self) -> None:
        conv = functools.partial(Conv, dtype=self.dtype, kernel_init=googlenet_init)
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size, epsilon=1e-3)
        layer = functools.partial(ConvNorm, conv=conv, norm=norm)
        self.conv1 = layer(64, 7, stride=2)
        self.conv2 = layer(64, 1)
        self.conv3 = layer(192, 3)
        block = maybe_remat(Inception, self.remat)
        for blocks in BLOCKS.values():
            for name, widths in blocks.items():
                setattr(self, name, block(widths, layer))
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.fc = Classifier(self.num_classes, kernel_init=googlenet_init)
            if self.aux_logits:
                for name in AUXILIARY.values():
                    setattr(self, name, AuxiliaryHead(self.num_classes, layer, self.dtype))

    def _maps(self, images: jax.Array, train: bool) -> tuple[dict[int, jax.Array], dict[str, jax.Array]]:
        """Returns the maps by stride, and what the auxiliary classifiers see by their names."""
        maps, auxiliary = {}, {}
        maps[2] = capture(self, self.conv1(self.prepare(images), train), "conv1")
        x = capture(self, self.conv2(max_pool(maps[2], 3, 2, ceil=True), train), "conv2")
        x = maps[4] = capture(self, self.conv3(x, train), "conv3")
        for stride, blocks in BLOCKS.items():
            x = max_pool(x, 2 if stride == 32 else 3, 2, ceil=True)
            for name in blocks:
                x = capture(self, getattr(self, name)(x, train), name)
                if name in AUXILIARY:
                    auxiliary[AUXILIARY[name]] = x
            maps[stride] = x
        return maps, auxiliary

    @property
    def gradcam_layer(self) -> str:
        return "inception5b"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        return self._maps(images, train)[0]

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return global_mean(self.feature_maps(images, train=train)[32])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.fc(self.dropout(features, deterministic=not train))

    def logits_and_auxiliary(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Returns the logits, and those of the auxiliary classifiers in order of depth; all (batch, num_classes).

        The paper trains on the loss of the logits and 0.3 times each loss of the auxiliary ones. Arguments as for
        `feature_maps`; it needs `aux_logits`.
        """
        maps, auxiliary = self._maps(images, train)
        logits = self.logits(capture(self, global_mean(maps[32]), "features"), train=train)
        return logits, tuple(getattr(self, name)(x, train) for name, x in auxiliary.items())

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if self.aux_logits and self.num_classes and self.is_initializing():  # all parameters are made here
            return self.logits_and_auxiliary(images, train=train)[0]
        return super().__call__(images, train=train)


registry.register(
    "googlenet",
    GoogLeNet,
    registry.InputSpec(mean=registry.HALVES, std=registry.HALVES, interpolation="bilinear"),
    library="torchvision",
)
