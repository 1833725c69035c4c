"""The loss of the objective itself, on a split that it does not learn from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vision_jax import augment
from vision_jax.evaluators.base import Evaluator, Prefixed, Step, run_pass
from vision_jax.objectives.base import Objective

_STEP = 2**31 - 1  # never reached in training, so that an evaluation shares no keys with a step


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ObjectiveLoss(Evaluator):
    """The objective's loss, in evaluation mode, and its other metrics; see `Objective.loss`.

    Random numbers in its views depend only on the seed and the position in the batch, so evaluations are comparable.
    Targets are computed from the same variables: the EMA is a teacher only in training.
    """

    def make_step(self, objective: Objective) -> Step:
        """Returns ((variables by prefix, constants), batch) -> sums and weights, () each, under prefix + name."""
        context = self.context
        progress = objective.progress(jnp.int32(objective.setup.total_steps))

        def step(arguments: tuple[Prefixed, Any], batch: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
            variables, constants = arguments
            size = batch["mask"].shape[0]
            keys = augment.example_keys(context.seed, jnp.int32(_STEP), size)
            key = augment.batch_key(context.seed, jnp.int32(_STEP), size)
            views = objective.views(keys, batch)
            sums = {"count": (batch["mask"].sum(), jnp.float32(1))}
            for prefix, values in variables.items():
                extra = objective.init_extra(values)
                targets = objective.targets(values, values, extra, constants, views, key, progress, train=False)
                out = objective.loss(values, views, targets, key, progress, train=False)
                pairs = {"loss": (out.loss, out.weight), **out.metrics}
                sums |= {prefix + name: pair for name, pair in pairs.items()}
            return sums

        return step

    def __call__(self, objective: Objective, variables: Prefixed) -> dict[str, float]:
        arguments = (dict(variables), dict(self.context.constants))
        sums = run_pass(self.context, self.compiled(objective, self.make_step, arguments), arguments)
        return {
            "count": self.check_count(int(sums.pop("count")[0])),
            **{name: float(total / (weight or 1)) for name, (total, weight) in sums.items()},
        }
