"""The training program, to be read from top to bottom.

`train_and_evaluate` checks the input: configuration, data, then workdir; nothing is allocated before all are in order.
`_train` makes the pure functions of the run, restores or initializes the state, and compiles the step ahead of time.
`_loop` does the updates. After each, in this order: save if due, stop if told to, evaluate if due. A state is saved
before it is evaluated, so neither a signal nor a crash in the evaluation loses it, and a run that was stopped there
begins with that evaluation. Metrics are fetched a step late, when the next step is under way: the devices never wait
for the host.
"""

import functools
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import augment, distributed, evaluate, losses, optim, sharding, steps, writers
from vision_jax import config as config_lib
from vision_jax.checkpoint import Checkpointer
from vision_jax.config import Plan
from vision_jax.data.decode import TrainTransform
from vision_jax.data.loader import Loader, Order, Prefetcher
from vision_jax.data.order import BalancedOrder, TrainOrder
from vision_jax.data.sources import Source, closing, create_source, read_labels
from vision_jax.data.workers import ProcessLoader, create_loader
from vision_jax.errors import CheckpointError, ConfigError, NonFiniteError, Preempted
from vision_jax.preemption import Preemption
from vision_jax.state import TrainState, create_state

log = logging.getLogger(__name__)


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    allow_config_change: bool = False,
    preemption: Preemption | None = None,
) -> TrainState:
    """Trains a model, or goes on with the training that the workdir holds, and evaluates it.

    Args:
        config: see `vision_jax.config`.
        workdir: of this run; see README.md for what it holds.
        allow_config_change: go on although the workdir was made by another configuration.
        preemption: says when to stop; None: SIGTERM is handled here.

    Returns:
        the state after the last step.

    Raises:
        ConfigError, DataError, CheckpointError: for input that cannot work.
        NonFiniteError: if the loss or the gradients stop being finite.
        Preempted: after SIGTERM, with the state saved.
    """
    if preemption is None:
        with Preemption() as preemption:
            return train_and_evaluate(config, workdir, allow_config_change=allow_config_change, preemption=preemption)
    workdir = pathlib.Path(workdir)
    config, plan, model, train_source, val_source = _check_input(config)
    distributed.check_agreement({**config.to_dict(), "the workdir": str(workdir.absolute())})
    is_first = jax.process_index() == 0
    with (
        closing(train_source, val_source),
        writers.open_workdir(workdir, config, allow_config_change=allow_config_change, enabled=is_first),
    ):
        sharding.wait_for_all("the workdir is open")
        return _train(config, workdir, plan, model, train_source, val_source, preemption)


def _check_input(config: ConfigDict) -> tuple[ConfigDict, Plan, nn.Module, Source, Source]:
    """Returns the resolved configuration and what follows from it and the data, after checking all of it."""
    config = config_lib.resolve(config)
    config_lib.validate(config, jax.device_count())
    train_source, val_source = create_source(config, train=True), create_source(config, train=False)
    evaluate.check_classes(val_source, train_source.num_classes, train_source.class_names, config.data.val_split)
    plan = config_lib.make_plan(config, len(train_source))
    model = evaluate.build_model(config, train_source.num_classes)
    evaluate.check_sizes(config, model, train=True)
    if (weights := len(config.loss.class_weights)) not in (0, model.num_classes):
        raise ConfigError(f"loss.class_weights has {weights} values, and there are {model.num_classes} classes.")
    return config, plan, model, train_source, val_source


