"""Losses, one value per example, in float32."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from vision_jax.errors import ConfigError, suggest

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def smooth_targets(labels: jax.Array, num_classes: int, label_smoothing: float = 0.0) -> jax.Array:
    """Returns targets with label smoothing (Szegedy et al. 2016), as torch defines it.

    With s = label_smoothing and K classes the target is 1 - s + s / K for the label and s / K for each other class.

    Args:
        labels: (batch,) integers.
        num_classes: K.
        label_smoothing: share of the target that is spread evenly over all classes.

    Returns:
        (batch, num_classes) float32.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), label_smoothing)


def softmax_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, class_weights: jax.Array | None = None
) -> jax.Array:
    """Returns the cross-entropy of softmax(logits) with labels or with soft targets.

    Args:
        logits: (batch, classes).
        targets: (batch,) integers, or (batch, classes) float of sum 1.
        class_weights: weight of each class, (classes,); None: all 1.

    Returns:
        (batch,) float32.
    """
    if targets.ndim == 1:
        targets = smooth_targets(targets, logits.shape[-1])
    if class_weights is not None:
        targets = class_weights * targets
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def sigmoid_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    threshold: float | None = None,
    sum_classes: bool = False,
    class_weights: jax.Array | None = None,
) -> jax.Array:
    """Returns the binary cross-entropy of each class, sigmoid(logits) being its probability.

    Classes are independent, so a mixed image may belong to several (Beyer et al. 2020, arXiv:2006.07159; Wightman et
    al. 2021, arXiv:2110.00476).

    Args:
        logits: (batch, classes).
        targets: (batch, classes) float, between 0 and 1.
        threshold: binarize targets at this value; None: leave them as they are.
        sum_classes: sum over the classes, as in google-research/big_vision; False: mean, as in timm and DeiT III.
        class_weights: weight of each class, (classes,); None: all 1.

    Returns:
        (batch,) float32.
    """
    if threshold is not None:
        targets = (targets > threshold).astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)
    if class_weights is not None:
        losses = class_weights * losses
    return losses.sum(-1) if sum_classes else losses.mean(-1)


def create_loss(
    name: str, *, threshold: float | None = None, sum_classes: bool = False, class_weights: Sequence[float] = ()
) -> Loss:
    """Returns a loss by its name.

    Args:
        name: "softmax" or "sigmoid", for `softmax_cross_entropy` or `sigmoid_cross_entropy`.
        threshold, sum_classes: of `sigmoid_cross_entropy`.
        class_weights: weight of each class, (classes,), like torch's `weight` for soft targets: the result is not
            divided by their sum. (): all 1.

    Returns:
        (logits, targets) -> losses: (batch, classes) both, and (batch,) float32.

    Raises:
        ConfigError: for another name.
    """
    weights = jnp.asarray(class_weights, jnp.float32) if len(class_weights) else None
    losses: dict[str, Loss] = {
        "softmax": functools.partial(softmax_cross_entropy, class_weights=weights),
        "sigmoid": functools.partial(
            sigmoid_cross_entropy, threshold=threshold, sum_classes=sum_classes, class_weights=weights
        ),
    }
    if name not in losses:
        raise ConfigError(f"There is no loss {name!r}: {suggest(name, list(losses))}")
    return losses[name]


def distillation_loss(logits: jax.Array, teacher_logits: jax.Array, *, kind: str, temperature: float) -> jax.Array:
    """Returns the distillation loss of a student's logits.

    - soft: temperature^2 * KL(softmax(teacher_logits / temperature) || softmax(logits / temperature))
      (Hinton et al. 2015, arXiv:1503.02531)
    - hard: the cross-entropy of softmax(logits) with the teacher's top class (Touvron et al. 2020, arXiv:2012.12877)

    Args:
        logits, teacher_logits: (batch, classes); the teacher gets no gradient.
        kind: "soft" or "hard".
        temperature: above 1, the teacher's less likely classes count more.

    Returns:
        (batch,) float32.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits.astype(jnp.float32))
    if kind == "hard":
        return softmax_cross_entropy(logits, jnp.argmax(teacher_logits, axis=-1))
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    log_teacher = jax.nn.log_softmax(teacher_logits / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_p), axis=-1)


def clip_loss(images: jax.Array, texts: jax.Array, log_scale: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns CLIP's loss of pairs (Radford et al. 2021, arXiv:2103.00020, figure 3): which text is of which image?

    It is the mean of two cross-entropies: of the texts of each image, and of the images of each text. Within `jax.jit`,
    the batch is the global one, wherever its rows lie: all pairs of all devices count.

    Args:
        images, texts: (batch, features) embeddings, whose lengths do not matter.
        log_scale: logarithm of what the cosines are multiplied by.
        mask: (batch,), 0 for pairs that do not count, also not for the others; None: all count.

    Returns:
        (batch,) float32.
    """
    logits = jnp.exp(log_scale) * _cosines(images, texts)
    hidden = 0.0 if mask is None else jnp.where(mask > 0, 0.0, -jnp.inf)
    of_texts = jax.nn.logsumexp(logits + hidden, 1)
    of_images = jax.nn.logsumexp(logits.T + hidden, 1)
    return (of_texts + of_images) / 2 - jnp.diagonal(logits)


def siglip_loss(
    images: jax.Array, texts: jax.Array, log_scale: jax.Array, bias: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Returns SigLIP's loss of pairs (Zhai et al. 2023, arXiv:2303.15343): is this text of this image?

    Of each image it is the sum over the texts of the batch of -log sigmoid(z * (scale * cosine + bias)), where z is 1
    for its own and -1 for the others. Within `jax.jit`, all pairs of all devices count.

    Args:
        images, texts, log_scale, mask: as for `clip_loss`.
        bias: added to the logits.

    Returns:
        (batch,) float32.
    """
    logits = jnp.exp(log_scale) * _cosines(images, texts) + bias
    signs = 2 * jnp.eye(len(logits)) - 1
    losses = -jax.nn.log_sigmoid(signs * logits)
    return (losses if mask is None else jnp.where(mask > 0, losses, 0.0)).sum(1)


def _cosines(images: jax.Array, texts: jax.Array) -> jax.Array:
    """Returns the cosines of all pairs, (images, texts) float32."""

    def unit(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))

    return jnp.matmul(unit(images), unit(texts).T, precision="highest")
