"""Layers that several families share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# He et al. 2015, with the fan of the output as torch's reference ResNets have it.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# torch's default for linear layers: uniform within 1 / sqrt(inputs).
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy 2015) over the batch and all positions, with float32 statistics.

    In training, the running statistics become `momentum * old + (1 - momentum) * new`, where the new variance is the
    unbiased one, as torch has it; what normalizes the batch is the biased one. Parameters `scale` and `bias`, and the
    statistics `mean` and `var`, are (channels,) float32.

    Attributes:
        dtype: of the result.
        group_size: examples that share statistics, consecutive ones; 0, or more than there are: the whole global batch,
            whatever its placement.
            The running statistics are those of the groups, averaged.
        momentum: share of the old running statistics that is kept; one minus what torch calls momentum.
        epsilon: added to the variance.
        scale_init: initializer of the scale.
    """

    dtype: Any = jnp.float32
    group_size: int = 0
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalizes x, (batch, ..., channels)."""
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        if not train:
            return self._apply(x, running_mean.value, running_var.value, scale, bias)

        group_size = min(self.group_size or x.shape[0], x.shape[0])
        if x.shape[0] % group_size:
            raise ValueError(f"A batch of {x.shape[0]} examples cannot be normalized in groups of {group_size}.")
        grouped = x.reshape(-1, group_size, *x.shape[1:]).astype(jnp.float32)
        axes = tuple(range(1, grouped.ndim - 1))
        mean = grouped.mean(axes, keepdims=True)
        # One pass over x gives both moments. Float32 makes the variance wrong by some 1e-7 * (mean / deviation)^2 of
        # itself, which matters from ratios of some hundreds on; it can even come out slightly negative.
        var = jnp.maximum(0.0, jnp.square(grouped).mean(axes, keepdims=True) - jnp.square(mean))
        if not self.is_initializing():
            count = grouped.size // (grouped.shape[0] * channels)
            keep, take = self.momentum, 1 - self.momentum
            unbiased = var * (count / max(1, count - 1))
            running_mean.value = keep * running_mean.value + take * mean.reshape(-1, channels).mean(0)
            running_var.value = keep * running_var.value + take * unbiased.reshape(-1, channels).mean(0)
        return self._apply(grouped, mean, var, scale, bias).reshape(x.shape)

    def _apply(self, x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return ((x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias).astype(self.dtype)
