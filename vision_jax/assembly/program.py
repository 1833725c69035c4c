"""The pure functions of a run: schedule, optimizer, state and step; traced and compiled."""

import concurrent.futures
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import optim, steps
from vision_jax.assembly.inputs import make_transform
from vision_jax.assembly.states import (
    abstract_variables,
    body,
    classifier,
    create_state,
    frozen_norms,
    heads,
    partition_rules,
    pooled_norm,
)
from vision_jax.config.fields import OPTIMIZER_OPTIONS, SCHEDULE_OPTIONS
from vision_jax.config.plan import Plan, prune_pattern, prune_sparsity
from vision_jax.data.loader import batch_fields
from vision_jax.devices import compilation, partition, sharding
from vision_jax.objectives import Objective
from vision_jax.state import TrainState

log = logging.getLogger(__name__)


def make_schedule(config: ConfigDict, plan: Plan) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    return optim.create_schedule(
        config.schedule.name,
        plan.learning_rate,
        total_steps=plan.total_steps,
        warmup_steps=plan.warmup_steps,
        warmup_factor=config.schedule.warmup_factor,
        end_factor=config.schedule.end_factor,
        cooldown_steps=round(config.schedule.cooldown_epochs * plan.steps_per_epoch),
        per_epoch=plan.steps_per_epoch if config.schedule.by_epoch else None,
        overlap_warmup=config.schedule.overlap_warmup,
        warmup_reaches_peak=config.schedule.warmup_reaches_peak,
        **schedule_options(config, plan.steps_per_epoch),
    )


def schedule_options(config: ConfigDict, steps_per_epoch: int) -> dict[str, Any]:
    """Returns the arguments of the schedule that `config` sets, besides those that each of them has; in steps."""
    options: dict[str, Any] = {}
    for field, name in SCHEDULE_OPTIONS.items():
        value = config.schedule[field]
        if value is None:
            continue
        if field == "points":
            value = tuple((epoch * steps_per_epoch, share) for epoch, share in value)
        elif field == "milestone_epochs":
            value = tuple(epoch * steps_per_epoch for epoch in value)
        elif field in ("every_epochs", "decay_epochs"):
            value = value * steps_per_epoch
        options[name] = value
    return options


def make_rules(config: ConfigDict, plan: Plan, objective: Objective | None = None) -> optim.GroupRules:
    """Returns what holds for which parameters.

    Of an objective that trains the classifier alone, all else is frozen; and so are norms that it keeps as they are,
    which a decay of all parameters would change.
    """
    kept: tuple[str, ...] = ()
    if objective is not None:
        kept = (*(body(objective) if objective.classifier_alone else ()), *frozen_norms(objective))
    return optim.GroupRules(
        decay=config.optimizer.decay_rule,
        no_decay=tuple(config.optimizer.no_decay),
        multipliers=tuple(config.optimizer.multipliers),
        layer_decay=config.optimizer.layer_decay,
        layers=tuple(config.optimizer.layers) or None,
        frozen=(*config.optimizer.frozen, *kept),
        frozen_until=tuple(
            (pattern, round(epochs * plan.steps_per_epoch)) for pattern, epochs in config.optimizer.frozen_until
        ),
        constant_rate=tuple(config.optimizer.constant_rate),
        no_clip_adaptive=tuple(config.optimizer.no_clip_adaptive),
    )


