"""The pure functions that a configuration describes, and the training step compiled ahead of time."""

import bisect
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import augment, evaluate, flops, losses, optim, partition, sharding, steps
from vision_jax import config as config_lib
from vision_jax.config import Plan
from vision_jax.state import TrainState, create_state

log = logging.getLogger(__name__)


def make_functions(
    config: ConfigDict, plan: Plan, model: nn.Module, mesh: Mesh
) -> tuple[Callable[..., TrainState], steps.TrainStep, TrainState]:
    """Returns the pure functions of a run, and its state with shapes, dtypes and layouts in place of arrays.

    Returns:
        what gives the state before the first step, of the variables that training starts from if it does not start
        from random ones; the training step; and the abstract state.

    Raises:
        ConfigError: if `mesh.rules` do not fit the model.
    """
    schedule, optimizer = make_schedule(config, plan), make_optimizer(config, plan)
    create = functools.partial(
        create_state,
        model,
        optimizer,
        evaluate.image_shape(config),
        seed=config.seed,
        ema=config.ema_decay is not None,
    )
    shapes = jax.eval_shape(create)
    layouts = partition.layouts(config, mesh, shapes.params, shapes)
    initialize = jax.jit(
        lambda variables=None: create(variables=variables),
        out_shardings=layouts,
        # It runs once: on CPUs, optimizing it would take longer than all of a short training.
        compiler_options={"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None,
    )
    ema = None
    if config.ema_decay is not None:
        ema = steps.Ema(config.ema_decay, config.ema_every_steps, plan.ema_start, config.ema_warmup)
    train_step = steps.make_train_step(
        model,
        optimizer,
        schedule,
        seed=config.seed,
        mean=config.data.mean,
        std=config.data.std,
        augmentation=augment.create_augmentation(config_lib.augmentation_fields(config)),
        label_smoothing=config.label_smoothing,
        loss=losses.create_loss(
            config.loss.name,
            threshold=config.loss.threshold,
            sum_classes=config.loss.sum_classes,
            class_weights=config.loss.class_weights,
        ),
        auxiliary_weight=config.loss.auxiliary_weight,
        teacher=evaluate.build_teacher(config, model.num_classes),
        ema=ema,
        accumulate=config.optimizer.accumulate,
        sam_rho=config.optimizer.sam_rho,
        sam_every=config.optimizer.sam_every,
    )
    return initialize, train_step, sharding.abstract(shapes, layouts)


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
        **config_lib.schedule_options(config, plan.steps_per_epoch),
    )


def make_rules(config: ConfigDict) -> optim.GroupRules:
    """Returns what holds for which parameters."""
    return optim.GroupRules(
        decay=config.optimizer.decay_rule,
        no_decay=tuple(config.optimizer.no_decay),
        multipliers=tuple(config.optimizer.multipliers),
        layer_decay=config.optimizer.layer_decay,
        frozen=tuple(config.optimizer.frozen),
    )


def make_optimizer(config: ConfigDict, plan: Plan) -> optax.GradientTransformation:
    """Returns the optimizer, with what holds for which parameters and the guard, if there is one."""
    rules = make_rules(config)
    weight_decay: optax.ScalarOrSchedule = config.optimizer.weight_decay
    if (end := config.optimizer.weight_decay_end) is not None:
        weight_decay = optim.interpolate_cosine(config.optimizer.weight_decay, end, plan.total_steps)
    optimizer = rules.wrap(
        optim.create_optimizer(
            config.optimizer.name,
            make_schedule(config, plan),
            weight_decay=weight_decay,
            decay_mask=rules.decay_mask,
            decay_form=config.optimizer.decay_form,
            peak_learning_rate=plan.learning_rate,
            clip_value=config.optimizer.clip_value,
            clip_adaptive=config.optimizer.clip_adaptive,
            clip_adaptive_mask=functools.partial(
                optim.decay_mask, rule="all", exclude=tuple(config.optimizer.no_clip_adaptive)
            ),
            clip_global_norm=config.optimizer.clip_global_norm,
            **config_lib.optimizer_options(config),
        )
    )
    if config.guard.nonfinite == "skip" or config.guard.spike_deviations is not None:
        return optim.guard(optimizer, spike_deviations=config.guard.spike_deviations, window=config.guard.window)
    return optimizer


def trace_steps(
    config: ConfigDict,
    plan: Plan,
    train_step: steps.TrainStep,
    abstract_state: TrainState,
    mesh: Mesh,
    teacher: Any = None,
) -> dict[int, jax.stages.Traced]:
    """Traces the training step for every size of images that there will be, by size.

    `teacher` are the variables of the teacher, if there is one.
    """
    traced = {}
    for size in sorted({size for _, size in plan.train_sizes}) or [config.data.image_size]:
        shape = (size, size, config.data.channels)
        batch = sharding.abstract_batch(mesh, config.batch_size, shape, replaces=config.data.max_bad_records > 0)
        traced[size] = trace_step(mesh, train_step, abstract_state, batch, teacher)
    return traced


def compile_steps(
    traced: Mapping[int, jax.stages.Traced], teacher: Any = None
) -> Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]:
    """Compiles what `trace_steps` has traced, and returns it as one function of state and batch."""
    compiled = {size: compile_step(step) for size, step in traced.items()}
    return lambda state, batch: compiled[batch["image"].shape[1]](state, batch, teacher)


def trace_step(
    mesh: Mesh, train_step: steps.TrainStep, abstract_state: TrainState, abstract_batch: Any, teacher: Any = None
) -> jax.stages.Traced:
    """Traces the training step for a state and a batch with layouts, with `mesh` as the mesh in use.

    The state is donated: the new one takes its memory.
    """
    layouts = jax.tree.map(lambda x: x.sharding, abstract_state)
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(layouts, sharding.replicated(mesh)))
    with jax.set_mesh(mesh):
        return jitted.trace(abstract_state, abstract_batch, teacher)


def compile_step(traced: jax.stages.Traced) -> jax.stages.Compiled:
    """Compiles the training step ahead of time, and logs what that took and what the step will take."""
    start = time.perf_counter()
    compiled = traced.lower().compile()
    parts = [f"The training step was compiled in {time.perf_counter() - start:.1f} s"]
    parts.append(f"{flops.count(traced.jaxpr) / 1e9:.4g} GFLOP a step")
    if (memory := compiled.memory_analysis()) is not None:
        arguments, temporaries = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
        parts.append(f"{arguments:.4g} MiB of state and batch and {temporaries:.4g} MiB of temporaries a device")
    log.info("%s.", ", ".join(parts))
    return compiled


def make_seconds_at_peak(
    config: ConfigDict, plan: Plan, mesh: Mesh, traced: Mapping[int, jax.stages.Traced]
) -> Callable[[int], float] | None:
    """Returns how long a step, by its number from 1, would take if all devices did its products at their peak.

    In seconds. Divided by how long it takes, that is the MFU: see `vision_jax.flops`. None if the peak is not known.
    """
    device = mesh.devices.flat[0]
    if (chip := flops.find_chip(device.device_kind)) is None:
        log.info("There is no train/mfu: vision_jax/flops.py does not know the peak of a %s.", device.device_kind)
        return None
    peak = chip.peak(evaluate.compute_dtype(config)) * mesh.size
    starts, sizes = zip(*(plan.train_sizes or [(0, config.data.image_size)]), strict=True)
    seconds = {size: flops.count(step.jaxpr) / peak for size, step in traced.items()}
    return lambda step: seconds[sizes[bisect.bisect_right(starts, step - 1) - 1]]
