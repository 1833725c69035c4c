"""What attacks maximize: the cross-entropy, and the ratio of differences of logits of Croce and Hein (2020)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from vision_jax.losses import softmax_cross_entropy


def classes_of(labels: jax.Array) -> jax.Array:
    """Returns the classes of labels, (batch,) integers; of soft ones, (batch, classes), the most likely."""
    return labels if labels.ndim == 1 else labels.argmax(1)


def of_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns the logit of one class of each example, (batch,).

    Args:
        logits: (batch, classes).
        classes: (batch,) integers.
    """
    return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]


def without_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns logits (batch, classes), with minus infinity for one class of each example.

    Args:
        logits: (batch, classes).
        classes: (batch,) integers.
    """
    return jnp.where(jnp.arange(logits.shape[1]) == classes[:, None], -jnp.inf, logits)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns by how much the label's logit exceeds all others, (batch,): not above 0 if the example is fooled.

    Args:
        logits: (batch, classes).
        labels: (batch,) integers.
    """
    return of_class(logits, labels) - without_class(logits, labels).max(1)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the difference of logits ratio (Croce and Hein 2020, arXiv:2003.01690, equation 6), (batch,).

    With the logits in descending order z_1, z_2, ..., it is -(z_label - max of others) / (z_1 - z_3): unlike the
    cross-entropy, neither a shift nor a scaling of the logits changes it, and confidence does not make it vanish.

    Args:
        logits: (batch, classes), 3 classes or more.
        labels: (batch,) integers.
    """
    best, _ = jax.lax.top_k(logits, 3)
    return -margin(logits, labels) / (best[:, 0] - best[:, 2] + 1e-12)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the targeted difference of logits ratio (arXiv:2003.01690, equation 7), (batch,).

    It is -(z_label - z_target) / (z_1 - (z_3 + z_4) / 2), and is maximized too.

    Args:
        logits: (batch, classes), 4 classes or more.
        labels: (batch,) integers.
        targets: (batch,) integers, the classes that the examples are to be taken for.
    """
    best, _ = jax.lax.top_k(logits, 4)
    difference = of_class(logits, labels) - of_class(logits, targets)
    return -difference / (best[:, 0] - (best[:, 2] + best[:, 3]) / 2 + 1e-12)


# By name: (logits, labels, targets) -> (batch,); and how many classes each needs. Of soft labels, (batch, classes), the
# cross-entropy takes all, and the others the most likely class.
LOSSES: Mapping[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "ce": lambda logits, labels, targets: softmax_cross_entropy(logits, labels),
    "dlr": lambda logits, labels, targets: dlr(logits, classes_of(labels)),
    "dlr-targeted": lambda logits, labels, targets: targeted_dlr(logits, classes_of(labels), classes_of(targets)),
}
LEAST_CLASSES: Mapping[str, int] = {"ce": 2, "dlr": 3, "dlr-targeted": 4}