def dry_run(config: ConfigDict) -> str:
    """Returns, as text, what a training would be: its length, its learning rates, and what holds for each parameter.

    All that a training checks of its input is checked; nothing is computed or written.

    Raises:
        ConfigError, DataError: for input that cannot work.
    """
    config, plan, model, train_source, val_source = _check_input(config)
    with closing(train_source, val_source):
        summary = _summary(config, plan, len(train_source), len(val_source))
    rows = make_rules(config).table(evaluate.variable_shapes(config, model)["params"])
    schedule = make_schedule(config, plan)
    last = plan.total_steps - 1
    lines = [f"  {step:>10}{float(schedule(step)):14.6g}" for step in sorted({0, plan.warmup_steps, last // 2, last})]
    return "\n".join([summary, f"  {'step':>10}{'learning rate':>14}", *lines, "", optim.format_table(rows)])


def _train(
    config: ConfigDict,
    workdir: pathlib.Path,
    plan: Plan,
    model: nn.Module,
    train_source: Source,
    val_source: Source,
    preemption: Preemption,
) -> TrainState:
    """Does what `train_and_evaluate` says, once its input has been checked."""
    mesh = sharding.make_mesh(config)
    initialize, train_step = make_functions(config, plan, model, mesh)
    abstract_state = sharding.abstract(jax.eval_shape(initialize), sharding.replicated(mesh))
    _log_run(config, plan, abstract_state, len(train_source), len(val_source))
    scores = evaluate.scores_by_step(workdir, config.checkpoint.best_metric)
    with Checkpointer(workdir / "checkpoints", keep=config.checkpoint.keep, scores=scores) as checkpointer:
        state = checkpointer.restore_latest(abstract_state)
        if state is None and config.model.pretrained:
            state = initialize(evaluate.load_pretrained(config, model.num_classes, classifier_seed=config.seed))
        elif state is None:
            state = initialize()
        start = int(state.step)
        if start > plan.total_steps:
            raise CheckpointError(
                f"{workdir} is at step {start} already, and the training is only {plan.total_steps} steps long: raise "
                "epochs or total_steps, or give another --workdir."
            )
        if start:
            log.info("Going on from step %d of %d.", start, plan.total_steps)
        evaluated = {r["step"]: r for r in writers.training_records(workdir) if "val/count" in r and r["step"] <= start}
        if start == plan.total_steps and start in evaluated:
            log.info("The training is complete.\n%s", evaluate.format_results(evaluated[start]))
            return state
        if is_first := jax.process_index() == 0:
            writers.write_config(workdir, config)
        teacher = evaluate.load_teacher(config, model.num_classes, mesh)
        compiled = compile_steps(config, plan, train_step, abstract_state, mesh, teacher)
        with (
            _make_loader(config, plan, mesh, train_source) as loader,
            Prefetcher(
                loader,
                range(start, plan.total_steps),
                sharding.batch_placer(mesh, config.batch_size),
                config.data.prefetch,
            ) as batches,
            writers.MetricWriter(
                workdir, last_step=start, tensorboard=config.log.tensorboard, enabled=is_first
            ) as writer,
            writers.Progress(plan.total_steps, initial=start, description="train", enabled=is_first) as progress,
        ):
            return _loop(
                plan,
                state,
                compiled,
                batches,
                evaluator=evaluate.Evaluator(config, mesh, model, val_source),
                evaluated=set(evaluated),
                best_metric=config.checkpoint.best_metric,
                checkpointer=checkpointer,
                about={
                    "config": json.loads(config_lib.to_json(config)),
                    "num_classes": train_source.num_classes,
                    "class_names": list(train_source.class_names),
                },
                writer=writer,
                tracker=Tracker(config, plan, writer, progress, batches, checkpointer),
                preemption=preemption,
            )


def _loop(
    plan: Plan,
    state: TrainState,
    train_step: Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]],
    batches: Prefetcher,
    *,
    evaluator: evaluate.Evaluator,
    evaluated: set[int],
    best_metric: str,
    checkpointer: Checkpointer,
    about: dict[str, Any],
    writer: writers.MetricWriter,
    tracker: "Tracker",
    preemption: Preemption,
) -> TrainState:
    """Does the updates that are left. The order of operations is explained at the top of this file."""
    for step in range(int(state.step), plan.total_steps + 1):  # `step` updates are done
        stops = preemption.stops_at(step)
        if stops or plan.saves_at(step):
            tracker.settle()  # so that nothing that is not finite is saved
            checkpointer.save(step, state, about)
        if stops:
            checkpointer.wait()
            raise Preempted(step)
        if plan.evaluates_at(step) and step not in evaluated:
            variables = {"": state.variables} | ({"ema_": state.ema} if state.ema is not None else {})
            try:
                results = evaluator(variables, should_stop=preemption.stops_now)
            except evaluate.Interrupted:
                checkpointer.wait()
                raise Preempted(step) from None
            if (score := evaluate.score(best_metric, results)) is not None:
                checkpointer.record(step, score)
            writer.write(step, results)
            log.info("Step %d of %d, evaluated:\n%s", step, plan.total_steps, evaluate.format_results(results))
            tracker.restart_clock()
        if step < plan.total_steps:
            state, metrics = train_step(state, next(batches))
            tracker.add(step + 1, metrics)
    return state


def make_functions(
    config: ConfigDict, plan: Plan, model: nn.Module, mesh: Mesh
) -> tuple[Callable[..., TrainState], steps.TrainStep]:
    """Returns the pure functions of a run.

    Returns:
        what gives the state before the first step, of the variables that training starts from if it does not start
        from random ones; and the training step.
    """
    schedule, optimizer = make_schedule(config, plan), make_optimizer(config, plan)
    initialize = jax.jit(
        lambda variables=None: create_state(
            model,
            optimizer,
            evaluate.image_shape(config),
            seed=config.seed,
            ema=config.ema_decay is not None,
            variables=variables,
        ),
        out_shardings=sharding.replicated(mesh),
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
    return initialize, train_step


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


def _make_loader(config: ConfigDict, plan: Plan, mesh: Mesh, source: Source) -> Loader | ProcessLoader:
    """Returns the loader of the training's batches."""
    data = config.data
    order: Order = TrainOrder(len(source), config.batch_size, config.seed, data.repeats)
    if data.balanced:
        order = BalancedOrder(read_labels(source, data.num_threads), source.num_classes, config.batch_size, config.seed)
    transform = TrainTransform(
        size=data.image_size,
        channels=data.channels,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        seed=config.seed,
        filter=data.train_filter,
        scaled_decoding=data.scaled_decoding,
        fast_dct=data.fast_dct,
        fast_upsampling=data.fast_upsampling,
        sizes=plan.train_sizes,
    )
    return create_loader(
        source,
        order,
        transform,
        sharding.local_rows(mesh, config.batch_size),
        num_workers=data.num_workers,
        num_threads=data.num_threads,
        max_bad_records=data.max_bad_records,
    )


def compile_steps(
    config: ConfigDict,
    plan: Plan,
    train_step: steps.TrainStep,
    abstract_state: TrainState,
    mesh: Mesh,
    teacher: Any = None,
) -> Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]:
    """Compiles the training step for every size of images that there will be, and returns them as one function.

    `teacher` are the variables of the teacher, if there is one.
    """
    sizes = sorted({size for _, size in plan.train_sizes}) or [config.data.image_size]
    compiled = {}
    for size in sizes:
        shape = (size, size, config.data.channels)
        batch = sharding.abstract_batch(mesh, config.batch_size, shape, replaces=config.data.max_bad_records > 0)
        compiled[size] = compile_step(train_step, abstract_state, batch, teacher)
    return lambda state, batch: compiled[batch["image"].shape[1]](state, batch, teacher)


def compile_step(train_step: steps.TrainStep, abstract_state: TrainState, abstract_batch: Any, teacher: Any) -> Any:
    """Compiles the training step ahead of time, and logs what that took and what the step will take.

    The state is donated: the new one takes its memory.
    """
    start = time.perf_counter()
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    scalar = jax.tree.leaves(shardings)[0]
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, scalar))
    compiled = jitted.lower(abstract_state, abstract_batch, teacher).compile()
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    parts = [f"The training step was compiled in {time.perf_counter() - start:.1f} s"]
    if "flops" in cost:
        parts.append(f"{cost['flops'] / 1e9:.4g} GFLOP a step and device")
    if memory is not None:
        arguments, temporaries = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
        parts.append(f"{arguments:.4g} MiB of state and batch and {temporaries:.4g} MiB of temporaries a device")
    log.info("%s.", ", ".join(parts))
    return compiled


