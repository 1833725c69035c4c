"""The base of evaluators that measure the logits of the model's own classifier."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from vision_jax import augment
from vision_jax.evaluators.base import Evaluator, Prefixed
from vision_jax.objectives.base import Objective


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LogitsEvaluator(Evaluator):
    """An evaluator of logits.

    Attributes:
        flip: average the logits with those of the mirrored image.
    """

    flip: bool = False

    def logits(self, objective: Objective, variables: Prefixed, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the logits, (batch, classes), of each of the variables, by prefix."""
        model, context = objective.setup.model, self.context
        images = augment.normalize(batch["image"], context.mean, context.std)
        found = {}
        for prefix, values in variables.items():
            logits: Any = model.apply(values, images, train=False)
            if self.flip:
                logits = (logits + model.apply(values, images[:, :, ::-1], train=False)) / 2
            found[prefix] = logits
        return found
