"""The state of a training, all of it."""

from typing import Any

import flax.struct
import jax
import optax


@flax.struct.dataclass
class TrainState:
    """What a step takes and gives: a frozen pytree, float32 throughout but for counters.

    Attributes:
        step: () int32, the number of updates done.
        params: the model's parameters, and those of the objective's heads.
        batch_stats: running statistics of norms; empty if there are none.
        opt_state: of the optimizer.
        ema: moving averages of params and batch_stats, as variables that the model can be applied with; or None.
        extra: what the objective keeps and no gradient reaches, such as a queue or a center; empty for most.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: dict[str, Any] | None
    extra: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}