def _log_run(config: ConfigDict, plan: Plan, state: TrainState, num_train: int, num_val: int) -> None:
    """Logs what is about to be trained, on what, and for how long."""
    log.info(
        "Parameters of %s:\n%s",
        config.model.name,
        parameter_overview.get_parameter_overview(state.params, include_stats=False),
    )
    devices = jax.devices()
    log.info("Devices: %d x %s, in %d processes.", len(devices), devices[0].device_kind, jax.process_count())
    log.info("%s", _summary(config, plan, num_train, num_val))


def _summary(config: ConfigDict, plan: Plan, num_train: int, num_val: int) -> str:
    """Returns a sentence on the length of a training and its learning rate."""
    rate = f"{plan.learning_rate:.6g}"
    if (reference := config.optimizer.learning_rate_batch_size) is not None:
        rate += (
            f" ({config.optimizer.learning_rate:.6g} for {reference} examples, "
            f"{config.optimizer.learning_rate_scaling} scaling)"
        )
    return (
        f"{num_train} training and {num_val} validation examples; {plan.total_steps} steps of {config.batch_size} "
        f"examples ({plan.total_steps / plan.steps_per_epoch:.4g} epochs), of which {plan.warmup_steps} warm up to a "
        f"learning rate of {rate}; computing in {evaluate.compute_dtype(config)}."
    )


