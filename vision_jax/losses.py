"""Losses, one value an example, in float32."""

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns the cross-entropy of softmax(logits) with smoothed labels (Szegedy et al. 2016), as torch defines it.

    With s = label_smoothing and K classes the target is 1 - s + s / K for the label and s / K for each other class.

    Args:
        logits: (batch, classes).
        labels: (batch,) integers.
        label_smoothing: share of the target that is spread evenly over all classes.

    Returns:
        (batch,) float32.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32), label_smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
