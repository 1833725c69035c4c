"""Robust accuracy: of a classifier under an attack, also while it is trained."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vision_jax import attacks
from vision_jax.attacks import base
from vision_jax.attacks.evaluation import Stage
from vision_jax.data import order
from vision_jax.data.sources import SubsetSource
from vision_jax.errors import ConfigError
from vision_jax.evaluators.base import Context, Prefixed, Step, run_pass
from vision_jax.evaluators.logits import LogitsEvaluator
from vision_jax.objectives.base import Objective

_LEAST_CLASSES = 1000  # with so many, every attack is defined; those of a model are known when it is measured
_ROUNDING = 1e-5  # relative, of distances


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Adversarial(LogitsEvaluator):
    """Top-1 without an attack, and `robust_top1`, the share of images that are right without and with it.

    The attack knows the whole model, with `flip` the average over both images. It computes on all devices, in the
    model's dtype; each image counts once. Of several attacks, as in autoattack, an image must withstand all. Random
    numbers depend on the seed and on the image's position in its batch.

    Attributes:
        attack: its name; see `attacks.find_stages`.
        eps: the radius; see `attacks.parse_epsilon`.
        norm: linf or l2.
        examples: how many, chosen at random, always the same ones; 0, or more than there are: all.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"top1": True, "robust_top1": True}

    attack: str = "pgd-20"
    eps: str = "4/255"
    norm: str = "linf"
    examples: int = 1000

    def __post_init__(self) -> None:
        try:
            attacks.find_stages(self.attack, _LEAST_CLASSES)
            attacks.parse_epsilon(self.eps, self.norm)
        except ConfigError as error:
            raise ConfigError(f"attack, eps or norm cannot be used. {error}") from error
        if self.examples < 0:
            raise ConfigError(f"examples is {self.examples}, which must not be negative; 0 is all.")

    @functools.cached_property
    def chosen(self) -> Context:
        """The context with the examples that are attacked."""
        source = self.context.source
        if not 0 < self.examples < len(source):
            return self.context
        chosen = SubsetSource(source, order.subset(len(source), self.examples))
        return dataclasses.replace(self.context, source=chosen)

    def make_step(self, objective: Objective) -> Step:
        """Returns (variables by prefix, batch) -> sums over the examples, () each, under prefix + name."""
        context, eps = self.context, attacks.parse_epsilon(self.eps, self.norm).value
        stages = attacks.find_stages(self.attack, objective.setup.model.num_classes)

        def logits_of(values: Any, images: jax.Array) -> jax.Array:
            apply = attacks.classifier(objective.setup.model, values, context.mean, context.std)
            return (apply(images) + apply(images[:, :, ::-1])) / 2 if self.flip else apply(images)

        def step(variables: Prefixed, batch: Any) -> dict[str, jax.Array]:
            images, labels, mask = batch["image"].astype(jnp.float32) / 255, batch["label"], batch["mask"]
            keys = base.keys_of(jax.random.key(context.seed), len(images))
            sums = {"count": mask.sum()}
            for prefix, values in variables.items():
                apply = jax.tree_util.Partial(logits_of, values)
                logits = apply(images)
                right = logits.argmax(1) == labels
                sums[f"{prefix}top1"] = (mask * right).sum()
                for number, stage in enumerate(stages):
                    given = images, labels, base.fold_in(keys, number), logits
                    right &= ~_fooled(apply, stage, *given, eps=eps, norm=self.norm)
                sums[f"{prefix}robust_top1"] = (mask * right).sum()
            return sums

        return step

    def __call__(self, objective: Objective, variables: Prefixed) -> dict[str, float]:
        variables = dict(variables)
        sums = run_pass(self.chosen, self.compiled(objective, self.make_step, variables), variables)
        count = self.chosen.check_count(int(sums.pop("count")))
        return {"count": count, **{name: float(value) / count for name, value in sums.items()}}


def _fooled(
    apply: attacks.Apply,
    stage: Stage,
    images: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    clean: jax.Array,
    *,
    eps: float,
    norm: str,
) -> jax.Array:
    """Returns whether an attack fools the model, (batch,) bool; for one with targets, with any of them.

    What it finds is judged by a forward pass of its own, and must lie within the radius, as in `evaluate_robustness`.
    """

    def attacked(keys: jax.Array, **target: jax.Array) -> jax.Array:
        found = stage.run(apply, images, labels, keys, eps=eps, norm=norm, **target).images
        within = base.size(found - images, norm) <= eps * (1 + _ROUNDING) + 1e-7
        return (apply(found).argmax(1) != labels) & within

    if not stage.targets:
        return attacked(keys)
    others = base.others_by_logit(clean, labels, stage.targets)

    def with_target(fooled: jax.Array, rank: jax.Array) -> tuple[jax.Array, None]:
        return fooled | attacked(base.fold_in(keys, rank), target=jnp.take(others, rank, axis=1)), None

    return jax.lax.scan(with_target, jnp.zeros(len(images), bool), jnp.arange(stage.targets))[0]
