"""Adversarial training: classification of images that an attack has changed to be classified wrongly.

The attack is part of the step (`targets`), with the parameters before the update, in the model's compute dtype, on
images in [0, 1] as augmentation and mixing have left them; normalization belongs to the attacked function. `trades`,
`advprop` and `free_adversarial` have the methods that are more than an attack before the loss.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from vision_jax import attacks, augment
from vision_jax.attacks import base
from vision_jax.attacks.ascent import STARTS, ascend, first_iterate
from vision_jax.errors import ConfigError, suggest
from vision_jax.metrics import in_top_k
from vision_jax.objectives.base import Out, Progress, Variables, Views, check_ranges, total
from vision_jax.objectives.classification import Classification

ATTACKS = ("pgd", "apgd")
MODES = ("eval", "train")
WARMUPS = ("radius", "step")


class Perturbed(NamedTuple):
    """What an attack has found, and left behind.

    Attributes:
        images: (rows, height, width, channels) float32 in [0, 1].
        moved: by how much the attack's forward passes have moved each of the batch statistics; () in evaluation mode.
    """

    images: jax.Array
    moved: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perturbing(Classification):
    """What classification of perturbed images shares: the radius, its warm-up, and images in [0, 1].

    Label smoothing, Mixup and CutMix act on the targets, which both the attack and the training then use, as in ARES
    and Revisiting AT.

    Attributes:
        eps: the radius, of images in [0, 1].
        relative_step: the length of a step of the attack, as a share of the radius.
        warmup_epochs: epochs in which the radius rises linearly from 0. 0: it is always `eps`.
        warmup: what rises: the radius, and the step with it; or the step alone, as in ARES.
    """

    eps: float = 4 / 255
    relative_step: float = 1.0
    warmup_epochs: float = 0.0
    warmup: str = "radius"

    def __post_init__(self) -> None:
        check_ranges(self, positive=("eps", "relative_step"), not_negative=("warmup_epochs",))
        self.check_choice("warmup", WARMUPS)
        if getattr(self, "norm", "linf") == "linf":  # free adversarial training has no other
            self.check_radius()

    def check_choice(self, name: str, known: tuple[str, ...]) -> None:
        """Checks an option that is a name.

        Raises:
            ConfigError: if it is none of those that are known.
        """
        value = getattr(self, name)
        if value not in known:
            raise ConfigError(f"objective.{name} is {value!r}: {suggest(str(value), known)}")

    def check_radius(self) -> None:
        """Checks that the radius can be one in linf of images in [0, 1], as `attacks.parse_epsilon` does.

        Raises:
            ConfigError: if not.
        """
        if self.eps > 0.5:
            levels = f", such as {self.eps / 255:.4g} for {self.eps:g}/255" if 1 <= self.eps <= 127 else ""
            raise ConfigError(
                f"objective.eps is {self.eps:g} of pixels in [0, 1]: above 0.5, any image may become gray. Give 0.5 or "
                f"less{levels}."
            )

    def radius(self, progress: Progress) -> tuple[jax.Array, jax.Array]:
        """Returns the radius and the length of a step at some progress, () float32 each."""
        share = jnp.minimum(1.0, progress.epoch / self.warmup_epochs) if self.warmup_epochs else jnp.float32(1)
        radius = self.eps * (share if self.warmup == "radius" else jnp.float32(1))
        return radius, self.relative_step * self.eps * share

    def pixels(self, views: Views) -> jax.Array:
        """Returns images in [0, 1], (rows, height, width, channels) float32.

        What is outside of it, such as the noise of random erasing, is clipped.
        """
        mean, std = (jnp.asarray(values, jnp.float32) for values in (self.setup.mean, self.setup.std))
        return jnp.clip(views["image"].astype(jnp.float32) * std + mean, 0, 1)

    def normalized(self, pixels: jax.Array) -> jax.Array:
        """Returns what the model takes, of images in [0, 1]."""
        return augment.normalize(255 * pixels, self.setup.mean, self.setup.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversarial(Perturbing):
    """Adversarial training (Madry et al. 2018, arXiv:1706.06083): the loss of adversarial images alone.

    The defaults are those of MadryLab/robustness: three steps, and the best iterate. Fast adversarial training (Wong et
    al. 2020, arXiv:2001.03994) is `steps=1, relative_step=1.25, start="ball", best_iterate=False, mode="train"`.

    In evaluation mode the attacked model has running statistics and no dropout, as in MadryLab/robustness, TRADES and
    Revisiting AT; in training mode it has the batch's statistics, and its forward passes move the running ones, as in
    Fast AT and in Madry's own code.

    Attributes:
        norm: linf or l2.
        attack: pgd; or apgd, with steps whose length it finds itself, as Revisiting AT has it.
        steps: of the attack.
        relative_step: see `Perturbing`; of pgd.
        start: where pgd begins: image, ball or noise; see `attacks.ascent.first_iterate`. apgd begins at the image.
        best_iterate: take the iterate of the highest loss, at the cost of one forward pass; apgd always does.
        mode: of the attacked model: eval or train.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "robust_top1": True}

    norm: str = "linf"
    attack: str = "pgd"
    steps: int = 3
    relative_step: float = 2 / 3
    start: str = "image"
    best_iterate: bool = True
    mode: str = "eval"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, positive=("steps",))
        for name, known in (("norm", base.NORMS), ("attack", ATTACKS), ("start", STARTS), ("mode", MODES)):
            self.check_choice(name, known)
        if self.attack == "apgd" and (self.mode, self.loss_name) != ("eval", "softmax"):
            raise ConfigError(
                f"objective.attack is apgd, which takes objective.mode=eval and loss.name=softmax, not "
                f"{self.mode} and {self.loss_name}: set them so, or take pgd."
            )

    def attacked(self, variables: Variables) -> Variables:
        """Returns the variables of the network that is attacked."""
        return variables

    def goal(self, variables: Variables, pixels: jax.Array, views: Views) -> jax.Array:
        """Returns the soft targets whose loss the attack maximizes, (rows, classes) float32."""
        del variables, pixels
        return views["target"]

    def attack_loss(self, logits: jax.Array, goal: jax.Array) -> jax.Array:
        """Returns what the attack maximizes, (rows,): by default, the loss of the training."""
        return self.loss_of(logits, goal)

    def targets(
        self,
        variables: Variables,
        average: Variables | None,
        extra: Any,
        frozen: Mapping[str, Any],
        views: Views,
        key: jax.Array,
        progress: Progress,
        *,
        train: bool = True,
    ) -> Perturbed:
        del average, extra, frozen
        variables = self.attacked(variables)
        pixels = self.pixels(views)
        goal = jax.lax.stop_gradient(self.goal(variables, pixels, views))
        radius, step_size = self.radius(progress)
        if self.attack == "apgd":
            apply = attacks.classifier(self.setup.model, variables, self.setup.mean, self.setup.std)
            options: dict[str, Any] = {"norm": self.norm, "steps": self.steps, "start": pixels, "best_loss": True}
            return Perturbed(attacks.apgd(apply, pixels, goal, eps=radius, **options).images, ())
        in_training = train and self.mode == "train"

        def losses_of(perturbed: jax.Array, stats: Any, number: jax.Array | int) -> tuple[jax.Array, Any]:
            given, images = {**variables, "batch_stats": stats}, self.normalized(perturbed)
            logits, updates = self.forward(given, images, jax.random.fold_in(key, number), train=in_training)
            return self.attack_loss(logits, goal), updates.get("batch_stats", stats)

        keys = base.keys_of(jax.random.fold_in(key, self.steps + 1), len(pixels))
        before = variables.get("batch_stats", {})
        images, after = ascend(
            losses_of,
            pixels,
            first_iterate(pixels, keys, self.start, eps=radius, norm=self.norm),
            before,
            eps=radius,
            step_size=step_size,
            norm=self.norm,
            steps=self.steps,
            best_iterate=self.best_iterate,
        )
        return Perturbed(images, jax.tree.map(jnp.subtract, after, before) if in_training else ())

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del progress
        variables = moved(variables, targets.moved)
        logits, auxiliary, updates = self.logits(variables, self.normalized(targets.images), key, train=train)
        mask = None if train else views["mask"]
        value, weight = self.label_loss(logits, auxiliary, views["target"], mask)
        return Out(value, weight, updates, {"robust_top1": total(in_top_k(logits, views["label"], 1), mask)})


def moved(variables: Variables, by: Any) -> Variables:
    """Returns variables whose batch statistics have moved by so much; () leaves them as they are.

    They are moved, and not set, since those of the micro-batches before are in `variables` already.
    """
    if not jax.tree.leaves(by):
        return variables
    return {**variables, "batch_stats": jax.tree.map(jnp.add, variables["batch_stats"], by)}
