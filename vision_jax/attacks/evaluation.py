"""Robust accuracy: attacks one after another, each on the images that are not fooled yet; AutoAttack is such a row."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.attacks import base, signs
from vision_jax.attacks.base import Apply, Attacked
from vision_jax.attacks.signs import CALLS, CLEAN, NOTHING, Look
from vision_jax.attacks.stages import Stage, lacking, stages_of_autoattack
from vision_jax.errors import ConfigError

log = logging.getLogger(__name__)

_ROUNDING = 1e-5  # relative, of distances


@dataclasses.dataclass(frozen=True)
class Robustness:
    """What attacks have found, one entry an image.

    Attributes:
        stages: the attacks, in the order in which they ran.
        fooled_by: (n,) integers: the number of the attack that fooled the model, `CLEAN` or `NOTHING`.
        images: (n, height, width, channels) float32: what fooled the model; else the clean image.
        warnings: why the accuracies may be too high.
    """

    stages: tuple[Stage, ...]
    fooled_by: np.ndarray
    images: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def attacks(self) -> tuple[str, ...]:
        """The names of the attacks, in the order in which they ran."""
        return tuple(stage.name for stage in self.stages)

    @property
    def clean_accuracy(self) -> float:
        """The share of images that are right without an attack."""
        return float(np.mean(self.fooled_by != CLEAN))

    @property
    def robust_accuracy(self) -> float:
        """The share of images that are right after all attacks."""
        return float(np.mean(self.fooled_by == NOTHING))

    def accuracies(self) -> dict[str, float]:
        """Returns the share of images that are still right after each attack and those before it, by name."""
        return signs.accuracies(self.stages, self.fooled_by)


class Verdict(NamedTuple):
    """What a forward pass says of perturbed images, apart from the attack.

    Attributes:
        predicted: (batch,) int32, the class.
        fooled: (batch,) bool: whether that is wrong, and the image within the radius.
        distance: (batch,) float32, from the clean image.
    """

    predicted: jax.Array
    fooled: jax.Array
    distance: jax.Array


@base.compiled("norm")
def check(
    apply: Apply,
    images: jax.Array,
    perturbed: jax.Array,
    labels: jax.Array,
    eps: float | jax.Array,
    *key: jax.Array,
    norm: str,
) -> Verdict:
    """Returns whether perturbed images fool a model.

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `base.classifier`.
        images, perturbed: (batch, height, width, channels) float32 in [0, 1].
        labels: (batch,) integers.
        eps: the radius.
        *key: for a model that is random itself.
        norm: of the radius.
    """
    predicted, right = signs.judge(apply(perturbed, *key).astype(jnp.float32), labels)
    distance = base.size(perturbed - images, norm)
    return Verdict(predicted, ~right & (distance <= eps * (1 + _ROUNDING) + 1e-7), distance)


def keys_of_pass(key: jax.Array, number: int | jax.Array, rank: int | jax.Array, images: Any) -> jax.Array:
    """Returns the random keys of images in one pass of an attack, (batch,).

    Args:
        key: of the evaluation.
        number: of the attack.
        rank: of the target; 0: the first, or there are none.
        images: (batch,) integers, the numbers of the images in the whole set.
    """
    return base.fold_in(base.numbered_keys(jax.random.fold_in(key, 1 + number), images), rank)


def autoattack(
    apply: Apply,
    images: np.ndarray,
    labels: np.ndarray,
    key: jax.Array,
    *,
    eps: float,
    norm: str = "linf",
    version: str = "standard",
    batch_size: int = 250,
    sharding: jax.sharding.Sharding | None = None,
) -> Robustness:
    """Returns the robustness under AutoAttack; see `stages_of_autoattack` and `evaluate_robustness`.

    With the version `rand`, `apply` takes a random key after the images.
    """
    example, random = _pixels(images[:1]), version == "rand"
    classes = base.count_classes(apply, example, *([key] if random else []))
    stages = stages_of_autoattack(classes, version)
    given: dict[str, Any] = {"batch_size": batch_size, "sharding": sharding, "random": random}
    found = evaluate_robustness(apply, images, labels, key, stages, eps=eps, norm=norm, **given)
    return dataclasses.replace(found, warnings=(*lacking(classes, version), *found.warnings))


def evaluate_robustness(
    apply: Apply,
    images: np.ndarray,
    labels: np.ndarray,
    key: jax.Array,
    stages: Sequence[Stage],
    *,
    eps: float,
    norm: str = "linf",
    batch_size: int = 250,
    random: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> Robustness:
    """Attacks images, each by one attack after another until it is fooled, in batches of those that are left.

    An image counts as fooled if a forward pass of its own, apart from the attack, says so, and if it is within the
    radius. An image's random numbers depend on its place in `images` and on the attack, not on the batches.

    Args:
        apply: images in [0, 1] -> logits (batch, classes), see `classifier`; if `random`, (images, key) -> logits.
        images: (n, height, width, channels) uint8, or float in [0, 1]; in host memory.
        labels: (n,) integers.
        key: a random key.
        stages: the attacks.
        eps: the radius, of images in [0, 1].
        norm: linf or l2.
        batch_size: images that are attacked at once.
        random: whether the model is random itself.
        sharding: how a batch is divided over devices; `batch_size` must fit it. None: one device.

    Raises:
        ConfigError: if there are no images, or pixels are outside of [0, 1].
    """
    if not len(images) or len(images) != len(labels):
        raise ConfigError(f"There are {len(images)} images and {len(labels)} labels to attack: give as many of both.")
    if images.dtype != np.uint8 and not (np.min(images) >= 0 and np.max(images) <= 1):
        raise ConfigError(
            f"Pixels are from {np.min(images):.4g} to {np.max(images):.4g}: attacks need images in [0, 1], before they "
            "are normalized, or uint8."
        )
    if sharding is None:
        batch_size = min(batch_size, len(images))
    run = _Run(apply, images, np.asarray(labels), key, eps, norm, batch_size, random, sharding)
    warnings = run.look()
    for number, stage in enumerate(stages):
        run.attack(number, stage)
    warnings += signs.of_attacks(stages, run.fooled_by)
    for text in warnings:
        log.warning("%s", text)
    return Robustness(tuple(stages), run.fooled_by, run.adversarial, tuple(warnings))


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)


class _Run:
    """The state of `evaluate_robustness`; its arguments in their order."""

    _seen: Look

    def __init__(
        self,
        apply: Apply,
        images: np.ndarray,
        labels: np.ndarray,
        key: jax.Array,
        eps: float,
        norm: str,
        batch_size: int,
        random: bool,
        sharding: jax.sharding.Sharding | None,
    ):
        self._apply, self._images, self._labels, self._key = apply, images, labels, key
        self._eps, self._norm, self._batch_size = eps, norm, batch_size
        self._random, self._sharding = random, sharding
        self.adversarial = _pixels(images)
        self.fooled_by = np.full(len(images), NOTHING)

    def look(self) -> list[str]:
        """Notes which images are wrong without an attack, and returns the signs that clean images show."""
        parts: list[Look] = []
        calls: list[np.ndarray] = []
        for rows in self._batches(np.ones(len(self._images), bool)):
            images, labels = self._place(rows)
            more = self._more(self._key)
            seen = signs.look(self._apply, images, labels, *more)
            parts.append(jax.tree.map(np.asarray, seen))
            if not calls:
                again = [self._more(jax.random.fold_in(self._key, number)) for number in range(1, CALLS)]
                calls = [np.asarray(signs.look(self._apply, images, labels, *more).best) for more in [more, *again]]
        self._seen = Look(*(np.concatenate(values)[: len(self._images)] for values in zip(*parts, strict=True)))
        self.fooled_by[~self._seen.right] = CLEAN
        return signs.of_model(self._seen, calls, random=self._random)

    def attack(self, number: int, stage: Stage) -> None:
        """Attacks what is not fooled yet."""
        for rank in range(stage.passes):
            for rows in self._batches(self.fooled_by == NOTHING):
                found, verdict = self._attack_batch(rows, number, stage, rank)
                fooled = np.asarray(verdict.fooled)
                self.adversarial[rows[fooled]] = np.asarray(found.images)[fooled]
                self.fooled_by[rows[fooled]] = number
        left = np.mean(self.fooled_by == NOTHING)
        log.info("%s: %.2f %% of %d images are right", stage.name, 100 * left, len(self._images))

    def _attack_batch(self, rows: np.ndarray, number: int, stage: Stage, rank: int) -> tuple[Attacked, Verdict]:
        images, labels = self._place(rows)
        keys = keys_of_pass(self._key, number, rank, rows)
        given = {"target": jnp.asarray(self._seen.others[rows, rank])} if stage.targets else {}
        found = stage.run(self._apply, images, labels, keys, eps=self._eps, norm=self._norm, **given)
        more = self._more(jax.random.fold_in(jax.random.fold_in(self._key, 1 + number), rank))
        return found, check(self._apply, images, found.images, labels, self._eps, *more, norm=self._norm)

    def _more(self, key: jax.Array) -> list[jax.Array]:
        """Returns what the model takes after the images."""
        return [key] if self._random else []

    def _batches(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the numbers of wanted images in batches of one size; the last one is filled up with its first."""
        rows = np.flatnonzero(wanted)
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            yield np.concatenate([batch, np.full(self._batch_size - len(batch), batch[0])])

    def _place(self, rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        batch = _pixels(self._images[rows]), np.asarray(self._labels[rows], np.int32)
        return jax.device_put(batch, self._sharding)
