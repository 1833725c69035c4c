"""Metrics as sums over examples, so that batches, hosts and padding add up exactly."""

import jax
import jax.numpy as jnp

from vision_jax.losses import softmax_cross_entropy


def in_top_k(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Returns whether the label is among the top k classes: (batch,) bool; False for NaN.

    Ties go to the class with the lower number, as in argmax: bfloat16 logits have many ties, and counting all of them
    as hits would add a tenth of a percent on ImageNet.
    """
    label_logits = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1]) < labels[:, None]
    better = ~(logits <= label_logits) | ((logits == label_logits) & before)
    return jnp.sum(better, axis=-1) < jnp.where(jnp.isnan(label_logits[:, 0]), 0, k)


def classification_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Returns the sums of cross-entropy (no smoothing), top-1 and top-5 hits, and examples where `mask` is 1.

    Args:
        logits: (batch, classes).
        labels: (batch,) integers.
        mask: (batch,) of 1 for examples and 0 for padding.

    Returns:
        () each, under loss, top1, top5, float32, and count, int32.
    """
    values = {
        "loss": softmax_cross_entropy(logits, labels),
        "top1": in_top_k(logits, labels, 1),
        "top5": in_top_k(logits, labels, 5),
    }
    sums = {name: jnp.sum(jnp.where(mask > 0, value.astype(jnp.float32), 0.0)) for name, value in values.items()}
    return {**sums, "count": jnp.sum(mask > 0, dtype=jnp.int32)}
