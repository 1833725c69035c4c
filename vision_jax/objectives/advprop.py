"""AdvProp: adversarial images as more training data, with norms of their own."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError
from vision_jax.metrics import in_top_k
from vision_jax.objectives.adversarial import Adversarial, moved
from vision_jax.objectives.base import Out, Progress, Rows, Variables, Views, total

AUXILIARY = "auxiliary"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdvProp(Adversarial):
    """AdvProp (Xie et al. 2020, arXiv:1911.09665): the loss of images and that of adversarial ones, added up.

    Adversarial images, and the attack that makes them, have a second set of batch norms: `params["auxiliary"]` and
    `batch_stats["auxiliary"]` have the norms' scales, biases and statistics, by the paths of the first ones. All else
    is shared. What is evaluated and exported is the network with the first set.

    The defaults are those of ARES: one step of 1/255 from a random start.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "top1": True, "robust_top1": True}

    eps: float = 1 / 255
    steps: int = 1
    relative_step: float = 1.0
    start: str = "ball"
    best_iterate: bool = False

    def init(self, key: jax.Array, inputs: Rows) -> dict[str, Any]:
        variables = super().init(key, inputs)
        stats = variables.get("batch_stats", {})
        if not jax.tree.leaves(stats):
            raise ConfigError(
                "The objective advprop has two sets of batch norms, and the model has none: take a model with batch "
                "norm, such as resnet50, or the objective adversarial."
            )
        params = variables["params"]
        return {
            "params": {**params, AUXILIARY: _norms(params, stats)},
            "batch_stats": {**stats, AUXILIARY: jax.tree.map(jnp.copy, stats)},
        }

    def attacked(self, variables: Variables) -> Variables:
        params, stats = variables["params"], variables["batch_stats"]
        return {**variables, "params": _overlaid(params, params[AUXILIARY]), "batch_stats": stats[AUXILIARY]}

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del progress
        mask = None if train else views["mask"]
        passes = {
            "top1": (variables, self.pixels(views)),
            "robust_top1": (moved(self.attacked(variables), targets.moved), targets.images),
        }
        value, metrics, stats = jnp.float32(0), {}, dict[str, Any]()
        for number, (name, (network, pixels)) in enumerate(passes.items()):
            key_ = jax.random.fold_in(key, number)
            logits, auxiliary, updates = self.logits(network, self.normalized(pixels), key_, train=train)
            part, weight = self.label_loss(logits, auxiliary, views["target"], mask)
            value += part
            metrics[name] = total(in_top_k(logits, views["label"], 1), mask)
            stats[name] = updates.get("batch_stats")
        updates = {"batch_stats": {**stats["top1"], AUXILIARY: stats["robust_top1"]}} if train else {}
        return Out(value, weight, updates, metrics)


def _norms(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the modules that have statistics, in the same nested dicts."""
    found = {}
    for name, below in stats.items():
        if name in params:
            inner = any(isinstance(value, Mapping) for value in below.values())
            found[name] = _norms(params[name], below) if inner else jax.tree.map(jnp.copy, params[name])
    return found


def _overlaid(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts with the leaves of `other` where it has any, and without the second set itself."""
    overlaid = {}
    for name, value in tree.items():
        if name != AUXILIARY:
            inner = isinstance(value, Mapping) and name in other
            overlaid[name] = _overlaid(value, other[name]) if inner else other.get(name, value)
    return overlaid
