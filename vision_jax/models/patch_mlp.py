"""A small network for digits that learns to withstand attacks: each patch is judged by itself before all are seen."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.layers import Classifier, Conv, ImageModel, capture, conv_init, dense_init


class PatchMlp(ImageModel, kw_only=True):
    """A linear embedding of patches, two layers that every patch goes through by itself, and one over all of them.

    An attack in linf changes every pixel by a little. What is far from the thresholds of the layers of a patch is not
    changed by it, and does not add up over the image, as it does in a layer that sees all pixels at once. Images of one
    size alone: the last layer has a weight for each position.

    Attributes:
        patch_size: of the embedding's convolution, in pixels.
        embed_dim: channels of the embedding; there is no nonlinearity between it and the next layer.
        patch_dims: units of the layers of each patch.
        hidden_dim: units of the layer over all patches.
    """

    residual = False

    num_classes: int = 10
    in_channels: int = 1
    patch_size: int = 4
    embed_dim: int = 4
    patch_dims: tuple[int, int] = (16, 4)
    hidden_dim: int = 512

    def setup(self) -> None:
        size = self.patch_size
        self.embed = Conv(
            self.embed_dim, size, size, padding=0, use_bias=True, dtype=self.dtype, kernel_init=dense_init
        )
        first, second = self.patch_dims
        self.patch1 = nn.Dense(first, dtype=self.dtype, kernel_init=conv_init)
        self.patch2 = nn.Dense(second, dtype=self.dtype, kernel_init=conv_init)
        self.fc1 = nn.Dense(self.hidden_dim, dtype=self.dtype, kernel_init=dense_init)
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.fc2 = Classifier(self.num_classes, kernel_init=dense_init)

    @property
    def gradcam_layer(self) -> str:
        return "patch2"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        x = capture(self, self.embed(self.prepare(images)), "embed")
        x = capture(self, nn.relu(self.patch1(x)), "patch1")
        return {self.patch_size: capture(self, nn.relu(self.patch2(x)), "patch2")}

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self.feature_maps(images, train=train)[self.patch_size]
        return nn.relu(self.fc1(x.reshape(x.shape[0], -1))).astype(jnp.float32)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.fc2(self.dropout(features, deterministic=not train))


registry.register("patch_mlp", PatchMlp, registry.InputSpec(32, (0.5,), (0.5,), "bilinear", 1.0, 1), library="")
