"""The state of a training, all of it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vision_jax import optim
from vision_jax.errors import DataError
from vision_jax.objectives.base import Objective
from vision_jax.optim import masks


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


def create_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rules: optim.GroupRules | None = None,
    *,
    seed: int,
    given: Mapping[str, Any] | None = None,
    missing: Sequence[str] = (),
) -> TrainState:
    """Returns the state before the first step. It can be jitted, and evaluated abstractly.

    Args:
        objective: makes the variables, and what it keeps besides.
        optimizer: makes its own part of the state, for the parameters that are trained.
        rules: say which these are; None: all.
        seed: decides the initial parameters.
        given, missing: see `initialize`.
    """
    variables = initialize(objective, jax.random.key(seed), given, missing)
    step = jnp.zeros((), jnp.int32)
    keeps_average = objective.ema_decay(objective.progress(step)) is not None
    trained, _ = (rules or optim.GroupRules()).split(variables["params"])
    return TrainState(
        step=step,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(trained),
        ema=jax.tree.map(jnp.copy, variables) if keeps_average else None,
        extra=objective.init_extra(variables),
    )


def initialize(
    objective: Objective, key: jax.Array, given: Mapping[str, Any] | None = None, missing: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the variables that a training begins with: those that are given, and random ones for the rest.

    Args:
        objective: what is trained.
        key: of the random ones.
        given: `params` and `batch_stats` of other weights; what the objective does not have of them is left out. None:
            all are random.
        missing: beginnings of the paths, such as "projector/", of what may be missing in `given`.

    Returns:
        `params` and `batch_stats`.

    Raises:
        DataError: if something is neither given nor may be missing, or has another shape.
    """
    variables = init_variables(objective, key)
    if given is None:
        return variables
    flat = {
        (name, masks.path_string(path)): x
        for name in ("params", "batch_stats")
        for path, x in jax.tree_util.tree_leaves_with_path(given.get(name, {}))
    }
    lacking: list[str] = []

    def choose(name: str, path: Any, x: Any) -> Any:
        text = masks.path_string(path)
        if (name, text) not in flat:
            if not text.startswith(tuple(missing)):
                lacking.append(text)
            return x
        if flat[name, text].shape != x.shape:
            raise DataError(f"{text} has the shape {flat[name, text].shape} in the weights, and {x.shape} here.")
        return jnp.asarray(flat[name, text], x.dtype)

    merged = {
        name: jax.tree_util.tree_map_with_path(functools.partial(choose, name), variables[name])
        for name in ("params", "batch_stats")
    }
    if lacking:
        raise DataError(
            f"The weights lack {len(lacking)} arrays, such as {', '.join(lacking[:3])}; they have such as "
            f"{', '.join(text for _, text in list(flat)[:3])}. Are they of another model?"
        )
    return merged


def init_variables(objective: Objective, key: jax.Array) -> dict[str, Any]:
    """Returns the random variables that an objective begins with."""
    images = jnp.zeros((1, *objective.setup.image_shape), jnp.float32)
    return {"batch_stats": {}, **objective.init(key, {"image": images})}


def abstract_variables(objective: Objective) -> dict[str, Any]:
    """Returns `params` and `batch_stats` of an objective, with shapes and dtypes in place of arrays."""
    shapes = jax.eval_shape(lambda: init_variables(objective, jax.random.key(0)))
    return {"params": shapes["params"], "batch_stats": shapes["batch_stats"]}
