"""SqueezeNet (Iandola et al. 2016, arXiv:1602.07360), 1.0 of the paper and 1.1, with fewer multiplications."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.layers import Conv, ImageModel, capture, capture_beside, global_mean, max_pool

# He et al. 2015, uniform.
squeezenet_init = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")

POOL = 0  # in place of a Fire's width


class Fire(nn.Module):
    """A 1x1 convolution to `width`, then 1x1 and 3x3 convolutions side by side to `expanded` each."""

    width: int
    expanded: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(self.conv(self.width, 1, name="squeeze")(x))
        branches = (self.conv(self.expanded, size, name=f"expand{size}x{size}")(x) for size in (1, 3))
        return nn.relu(jnp.concatenate([*branches], -1))


class Convolutions(nn.Module):
    """The first convolution, then max poolings and Fires.

    Attributes:
        stem: width and kernel of the first convolution.
        fires: width of each Fire, `POOL` for max pooling.
        conv: makes a convolution.
    """

    stem: tuple[int, int]
    fires: tuple[int, ...]
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[int, jax.Array]:
        """Returns the last map of each stride."""
        width, size = self.stem
        x = capture(self, nn.relu(self.conv(width, size, 2, padding=0, name="0")(x)), "1")
        stride, maps = 2, {2: x}
        for number, width in enumerate(self.fires, start=2):  # torch's numbers; 1 is the rectifier
            if width == POOL:
                x, stride = max_pool(x, 3, 2, ceil=True), stride * 2
            else:
                x = Fire(width, width * 4, self.conv, name=str(number))(x)
            maps[stride] = x = capture(self, x, str(number))
        return maps


class PositionLogits(nn.Module):
    """A 1x1 convolution to the logits of each position, in float32.

    It is a quarter of the model, and so a product of matrices in the model's dtype: what is float32 are its sums.
    """

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, 1, x.shape[-1], self.num_classes)
        kernel = self.param("kernel", nn.initializers.normal(0.01), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel[0, 0].astype(self.dtype)
        return jnp.einsum("bhwf,fc->bhwc", x, kernel, preferred_element_type=jnp.float32) + bias


class Classifier(nn.Module):
    """The logits of each position, which are rectified and averaged."""

    num_classes: int
    drop_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        return global_mean(nn.relu(PositionLogits(self.num_classes, self.dtype, name="1")(x)))


class SqueezeNet(ImageModel, kw_only=True):
    """Fires, and no dense layers. Images have at least 21x21 pixels, those of 1.1 17x17.

    `features` averages the last map. The logits come from the map itself, rectified at each position before they are
    averaged; `classify` takes features as a map of a single position, so that it gives them only nearly.

    Attributes:
        drop_rate: probability of dropping a unit before the classifier, in training.
        stem: width and kernel of the first convolution.
        fires: width of each Fire, `POOL` for max pooling.
    """

    residual = False

    drop_rate: float = 0.5
    stem: tuple[int, int]
    fires: tuple[int, ...]

    def setup(self) -> None:
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype, kernel_init=squeezenet_init)
        self.convolutions = Convolutions(self.stem, self.fires, conv, name="features")
        if self.num_classes:
            self.classifier = Classifier(self.num_classes, self.drop_rate, self.dtype)

    @property
    def gradcam_layer(self) -> str:
        return f"features/{len(self.fires) + 1}"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        return self.convolutions(self.prepare(images))

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return global_mean(self.feature_maps(images, train=train)[16])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.classifier(features[:, None, None], train)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if not self.num_classes:
            return self.features(images, train=train)
        x = self.feature_maps(images, train=train)[16]
        capture_beside(self, lambda: global_mean(x), "features")
        return capture(self, self.classifier(x, train), "logits")


# stem, fires
VARIANTS: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "squeezenet1_0": ((96, 7), (POOL, 16, 16, 32, POOL, 32, 48, 48, 64, POOL, 64)),
    "squeezenet1_1": ((64, 3), (POOL, 16, 16, POOL, 32, 32, POOL, 48, 48, 64, 64)),
}
for _name, (_stem, _fires) in VARIANTS.items():
    registry.register(
        _name,
        functools.partial(SqueezeNet, stem=_stem, fires=_fires),
        registry.InputSpec(interpolation="bilinear"),
        library="torchvision",
    )
