"""VGG (Simonyan and Zisserman 2014, arXiv:1409.1556), without and with batch normalization.

Modules carry timm's names, where the two hidden layers are convolutions. Up to 224x224 pixels torchvision's models are
the same function; of larger images these average over positions of the hidden layers, and torchvision before them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax

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
    norm_relu_pool,
)

WIDTHS = (64, 128, 256, 512, 512)
# Of the dense layers, as in the paper; the convolutions have `layers.conv_init`.
dense_normal_init = nn.initializers.normal(0.01)


class Convolutions(nn.Module):
    """Five stages of 3x3 convolutions, with max pooling after each.

    Attributes:
        depths: convolutions in each stage.
        conv: makes a convolution.
        norm: makes a norm; None: there are none.
    """

    depths: tuple[int, ...]
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[int, jax.Array]:
        """Returns the map of each stage before pooling, and of the last one after it, by stride."""
        maps = {}
        pool = functools.partial(max_pool, size=2, stride=2)
        number = 0  # torch's, which counts all layers
        for stage, depth in enumerate(self.depths):
            for layer in range(1, depth + 1):
                x = self.conv(WIDTHS[stage], 3, name=str(number))(x)
                pooled = None
                if self.norm is None:
                    x = capture(self, nn.relu(x), str(number + 1))
                elif layer < depth:
                    x = capture(self, nn.relu(self.norm(name=str(number + 1))(x, train=train)), str(number + 2))
                else:
                    norm = self.norm(name=str(number + 1))
                    x, pooled = norm_relu_pool(self, norm, x, pool, str(number + 2), train=train)
                number += 2 if self.norm is None else 3
            maps[2**stage] = x
            x = capture(self, pool(x) if pooled is None else pooled, str(number))
            number += 1
        return {**maps, 32: x}


class ConvMlp(nn.Module):
    """The two hidden layers, at each position where 7x7 cells fit; maps with fewer rows or columns are stretched."""

    drop_rate: float
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = adaptive_avg_pool(x, max(7, x.shape[1]), max(7, x.shape[2]))
        x = nn.relu(self.conv(4096, 7, padding=0, name="fc1")(x))
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        return nn.relu(self.conv(4096, 1, name="fc2")(x))


class Head(nn.Module):
    """The classifier."""

    num_classes: int
    drop_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        return Classifier(self.num_classes, kernel_init=dense_normal_init, name="fc")(x)


class VGG(ImageModel, kw_only=True):
    """Stages of 3x3 convolutions, and three dense layers. Images have at least 32x32 pixels.

    Attributes:
        drop_rate: probability of dropping a unit of the hidden layers, in training; the default is the paper's.
        depths: convolutions in each of the five stages.
        batch_norm: normalize after each convolution.
        bn_group_size: examples that share batch statistics; 0: the global batch. See `BatchNorm`.
    """

    residual = False

    drop_rate: float = 0.5
    depths: tuple[int, ...]
    batch_norm: bool = False
    bn_group_size: int = 0

    def setup(self) -> None:
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype)
        norm = functools.partial(BatchNorm, dtype=self.dtype, group_size=self.bn_group_size)
        self.convolutions = Convolutions(self.depths, conv, norm if self.batch_norm else None, name="features")
        self.pre_logits = ConvMlp(self.drop_rate, functools.partial(conv, kernel_init=dense_normal_init))
        if self.num_classes:
            self.head = Head(self.num_classes, self.drop_rate)

    @property
    def gradcam_layer(self) -> str:
        """The last map before pooling."""
        layers = sum(self.depths) * (3 if self.batch_norm else 2) + len(self.depths)
        return f"features/{layers - 2}"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        return self.convolutions(self.prepare(images), train)

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self.pre_logits(self.feature_maps(images, train=train)[32], train)
        return global_mean(capture(self, x, "pre_logits"))

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.head(features, train)


def torchvision_tensor(name: str, shape: registry.Shape) -> tuple[str, registry.Shape]:
    """Returns torchvision's name and shape of a tensor: it has dense layers in place of timm's convolutions."""
    for ours, theirs in (("pre_logits.fc1", "0"), ("pre_logits.fc2", "3"), ("head.fc", "6")):
        if name.startswith(ours):
            name = name.replace(ours, f"classifier.{theirs}")
            # Both flatten (channels, height, width).
            shape = (shape[0], shape[1] * shape[2] * shape[3]) if len(shape) == 4 else shape
    return name, shape


DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
for _name, _depths in DEPTHS.items():
    for _suffix, _batch_norm in (("", False), ("_bn", True)):
        registry.register(
            _name + _suffix,
            functools.partial(VGG, depths=_depths, batch_norm=_batch_norm),
            registry.InputSpec(interpolation="bilinear"),
            torchvision=torchvision_tensor,
        )
