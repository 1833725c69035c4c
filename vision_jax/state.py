"""The state of a training, all of it."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """What a step takes and gives: a frozen pytree, float32 throughout but for counters.

    Attributes:
        step: () int32, the number of updates done.
        params: the model's parameters.
        batch_stats: running statistics of its norms; empty if it has none.
        opt_state: of the optimizer.
        ema: moving averages of params and batch_stats, as variables that the model can be applied with; or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: dict[str, Any] | None

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    ema: bool,
    variables: Mapping[str, Any] | None = None,
) -> TrainState:
    """Returns the state before the first step. It can be jitted, and evaluated abstractly.

    Args:
        model: the module.
        optimizer: makes its own part of the state.
        image_shape: (height, width, channels) of the model's input.
        seed: decides the initial parameters.
        ema: keep moving averages; they start as the parameters and statistics themselves.
        variables: what training starts from; None: what the model is initialized with.
    """
    if variables is None:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init(jax.random.key(seed), images, train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    average = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), average)
