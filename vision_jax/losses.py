"""Losses, one value an example, in float32."""

import jax
import jax.numpy as jnp
import optax


def smooth_targets(labels: jax.Array, num_classes: int, label_smoothing: float = 0.0) -> jax.Array:
    """Returns what softmax(logits) should be (Szegedy et al. 2016), as torch defines it.

    With s = label_smoothing and K classes the target is 1 - s + s / K for the label and s / K for each other class.

    Args:
        labels: (batch,) integers.
        num_classes: K.
        label_smoothing: share of the target that is spread evenly over all classes.

    Returns:
        (batch, num_classes) float32.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), label_smoothing)


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the cross-entropy of softmax(logits) with labels or with soft targets.

    Args:
        logits: (batch, classes).
        targets: (batch,) integers, or (batch, classes) float of sum 1.

    Returns:
        (batch,) float32.
    """
    if targets.ndim == 1:
        targets = smooth_targets(targets, logits.shape[-1])
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
