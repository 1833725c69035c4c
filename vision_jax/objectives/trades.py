"""TRADES and MART: losses of each image together with an adversarial one near it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vision_jax import losses
from vision_jax.errors import ConfigError
from vision_jax.metrics import in_top_k
from vision_jax.objectives.adversarial import Adversarial, moved
from vision_jax.objectives.base import Out, Progress, Variables, Views, check_ranges, total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Adversarial):
    """What learns from images and adversarial ones, each by a forward pass of its own, the clean one first.

    The defaults of the attack are those of TRADES for CIFAR-10, which MART took over.

    Attributes:
        beta: weight of what keeps the two predictions together.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "top1": True, "robust_top1": True}

    eps: float = 0.031
    steps: int = 10
    relative_step: float = 0.007 / 0.031
    start: str = "noise"
    best_iterate: bool = False
    beta: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, not_negative=("beta",))

    def pair_loss(self, clean: jax.Array, adversarial: jax.Array, views: Views) -> jax.Array:
        """Returns the loss of the logits of clean and adversarial images, (rows,)."""
        raise NotImplementedError

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del progress
        variables = moved(variables, targets.moved)
        clean, updates = self.forward(variables, self.normalized(self.pixels(views)), key, train=train)
        variables, other_key = {**variables, **updates}, jax.random.fold_in(key, 1)
        adversarial, updates = self.forward(variables, self.normalized(targets.images), other_key, train=train)
        mask = None if train else views["mask"]
        value, weight = total(self.pair_loss(clean, adversarial, views), mask)
        metrics = {
            name: total(in_top_k(logits, views["label"], 1), mask)
            for name, logits in (("top1", clean), ("robust_top1", adversarial))
        }
        return Out(value, weight, updates, metrics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trades(Pairs):
    """TRADES (Zhang et al. 2019, arXiv:1901.08573): CE(f(x), y) + beta KL(p(x) || p(x')), as yaodongyu/TRADES has it.

    x' maximizes the same divergence from p(x), which is constant for the attack, and has a gradient in the loss. There
    the clean images have a second forward pass, so that running statistics take their statistics in twice.
    """

    def goal(self, variables: Variables, pixels: jax.Array, views: Views) -> jax.Array:
        del views
        logits, _ = self.forward(variables, self.normalized(pixels), jax.random.key(0), train=False)
        return jax.nn.softmax(logits)

    def attack_loss(self, logits: jax.Array, goal: jax.Array) -> jax.Array:
        # The divergence but for the entropy of the goal, which is the same for every iterate.
        return losses.softmax_cross_entropy(logits, goal)

    def pair_loss(self, clean: jax.Array, adversarial: jax.Array, views: Views) -> jax.Array:
        return self.loss_of(clean, views["target"]) + self.beta * divergence(clean, adversarial)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mart(Pairs):
    """MART (Wang et al. 2020, ICLR): a boosted cross-entropy of x', and a KL that counts where x is not sure.

    CE(f(x'), y) - log(1 - max over k != y of p_k(x')) + beta (1 - p_y(x)) KL(p(x) || p(x')), as YisenWang/MART has it,
    where 1 is 1.0001 in the logarithm.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        config = self.setup.augmentation.config
        if config.mixup or config.cutmix:
            raise ConfigError(
                f"augment.mixup is {config.mixup} and augment.cutmix {config.cutmix}, and the objective mart asks how "
                "probable the one class of an image is: set both to 0."
            )

    def pair_loss(self, clean: jax.Array, adversarial: jax.Array, views: Views) -> jax.Array:
        of_label = jnp.arange(clean.shape[1]) == views["label"][:, None]
        probable = jax.nn.softmax(adversarial)
        other = jnp.where(of_label, -jnp.inf, probable).max(1)
        boosted = self.loss_of(adversarial, views["target"]) - jnp.log(1.0001 - other)
        doubt = 1 - jnp.where(of_label, jax.nn.softmax(clean), 0).sum(1)
        return boosted + self.beta * doubt * divergence(clean, adversarial)


def divergence(logits: jax.Array, other: jax.Array) -> jax.Array:
    """Returns KL(softmax(logits) || softmax(other)), (rows,) float32; both have a gradient."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(1)
