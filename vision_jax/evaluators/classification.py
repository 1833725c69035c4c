"""Accuracy and cross-entropy of a classifier."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from vision_jax.evaluators.base import Prefixed, Step, run_pass
from vision_jax.evaluators.logits import LogitsEvaluator
from vision_jax.metrics import classification_sums
from vision_jax.objectives.base import Objective


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Classification(LogitsEvaluator):
    """Top-1, top-5 and cross-entropy (no smoothing) of the model's logits."""

    metrics: ClassVar[Mapping[str, bool]] = {"top1": True, "top5": True, "loss": False}

    def make_step(self, objective: Objective) -> Step:
        """Returns (variables by prefix, batch) -> sums over the examples, () each, under prefix + name."""

        def step(variables: Prefixed, batch: Any) -> dict[str, jax.Array]:
            sums = {}
            for prefix, logits in self.logits(objective, variables, batch).items():
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
