"""Robust accuracy: attacks one after another, each on the images that are not fooled yet; AutoAttack is such a row."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.attacks import base
from vision_jax.attacks.apgd import apgd
from vision_jax.attacks.base import Apply, Attacked
from vision_jax.attacks.fab import fab
from vision_jax.attacks.losses import LOSSES
from vision_jax.attacks.square import square
from vision_jax.errors import ConfigError, suggest

log = logging.getLogger(__name__)

_TARGETS = 9
_EOT = 20  # samples of a random model in each step of AutoAttack's version for these
_STRONGER = 0.002  # by how much Square may lower the accuracy that gradients have left, before that is told
_ROUNDING = 1e-5  # relative, of distances
CLEAN = -1  # of `Robustness.fooled_by`: wrong without an attack
NOTHING = -2  # not fooled


class Stage(NamedTuple):
    """An attack of a row of them.

    Attributes:
        name: for a person.
        run: (apply, images, labels, keys, *, eps, norm) -> Attacked, and `target` with `targets`.
        targets: how many classes are taken as targets in turn, by the logits of the clean image; 0: untargeted.
        black_box: whether it uses no gradients.
    """

    name: str
    run: Callable[..., Attacked]
    targets: int = 0
    black_box: bool = False


@dataclasses.dataclass(frozen=True)
class Robustness:
    """What attacks have found, one entry an image.

    Attributes:
        attacks: their names, in the order in which they ran.
        fooled_by: (n,) integers: the number of the attack that fooled the model, `CLEAN` or `NOTHING`.
        images: (n, height, width, channels) float32: what fooled the model; else the clean image.
        warnings: why the accuracies may be too high.
    """

    attacks: tuple[str, ...]
    fooled_by: np.ndarray
    images: np.ndarray
    warnings: tuple[str, ...] = ()

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
        left = [(self.fooled_by == NOTHING) | (self.fooled_by > number) for number in range(len(self.attacks))]
        return {name: float(np.mean(right)) for name, right in zip(self.attacks, left, strict=True)}


def stages_of_autoattack(classes: int, version: str = "standard") -> tuple[Stage, ...]:
    """Returns AutoAttack (Croce and Hein 2020, arXiv:2003.01690), as fra31/auto-attack has it for linf and l2.

    `standard` is APGD with the cross-entropy (100 steps), APGD with the targeted DLR loss and FAB (9 targets, 100 steps
    each), and Square (5000 queries). `rand`, for models that are random themselves, is APGD with the cross-entropy and
    with the DLR loss, with gradients averaged over 20 samples.

    Args:
        classes: of the model. With fewer than ten, all others are targets. The DLR losses are left out where they are
            not defined, with fewer than three classes, and than four for the targeted one.
        version: standard or rand.

    Raises:
        ConfigError: if the version is unknown.
    """
    targets = min(_TARGETS, classes - 1)

    def of_loss(loss: str, **options: Any) -> Callable[..., Attacked]:
        return functools.partial(apgd, loss=loss, until_fooled=True, **options)

    if version == "rand":
        found = (Stage("apgd-ce", of_loss("ce", eot=_EOT)), Stage("apgd-dlr", of_loss("dlr", eot=_EOT)))
        return found if classes > 2 else found[:1]
    if version != "standard":
        raise ConfigError(f"The version of AutoAttack is {version!r}: {suggest(version, ('standard', 'rand'))}")
    return (
        Stage("apgd-ce", of_loss("ce")),
        *([Stage("apgd-t", of_loss("dlr-targeted"), targets)] if classes > 3 else []),
        Stage("fab-t", fab, targets),
        Stage("square", square, black_box=True),
    )


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
    return evaluate_robustness(apply, images, labels, key, stages, eps=eps, norm=norm, **given)


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
    for number, stage in enumerate(stages):
        run.attack(number, stage)
    return Robustness(tuple(stage.name for stage in stages), run.fooled_by, run.adversarial, tuple(run.warnings))


@base.compiled("norm")
def _judge(
    apply: Apply, images: jax.Array, perturbed: jax.Array, labels: jax.Array, *key: jax.Array, norm: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the logits of perturbed images, whether these are wrong, and how far they are away."""
    logits = apply(perturbed, *key).astype(jnp.float32)
    return logits, logits.argmax(1) != labels, base.size(perturbed - images, norm)