def make_optimizer(
    config: ConfigDict,
    plan: Plan,
    params: Any,
    rules: optim.GroupRules | None = None,
    pruning: optim.Pruning | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer, with what holds for which parameters, pruning and the guard, if there are such.

    `params` are all parameters, frozen ones too, or their shapes; `rules` are those of `make_rules`, unless given; and
    `pruning` is that of `make_pruning`.

    Raises:
        ConfigError: if a pattern of `config.optimizer` or `config.prune` matches none of them.
    """
    rules = rules or make_rules(config, plan)
    weight_decay: optax.ScalarOrSchedule = config.optimizer.weight_decay
    if (end := config.optimizer.weight_decay_end) is not None:
        weight_decay = optim.interpolate_cosine(config.optimizer.weight_decay, end, plan.total_steps)

    def create(learning_rate: optax.ScalarOrSchedule, start: int) -> optax.GradientTransformation:
        """Returns the optimizer of parameters with this learning rate that are frozen for so many updates."""
        return optim.create_optimizer(
            config.optimizer.name,
            optim.shift_schedule(learning_rate, start),
            weight_decay=optim.shift_schedule(weight_decay, start),
            decay_mask=rules.decay_mask,
            decay_form=config.optimizer.decay_form,
            peak_learning_rate=plan.learning_rate,
            **optimizer_options(config),
        )

    starts = {row.path: row.begins for row in rules.table(params)}
    optimizer = optim.begin_late(functools.partial(create, make_schedule(config, plan)), starts)
    if rules.constant_rate:
        constant = optim.begin_late(functools.partial(create, plan.learning_rate), starts)
        optimizer = optax.partition({"scheduled": optimizer, "constant": constant}, rules.rates)
    clips = optim.create_clipping(
        value=config.optimizer.clip_value,
        adaptive=config.optimizer.clip_adaptive,
        adaptive_mask=rules.clip_adaptive_mask,
        parameter_norm=config.optimizer.clip_parameter_norm,
        global_norm=config.optimizer.clip_global_norm,
    )
    optimizer = rules.wrap(optax.chain(*clips, optimizer) if clips else optimizer, params)
    if pruning is not None:
        pruned, dense = pruning.paths(rules.split(params)[0])
        log.info("Pruned: %s. Left dense: %s.", ", ".join(pruned), ", ".join(dense) or "none")
        optimizer = optim.prune(optimizer, pruning)
    if config.guard.nonfinite == "skip" or config.guard.spike_deviations is not None:
        return optim.guard(optimizer, spike_deviations=config.guard.spike_deviations, window=config.guard.window)
    return optimizer


def make_pruning(config: ConfigDict, plan: Plan, objective: Objective) -> optim.Pruning | None:
    """Returns when, how far and what is pruned; None: nothing."""
    prune, sparsity = config.prune, prune_sparsity(config)
    if sparsity is None:
        return None
    begin, end = plan.prune_steps
    return optim.Pruning(
        sparsity=sparsity,
        begin=begin,
        end=end,
        every=prune.every_steps,
        initial=prune.initial_sparsity,
        scope=prune.scope,
        pattern=prune_pattern(prune.pattern),
        exclude=tuple(prune.exclude),
        spared=() if prune.classifier else classifier(objective),
        masked=prune.masked,
    )


def optimizer_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of the optimizer that `config` sets, besides those that each of them has."""
    return {name: config.optimizer[name] for name in OPTIMIZER_OPTIONS if config.optimizer[name] is not None}


@dataclasses.dataclass(frozen=True)
class Program:
    """The pure functions of a run.

    Attributes:
        objective: what is minimized.
        initialize: (variables that training starts from, or None for random ones) -> the state before the first step.
            What the objective has beside the model may be missing in them, and the classifier with its norm.
        train_step: (state, batch, constants) -> (state, metrics).
        rules: what holds for which parameters.
        abstract_state: the state, with shapes, dtypes and layouts in place of arrays.
    """

    objective: Objective
    initialize: Callable[..., TrainState]
    train_step: steps.TrainStep
    rules: optim.GroupRules
    abstract_state: TrainState


def make_program(config: ConfigDict, plan: Plan, objective: Objective, mesh: Mesh) -> Program:
    """Returns the pure functions of a run.

    Raises:
        ConfigError: if `mesh.rules` do not fit the model, or rules on the paths of parameters match nothing.
    """
    rules, params = make_rules(config, plan, objective), abstract_variables(objective)["params"]
    optimizer = make_optimizer(config, plan, params, rules, make_pruning(config, plan, objective))
    create = functools.partial(create_state, objective, optimizer, rules, seed=config.seed)
    shapes = jax.eval_shape(create)
    layouts = partition.layouts(partition_rules(config, mesh), mesh, shapes.params, shapes)
    missing = (*heads(objective), *classifier(objective), *pooled_norm(objective), "head_norm/")
    initialize = jax.jit(
        lambda given=None: create(given=given, missing=missing),
        out_shardings=layouts,
        # It runs once: on CPUs, optimizing it would take longer than all of a short training.
        compiler_options={"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None,
    )
    sam = None
    if config.optimizer.sam_rho is not None:
        sam = steps.Sam(config.optimizer.sam_rho, config.optimizer.sam_every)
    train_step = steps.make_train_step(
        objective,
        optimizer,
        make_schedule(config, plan),
        seed=config.seed,
        accumulate=config.optimizer.accumulate,
        sam=sam,
        rules=rules,
    )
    return Program(objective, initialize, train_step, rules, sharding.abstract(shapes, layouts))


def trace_steps(
    config: ConfigDict, plan: Plan, program: Program, mesh: Mesh, constants: Mapping[str, Any] | None = None
) -> dict[tuple[int, ...], jax.stages.Traced]:
    """Traces the training step for every shape of an image that there will be, by shape.

    Args:
        config, plan, mesh: of the run.
        program: its functions.
        constants: of the objective, or their shapes and layouts; None: {}.
    """
    traced = {}
    for transform in make_transform(config, plan, program.objective.inputs()).shapes():
        fields = batch_fields(transform, replaces=config.data.max_bad_records > 0)
        batch = sharding.abstract_batch(mesh, config.batch_size, fields)
        traced[fields["image"].shape] = compilation.trace_step(
            mesh, program.train_step, program.abstract_state, batch, dict(constants or {})
        )
    return traced


def compile_steps(
    traced: Mapping[tuple[int, ...], jax.stages.Traced], constants: Mapping[str, Any] | None = None
) -> Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]:
    """Compiles what `trace_steps` has traced, all shapes at once, and returns it as one function of state and batch."""
    with concurrent.futures.ThreadPoolExecutor(min(len(traced), os.cpu_count() or 1)) as pool:
        compiled = dict(zip(traced, pool.map(compilation.compile_step, traced.values()), strict=True))
    constants = dict(constants or {})
    return lambda state, batch: compiled[batch["image"].shape[1:]](state, batch, constants)
