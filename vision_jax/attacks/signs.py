"""What clean images tell of a model that is to be attacked, and the signs that attacks do not find what there is.

Each is one that fra31/auto-attack checks too (autoattack/checks.py at a392200), and none proves anything: gradients
that vanish, a search without gradients that finds more than one with them, outputs that change from call to call, and
probabilities in place of logits (Athalye et al. 2018, arXiv:1802.00420; Croce and Hein 2020, arXiv:2003.01690).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.attacks import base
from vision_jax.attacks.base import Apply
from vision_jax.attacks.losses import LOSSES
from vision_jax.attacks.stages import TARGETS, Stage

CALLS = 5  # of the same images, to see whether the model is random
_SAME = 1e-4  # by how much the best logit may differ between two calls
_STRONGER = 0.002  # by how much Square may lower the accuracy that gradients have left, before that is told
_LIKELY = 1e-3  # by how much probabilities may miss a sum of 1
CLEAN = -1  # of `fooled_by`: wrong without an attack
NOTHING = -2  # not fooled


class Look(NamedTuple):
    """What a model says of clean images, one entry an image.

    Attributes:
        predicted: (n,) int32, the class.
        right: (n,) bool, whether that is the label, and the logits are finite.
        others: (n, targets) int32: the other classes with the largest logits, the largest first.
        best: (n,) float32: the largest logit.
        no_gradient: (n,) bool: whether the gradient of the cross-entropy is zero.
        probabilities: (n,) bool: whether the logits look like probabilities.
    """

    predicted: jax.Array | np.ndarray
    right: jax.Array | np.ndarray
    others: jax.Array | np.ndarray
    best: jax.Array | np.ndarray
    no_gradient: jax.Array | np.ndarray
    probabilities: jax.Array | np.ndarray


@base.compiled()
def look(apply: Apply, images: jax.Array, labels: jax.Array, *key: jax.Array) -> Look:
    """Returns what a model says of clean images.

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `base.classifier`.
        images: (batch, height, width, channels) float32 in [0, 1].
        labels: (batch,) integers.
        *key: for a model that is random itself.
    """

    def loss(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = apply(images, *key).astype(jnp.float32)
        return LOSSES["ce"](logits, labels, labels).sum(), logits

    gradient, logits = jax.grad(loss, has_aux=True)(images)
    likely = (logits >= 0).all(1) & (jnp.abs(logits.sum(1) - 1) < _LIKELY)
    predicted, right = judge(logits, labels)
    count = min(TARGETS, logits.shape[1] - 1)
    others = base.others_by_logit(logits, labels, count)
    return Look(predicted, right, others, logits.max(1), base.size(gradient, "linf") == 0, likely)


def judge(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the predicted classes, (batch,), and whether these are right; logits that are not finite never are."""
    predicted = logits.argmax(1)
    return predicted, (predicted == labels) & jnp.isfinite(logits).all(1)


def of_model(seen: Look, calls: Sequence[np.ndarray], *, random: bool) -> list[str]:
    """Returns the signs that clean images show.

    Args:
        seen: of all images.
        calls: the largest logits of some images in each of `CALLS` calls; if `random`, with different keys.
        random: whether the model is taken to be random itself.
    """
    found = []
    if seen.probabilities.all():
        found.append("The model seems to return probabilities: attacks need logits, and do not work well without.")
    vanishing, right = int((seen.no_gradient & seen.right).sum()), int(seen.right.sum())
    if vanishing:
        found.append(
            f"The gradient of the cross-entropy is zero for {vanishing} of {right} images: gradients are masked, and "
            "the robust accuracy may be too high."
        )
    changes = max((float(np.abs(one - calls[0]).max(initial=0)) for one in calls[1:]), default=0.0)
    if changes > _SAME and not random:
        found.append(
            f"The model is random: logits of the same images differ by up to {changes:.2g} between calls. Attacks that "
            "do not average gradients are too weak: take autoattack-rand."
        )
    if changes <= _SAME and random and len(calls) > 1:
        found.append(
            "The model is not random: logits of the same images are the same in all calls. The version of AutoAttack "
            "for random models is the weaker one: take autoattack."
        )
    return found


def of_attacks(stages: Sequence[Stage], fooled_by: np.ndarray) -> list[str]:
    """Returns the signs that the success of attacks shows.

    Args:
        stages: the attacks, in the order in which they ran.
        fooled_by: (n,) integers: the number of the attack that fooled the model, `CLEAN` or `NOTHING`.
    """
    found = []
    before = np.mean(fooled_by != CLEAN)
    for number, (stage, after) in enumerate(zip(stages, accuracies(stages, fooled_by).values(), strict=True)):
        if stage.black_box and any(not one.black_box for one in stages[:number]) and before - after > _STRONGER:
            found.append(
                f"{stage.name}, which uses no gradients, lowers the accuracy from {before:.2%} to {after:.2%} after "
                "attacks that do: gradients may be masked, and the robust accuracy too high."
            )
        before = after
    return found


def accuracies(stages: Sequence[Stage], fooled_by: np.ndarray) -> dict[str, float]:
    """Returns the share of images that are still right after each attack and those before it, by name."""
    left = [(fooled_by == NOTHING) | (fooled_by > number) for number in range(len(stages))]
    return {stage.name: float(np.mean(right)) for stage, right in zip(stages, left, strict=True)}