class Tracker:
    """Fetches the metrics of each step while the next one runs; checks, shows and writes them.

    Args:
        config, plan: of the run.
        writer: gets a line every `log.every_steps` steps.
        progress: shown at each step.
        batches: knows how long the loop has waited for input.
        checkpointer: knows which checkpoint is the last good one.
    """

    def __init__(
        self,
        config: ConfigDict,
        plan: Plan,
        writer: writers.MetricWriter,
        progress: writers.Progress,
        batches: Prefetcher,
        checkpointer: Checkpointer,
    ):
        self._config, self._plan, self._writer, self._progress = config, plan, writer, progress
        self._batches, self._checkpointer = batches, checkpointer
        self._pending: tuple[int, steps.Metrics] | None = None
        self._replaced: float | None = None  # records, since the last line
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begins to measure the rate anew, after a pause that is not training."""
        self._since, self._waited, self._steps = time.perf_counter(), self._batches.seconds_waited, 0

    def add(self, step: int, metrics: steps.Metrics) -> None:
        """Takes the metrics of a step that has just been dispatched, and deals with those of the one before."""
        self.settle()
        self._pending = (step, metrics)

    def settle(self) -> None:
        """Waits for the last step that was added, and deals with its metrics.

        Raises:
            NonFiniteError: if its loss or gradients are not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending[0], {name: float(v) for name, v in jax.device_get(self._pending[1]).items()}
        self._pending = None
        self._check(step, metrics)
        self._steps += 1
        if (replaced := metrics.pop("replaced_records", None)) is not None:
            self._replaced = (self._replaced or 0) + replaced
        elapsed = time.perf_counter() - self._since
        rate = self._steps * self._config.batch_size / elapsed
        input_wait = min(1.0, (self._batches.seconds_waited - self._waited) / elapsed)
        self._progress.update(
            {
                "loss": f"{metrics['loss']:.3f}",
                "top1": f"{metrics['top1']:.1%}",
                "images/s": f"{rate:.4g}",
                "input_wait": f"{input_wait:.0%}",
            }
        )
        if step % self._config.log.every_steps == 0 or step == self._plan.total_steps:
            values = {f"train/{name}": value for name, value in metrics.items()}
            values["train/epoch"] = step / self._plan.steps_per_epoch
            if self._replaced is not None:
                values["train/replaced_records"], self._replaced = self._replaced, None
            self._writer.write(step, {**values, "train/images_per_second": rate, "train/input_wait": input_wait})
            self.restart_clock()

    def _check(self, step: int, metrics: dict[str, float]) -> None:
        """Raises NonFiniteError if numbers went wrong and were not left out, or too often."""
        guard, skips = self._config.guard, metrics.pop("skipped_in_a_row", 0.0)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        if 0 < skips < guard.max_skips and (finite or guard.nonfinite == "skip"):
            log.warning(
                "Step %d is skipped: its loss is %.6g and the norm of its gradients %.6g.",
                *(step, metrics["loss"], metrics["grad_norm"]),
            )
            return
        if finite and not skips:
            return
        too_many = skips >= guard.max_skips
        self._checkpointer.wait()
        good = self._checkpointer.steps()
        raise NonFiniteError(
            f"At step {step} the loss is {metrics['loss']} and the norm of the gradients {metrics['grad_norm']}. "
            + (f"{skips:.0f} steps in a row were skipped, and guard.max_skips allows fewer. " if too_many else "")
            + (f"The last good checkpoint is step {good[-1]}" if good else "There is no checkpoint yet")
            + f", in {self._checkpointer.directory}. Lower optimizer.learning_rate, lengthen the warm-up, set "
            "optimizer.clip_global_norm, or compute in float32"
            + ("." if too_many else ", or let guard.nonfinite=skip leave out such steps.")
        )
