"""The state that a training begins with, and how it is laid out."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import optim
from vision_jax.dense.networks import norm_paths
from vision_jax.devices import partition
from vision_jax.errors import DataError
from vision_jax.objectives import Dense, Objective
from vision_jax.optim import masks
from vision_jax.state import TrainState


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
        given, missing: see `initialize`. Of a run of the objective that is gone on with, `given` may also have "ema",
            the average, and "extra", of the state without gradients; else these begin anew.
    """
    variables = initialize(objective, jax.random.key(seed), given, missing)
    step = jnp.zeros((), jnp.int32)
    keeps_average = objective.ema_decay(objective.progress(step)) is not None
    trained, _ = (rules or optim.GroupRules()).split(variables["params"])
    opt_state = optimizer.init(trained)
    masks = optim.masks_of(opt_state)
    variables = {**variables, "params": optim.apply_masks(variables["params"], masks)}
    ema = jax.tree.map(jnp.copy, variables) if keeps_average else None
    if ema is not None and given is not None and "ema" in given:
        ema = _merge(ema, given["ema"], missing)
        ema = {**ema, "params": optim.apply_masks(ema["params"], masks)}
    extra = objective.init_extra(variables)
    if given is not None and "extra" in given:
        extra = _merge({"extra": extra}, {"extra": given["extra"]}, ("",))["extra"]
    return TrainState(
        step=step,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=opt_state,
        ema=ema,
        extra=extra,
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
    return variables if given is None else _merge(variables, given, missing)


def _merge(variables: Mapping[str, Any], given: Mapping[str, Any], missing: Sequence[str]) -> dict[str, Any]:
    """Returns collections of arrays with those values that are given; see `initialize`."""
    flat = {
        (name, masks.path_string(path)): x
        for name in variables
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
            hint = ": set the options of the objective to those of the file" if name == "extra" else ""
            raise DataError(f"{text} has the shape {flat[name, text].shape} in the weights, and {x.shape} here{hint}.")
        return jnp.asarray(flat[name, text], x.dtype)

    merged = {
        name: jax.tree_util.tree_map_with_path(functools.partial(choose, name), tree)
        for name, tree in variables.items()
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


@functools.lru_cache(maxsize=8)  # several functions ask for them, and tracing a large model takes seconds
def abstract_variables(objective: Objective) -> dict[str, Any]:
    """Returns `params` and `batch_stats` of an objective, with shapes and dtypes in place of arrays."""
    shapes = jax.eval_shape(lambda: init_variables(objective, jax.random.key(0)))
    return {"params": shapes["params"], "batch_stats": shapes["batch_stats"]}


def heads(objective: Objective) -> tuple[str, ...]:
    """Returns the beginnings of the paths of the parameters that an objective has beside those of its model."""
    model = _model_parameters(objective.setup.model, objective.setup.image_shape)
    params = abstract_variables(objective)["params"]

    def beside(name: str) -> bool:
        # ConvNeXt calls its last norm a head, too, which detectors do not have.
        return name not in model or not set(masks.all_paths({name: model[name]})) & set(
            masks.all_paths({name: params[name]})
        )

    # One that is no module, but a parameter, ends its path.
    return tuple(f"{name}/" if isinstance(x, Mapping) else name for name, x in params.items() if beside(name))


def classifier(objective: Objective) -> tuple[str, ...]:
    """Returns the paths of the parameters that an objective has for its classes alone, in the model or beside it."""
    if isinstance(objective, Dense):
        more = dataclasses.replace(objective, num_classes=objective.num_classes + 1)
        ours, theirs = (jax.tree_util.tree_leaves_with_path(abstract_variables(x)["params"]) for x in (objective, more))
        different = (path for (path, x), (_, y) in zip(ours, theirs, strict=True) if x.shape != y.shape)
        return tuple(sorted(map(masks.path_string, different)))
    model = objective.setup.model
    if not model.num_classes:
        return ()
    shape = objective.setup.image_shape
    whole, body = (masks.all_paths(_model_parameters(x, shape)) for x in (model, model.clone(num_classes=0)))
    return tuple(sorted(set(whole) - set(body)))


def body(objective: Objective) -> tuple[str, ...]:
    """Returns patterns of the parameters that `classifier` does not have."""
    return (f"^(?!({'|'.join(map(re.escape, classifier(objective)))})$)",)


def frozen_norms(objective: Objective) -> tuple[str, ...]:
    """Returns patterns of the parameters of norms that an objective keeps as they are; see `Dense.frozen_norms`."""
    if not isinstance(objective, Dense) or not objective.frozen_norms:
        return ()
    return tuple(f"^{re.escape(path)}$" for path in norm_paths(abstract_variables(objective)))


def pooled_norm(objective: Objective) -> tuple[str, ...]:
    """Returns the beginnings of the paths of a norm of averaged features, which models of single tokens do not have."""
    model = _model_parameters(objective.setup.model, objective.setup.image_shape)
    return tuple(f"{name}/" for name in ("fc_norm",) if name in model)


@functools.lru_cache(maxsize=8)
def _model_parameters(model: nn.Module, image_shape: tuple[int, int, int]) -> Mapping[str, Any]:
    """Returns the shapes and dtypes of the parameters of a model that stands alone."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]


def heads_alone(objective: Objective) -> dict[str, Any]:
    """Returns `params` and `batch_stats` of the heads, with shapes and dtypes in place of arrays."""
    names = {prefix.removesuffix("/") for prefix in heads(objective)}
    return {
        collection: {name: values for name, values in tree.items() if name in names}
        for collection, tree in abstract_variables(objective).items()
    }


def without_heads(objective: Objective, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of the model alone, without those that an objective has beside them at the root."""
    names = {prefix.removesuffix("/") for prefix in heads(objective)}
    return {
        collection: {name: values for name, values in tree.items() if name not in names}
        for collection, tree in variables.items()
    }


def partition_rules(config: ConfigDict, mesh: Mesh) -> partition.Rules:
    """Returns what decides on the layouts of parameters."""
    given = tuple((pattern, layout) for pattern, layout in config.mesh.rules)
    return partition.Rules(dict(mesh.shape), given, config.mesh.fsdp_min_size)
