"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition"), in its usual modern form:
rectified units, max pooling, and a full second convolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.layers import Classifier, ImageModel, capture, dense_init


class LeNet5(ImageModel, kw_only=True):
    """Two unpadded 5x5 convolutions of 6 and 16 channels, then layers of 120, 84 and `num_classes` units.

    Images have at least 16x16 pixels, and 28x28 or 32x32 in the literature.
    """

    residual = False

    num_classes: int = 10
    in_channels: int = 1

    def setup(self) -> None:
        self.conv1 = nn.Conv(6, (5, 5), padding="VALID", dtype=self.dtype, kernel_init=dense_init)
        self.conv2 = nn.Conv(16, (5, 5), padding="VALID", dtype=self.dtype, kernel_init=dense_init)
        self.fc1 = nn.Dense(120, dtype=self.dtype, kernel_init=dense_init)
        self.fc2 = nn.Dense(84, dtype=self.dtype, kernel_init=dense_init)
        self.dropout = nn.Dropout(self.drop_rate)
        if self.num_classes:
            self.fc3 = Classifier(self.num_classes, kernel_init=dense_init)

    @property
    def gradcam_layer(self) -> str:
        return "conv2"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        x = capture(self, nn.relu(self.conv1(self.prepare(images))), "conv1")
        first = capture(self, nn.max_pool(x, (2, 2), strides=(2, 2)), "pool1")
        x = capture(self, nn.relu(self.conv2(first)), "conv2")
        return {2: first, 4: capture(self, nn.max_pool(x, (2, 2), strides=(2, 2)), "pool2")}

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = self.feature_maps(images, train=train)[4]
        x = capture(self, nn.relu(self.fc1(x.reshape(x.shape[0], -1))), "fc1")
        return nn.relu(self.fc2(x)).astype(jnp.float32)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.fc3(self.dropout(features, deterministic=not train))


registry.register("lenet5", LeNet5, registry.InputSpec(28, (0.1307,), (0.3081,), "bilinear", 1.0, 1), library="")
