"""Accuracy and cross-entropy of a classifier."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from vision_jax import augment
from vision_jax.evaluators.base import Evaluator, Prefixed, Step, run_pass
from vision_jax.metrics import classification_sums
from vision_jax.objectives.base import Objective


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Classification(Evaluator):
    """Top-1, top-5 and cross-entropy (no smoothing) of the model's logits.

    Attributes:
        flip: average the logits with those of the mirrored image.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"top1": True, "top5": True, "loss": False}

    flip: bool = False

    def make_step(self, objective: Objective) -> Step:
        """Returns (variables by prefix, batch) -> sums over the examples, () each, under prefix + name."""
        model, context = objective.setup.model, self.context

        def step(variables: Prefixed, batch: Any) -> dict[str, jax.Array]:
            images = augment.normalize(batch["image"], context.mean, context.std)
            sums = {}
            for prefix, values in variables.items():
                logits: Any = model.apply(values, images, train=False)
                if self.flip:
                    logits = (logits + model.apply(values, images[:, :, ::-1], train=False)) / 2
                for name, value in classification_sums(logits, batch["label"], batch["mask"]).items():
                    sums[prefix + name] = value
            return sums

        return step

    def __call__(self, objective: Objective, variables: Prefixed) -> dict[str, float]:
        variables = dict(variables)
        sums = run_pass(self.context, self.compiled(objective, self.make_step, variables), variables)
        results: dict[str, float] = {}
        for prefix in variables:
            count = self.check_count(int(sums[f"{prefix}count"]))
            for name in self.metrics:
                results[prefix + name] = float(sums[prefix + name]) / count
            results["count"] = count
        return results
