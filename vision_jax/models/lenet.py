"""LeNet-5 (LeCun et al. 1998, «Gradient-based learning applied to document recognition»), in its usual modern form:
rectified units, max pooling, and a full second convolution."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models import registry
from vision_jax.models.layers import dense_init


class LeNet5(nn.Module):
    """Two unpadded 5x5 convolutions of 6 and 16 channels, then layers of 120, 84 and `num_classes` units.

    Attributes:
        num_classes: length of the logits; 0: the model gives its features.
        dtype: what it computes in.
    """

    num_classes: int = 10
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.conv1 = nn.Conv(6, (5, 5), padding="VALID", dtype=self.dtype, kernel_init=dense_init)
        self.conv2 = nn.Conv(16, (5, 5), padding="VALID", dtype=self.dtype, kernel_init=dense_init)
        self.fc1 = nn.Dense(120, dtype=self.dtype, kernel_init=dense_init)
        self.fc2 = nn.Dense(84, dtype=self.dtype, kernel_init=dense_init)
        if self.num_classes:
            self.fc3 = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=dense_init)

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the representation before the classifier.

        Args:
            images: (batch, height, width, channels), normalized; 28x28 or 32x32 in the literature, at least 16x16.
            train: has no influence; every model takes it.

        Returns:
            (batch, 84) float32.
        """
        x = nn.max_pool(nn.relu(self.conv1(images.astype(self.dtype))), (2, 2), strides=(2, 2))
        x = nn.max_pool(nn.relu(self.conv2(x)), (2, 2), strides=(2, 2))
        x = nn.relu(self.fc1(x.reshape(x.shape[0], -1)))
        return nn.relu(self.fc2(x)).astype(jnp.float32)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits, (batch, num_classes) float32. Arguments as for `features`."""
        x = self.features(images, train=train)
        return self.fc3(x).astype(jnp.float32) if self.num_classes else x


registry.register("lenet5", LeNet5)