@base.compiled()
def _no_gradient(apply: Apply, images: jax.Array, labels: jax.Array, *key: jax.Array) -> jax.Array:
    """Returns for which images the gradient of the cross-entropy is zero."""

    def loss(images: jax.Array) -> jax.Array:
        return LOSSES["ce"](apply(images, *key).astype(jnp.float32), labels, labels).sum()

    return base.size(jax.grad(loss)(images), "linf") == 0


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)


class _Run:
    """The state of `evaluate_robustness`; its arguments in their order."""

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
        self.warnings: list[str] = []
        self._order = self._look_at_clean()

    def attack(self, number: int, stage: Stage) -> None:
        """Attacks what is not fooled yet."""
        before = np.mean(self.fooled_by == NOTHING)
        key = jax.random.fold_in(self._key, 1 + number)
        for rank in range(max(stage.targets, 1)):
            for rows in self._batches(self.fooled_by == NOTHING):
                images, labels = self._place(rows)
                keys = base.fold_in(base.numbered_keys(key, rows), rank)
                given = {"target": jnp.asarray(self._order[rows, rank])} if stage.targets else {}
                found = stage.run(self._apply, images, labels, keys, eps=self._eps, norm=self._norm, **given)
                _, fooled, distance = self._judge(images, found.images, labels, jax.random.fold_in(key, rank))
                fooled = np.asarray(fooled) & (np.asarray(distance) <= self._eps * (1 + _ROUNDING) + 1e-7)
                self.adversarial[rows[fooled]] = np.asarray(found.images)[fooled]
                self.fooled_by[rows[fooled]] = number
        after = np.mean(self.fooled_by == NOTHING)
        log.info("%s: %.2f %% of %d images are right", stage.name, 100 * after, len(self._images))
        if stage.black_box and number and before - after > _STRONGER:
            self._warn(
                f"{stage.name}, which uses no gradients, lowers the accuracy from {before:.2%} to {after:.2%} after "
                "attacks that do: gradients may be masked, and the robust accuracy too high."
            )

    def _look_at_clean(self) -> np.ndarray:
        """Notes which images are wrong, and returns the other classes of each by their logits, the largest first."""
        order, vanishing, sums = [], 0, []
        for number, rows in enumerate(self._batches(np.ones(len(self._images), bool))):
            images, labels = self._place(rows)
            logits, wrong, _ = self._judge(images, images, labels, self._key)
            self.fooled_by[rows[np.asarray(wrong)]] = CLEAN
            count = min(_TARGETS, logits.shape[1] - 1)
            order.append((rows, np.asarray(base.others_by_logit(logits, labels, count))))
            scores = np.asarray(logits)
            sums.append(bool((scores >= 0).all()) and np.allclose(scores.sum(1), 1, atol=1e-3))
            if number == 0:
                more = [self._key] if self._random else []
                vanishing = len(np.unique(rows[np.asarray(_no_gradient(self._apply, images, labels, *more))]))
                seen = len(np.unique(rows))
        if all(sums):
            self._warn("The model seems to return probabilities: attacks need logits, and do not work well without.")
        if vanishing:
            self._warn(
                f"The gradient of the cross-entropy is zero for {vanishing} of {seen} images: gradients are masked, "
                "and the robust accuracy may be too high."
            )
        found = np.zeros((len(self._images), order[0][1].shape[1]), np.int32)
        for rows, others in order:
            found[rows] = others
        return found

    def _judge(self, images: jax.Array, perturbed: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        more = [key] if self._random else []
        return _judge(self._apply, images, perturbed, labels, *more, norm=self._norm)

    def _batches(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the numbers of wanted images in batches of one size; the last one is filled up with its first."""
        rows = np.flatnonzero(wanted)
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            yield np.concatenate([batch, np.full(self._batch_size - len(batch), batch[0])])

    def _place(self, rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        batch = _pixels(self._images[rows]), np.asarray(self._labels[rows], np.int32)
        return jax.device_put(batch, self._sharding)

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        self.warnings.append(text)
