"""The complete state of a run."""

from typing import Any

import flax.struct
import jax
import optax


@flax.struct.dataclass
class TrainState:
    """Input and output of a step: a frozen pytree, float32 throughout except for counters.

    Attributes:
        step: () int32, the number of updates done.
        params: the parameters of the model and of the objective's heads.
        batch_stats: running statistics of norms; empty if there are none.
        opt_state: the optimizer's state.
        ema: EMA of params and batch_stats, as variables to apply the model with; or None.
        extra: state of the objective without gradients, such as a queue or a center; empty for most.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: dict[str, Any] | None
    extra: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to apply the model with."""
        return {"params": self.params, "batch_stats": self.batch_stats}
