"""The training program, to be read from top to bottom.

`train_and_evaluate` checks the input: configuration, data, then workdir; nothing is allocated before all are in order.
`_train` makes the pure functions of the run (`build.py`), restores or initializes the state, and compiles the step
ahead of time. `_loop` does the updates. After each, in this order: save if due, stop if told to, evaluate if due. A
state is saved before it is evaluated, so neither a signal nor a crash in the evaluation loses it, and a run that was
stopped there begins with that evaluation. Metrics are fetched a few steps late, when others are under way
(`runtime/tracker.py`): the devices never wait for the host.

A step whose numbers are bad may send the run back (`guard`): `_loop` ends with `Rewind`, and `_train` enters it again
with the last checkpoint and an order of the data that leaves out the batches up to the bad one. The list of these
rewinds, (bad step, step gone back to), is stored in each checkpoint that follows; nothing else is needed to go on from
it.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import build, evaluate, position, steps
from vision_jax import config as config_lib
from vision_jax.config import Plan
from vision_jax.config.plan import metric_directions
from vision_jax.data.loader import Prefetcher
from vision_jax.data.order import BalancedOrder, BucketOrder, ReplayOrder, TrainOrder
from vision_jax.data.sources import Source, check_classes, closing
from vision_jax.devices import compilation, distributed, sharding
from vision_jax.errors import (
    CheckpointError,
    ConfigError,
    DamagedError,
    DataError,
    Interrupted,
    Preempted,
    check_no_url,
)
from vision_jax.evaluators import Evaluator, Table
from vision_jax.objectives import Objective
from vision_jax.report import figures
from vision_jax.runtime import experiments, writers
from vision_jax.runtime.background import Background
from vision_jax.runtime.checkpoint import BestMetric, Checkpointer
from vision_jax.runtime.goodput import Goodput
from vision_jax.runtime.preemption import Preemption
from vision_jax.runtime.profiling import Profiler
from vision_jax.runtime.tracker import BadNumbers, Counts, Outputs, Rewind, Tracker
from vision_jax.runtime.watchdog import Watchdog
from vision_jax.state import TrainState

log = logging.getLogger(__name__)


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    allow_config_change: bool = False,
    preemption: Preemption | None = None,
    begun: float | None = None,
) -> TrainState:
    """Trains a model, or goes on with the training that the workdir holds, and evaluates it.

    Args:
        config: see `vision_jax.config`.
        workdir: of this run; see README.md for what it holds.
        allow_config_change: go on although the workdir was made by another configuration.
        preemption: says when to stop; None: SIGTERM is handled here, as Ctrl-C is in any case.
        begun: `time.monotonic()` when the program started, from which on its time is accounted for; None: now.

    Returns:
        the state after the last step.

    Raises:
        ConfigError, DataError, CheckpointError: for input that cannot work.
        NonFiniteError: if the loss or the gradients stop being finite.
        Preempted: after SIGTERM, with the state saved.
        KeyboardInterrupt: after Ctrl-C; with the state saved, if training had begun. A second one does not wait for it.
    """
    begun = time.monotonic() if begun is None else begun
    if preemption is None:
        with Preemption() as preemption:
            return train_and_evaluate(
                config, workdir, allow_config_change=allow_config_change, preemption=preemption, begun=begun
            )
    check_no_url("The workdir", str(workdir))
    workdir = pathlib.Path(workdir)
    checked = check_input(config)
    _check_teacher(config)
    distributed.check_agreement(
        {**checked.config.to_dict(), "the workdir": str(workdir.absolute())},
        {"training data": checked.train_source, "validation data": checked.val_source},
    )
    is_first = jax.process_index() == 0
    with (
        closing(checked.train_source, checked.val_source),
        writers.open_workdir(workdir, enabled=is_first),
        Watchdog(checked.config.watchdog_seconds, workdir / "stacks", process_index=jax.process_index()) as watchdog,
    ):
        if is_first:
            if (path := workdir / "checkpoints").exists() and not path.is_dir():
                raise CheckpointError(f"{path} is a file, where checkpoints go: remove it, or give another --workdir.")
            config_lib.check_same_config(workdir, checked.config, allow_config_change=allow_config_change)
        sharding.wait_for_all("the workdir is open")
        return _train(checked, workdir, preemption, watchdog, begun)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A configuration, and what follows from it and the data, all of it in order.

    Attributes:
        config: with what it asks for filled in.
        plan: the length of the training and so on.
        objective: what is minimized.
        train_source, val_source: the splits.
    """

    config: ConfigDict
    plan: Plan
    objective: Objective
    train_source: Source
    val_source: Source


def check_input(config: ConfigDict, num_devices: int | None = None) -> Checked:
    """Returns the resolved configuration and what follows from it and the data, after checking all of it.

    Args:
        config: of the run.
        num_devices: that it would run on; None: on all that there are.
    """
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"The configuration is a {type(config).__name__}: make one by vision_jax.config.from_dict.")
    config = config_lib.resolve(config)
    config_lib.validate(config, jax.device_count() if num_devices is None else num_devices)
    train_source, val_source = build.create_source(config, train=True), build.create_source(config, train=False)
    check_classes(val_source, train_source.num_classes, train_source.class_names, config.data.val_split)
    plan = config_lib.make_plan(config, len(train_source))
    objective = build.make_objective(config, train_source.num_classes, plan)
    if objective.classifies and train_source.num_classes == 1:
        name = "".join(f", {name!r}" for name in train_source.class_names)
        raise DataError(
            f"The split {config.data.train_split!r} has 1 class{name}, "
            "and nothing to tell it from: add images of another, or choose an objective that needs no labels."
        )
    model: Any = objective.setup.model
    build.check_sizes(config, model, train=True)
    if objective.classifies and (weights := len(config.loss.class_weights)) not in (0, model.num_classes):
        raise ConfigError(
            f"loss.class_weights has {weights} values, and there are {model.num_classes} classes: give one for each."
        )
    if config.data.check_val_images:
        build.check_images(config, val_source)
    return Checked(config, plan, objective, train_source, val_source)


def _check_teacher(config: ConfigDict) -> None:
    """Checks that the weights of a teacher, which each start of a training reads, are there.

    Raises:
        ConfigError: if not.
    """
    path = config.distill.pretrained
    if path and not path.startswith("hf://") and not pathlib.Path(path).expanduser().exists():
        raise ConfigError(f"distill.pretrained is {path!r}, and there is no such file: give one, or hf://OWNER/NAME.")


@dataclasses.dataclass(frozen=True)
class _Run:
    """What `_loop` works with besides the state and the batches.

    Attributes:
        checked: the configuration and what follows from it.
        mesh: of all devices.
        train_step: the compiled step, (state, batch) -> (state, metrics).
        ideal_step_seconds: see `compilation.make_ideal_step_seconds`.
        evaluators: by name.
        evaluated: steps that have been evaluated.
        checkpointer: of the run's checkpoints.
        metadata: what each checkpoint says of the run.
        best: what the best checkpoint is chosen by.
        writer: of metrics.jsonl.
        goodput, profiler, preemption, watchdog: what watches the run.
    """

    checked: Checked
    mesh: Mesh
    train_step: Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]
    ideal_step_seconds: Callable[[int], float] | None
    evaluators: Mapping[str, Evaluator]
    evaluated: set[int]
    checkpointer: Checkpointer
    metadata: dict[str, Any]
    best: BestMetric
    writer: writers.MetricWriter
    goodput: Goodput
    profiler: Profiler
    preemption: Preemption
    watchdog: Watchdog
    order: TrainOrder | BalancedOrder | BucketOrder | ReplayOrder


def _train(
    checked: Checked, workdir: pathlib.Path, preemption: Preemption, watchdog: Watchdog, begun: float
) -> TrainState:
    """Does what `train_and_evaluate` says, once its input has been checked."""
    config, plan, objective = checked.config, checked.plan, checked.objective
    is_first = jax.process_index() == 0
    mesh = sharding.make_mesh(config.mesh)
    program = build.make_program(config, plan, objective, mesh)
    _log_run(checked, program.abstract_state)
    evaluations = _read_evaluations(workdir, config)
    best = BestMetric(config.checkpoint.best_metric, metric_directions(config)[config.checkpoint.best_metric])
    keep, on_error = config.checkpoint.keep, config.checkpoint.on_error
    with (
        Background() as background,  # it writes all files but the checkpoints
        Goodput(workdir / "goodput.json", begun=begun, enabled=is_first, worker=background) as goodput,
        Profiler(workdir / "profile", config.log.profile_steps) as profiler,
        Checkpointer(
            workdir / "checkpoints", keep=keep, scores=best.scores(evaluations), on_error=on_error, watchdog=watchdog
        ) as checkpointer,
    ):

        def begin() -> TrainState:
            """Returns the state of the last checkpoint, or if there is none, that before the first step."""
            if objective.classifies and (there := distributed.from_first(checkpointer.steps)):
                with contextlib.suppress(DamagedError):  # of which the restore says more
                    source, about = checked.train_source, checkpointer.about(there[-1])
                    position.check_same_classes(about, source.num_classes, source.class_names)
            if (state := checkpointer.restore_latest(program.abstract_state)) is not None:
                return state
            with watchdog.suspended():  # it is compiled, and weights may have to be downloaded
                return program.initialize(build.load_initial(config, objective, checked.train_source.class_names, mesh))

        state = begin()
        start = int(state.step)
        if start > plan.total_steps:
            raise CheckpointError(
                f"{workdir} is at step {start} already, and the training is only {plan.total_steps} steps long: raise "
                "epochs or total_steps, or give another --workdir."
            )
        if start:
            log.info("Going on from step %d of %d.", start, plan.total_steps)
            metadata = checkpointer.about(start)
            if is_first and (change := position.describe_change(metadata, config, len(checked.train_source), start)):
                log.warning("%s", change)
        evaluated = {record["step"]: record for record in evaluations if record["step"] <= start}
        if start == plan.total_steps and start in evaluated:
            log.info("The training is complete.\n%s", evaluate.format_results(evaluated[start]))
            return state
        if is_first:
            config_lib.write_config(workdir, config)
        goodput.continue_from(start)
        with watchdog.suspended(), goodput.phase("compilation"):
            constants = build.load_constants(objective, mesh)
            traced = build.trace_steps(config, plan, program, mesh, constants)
            compiled = build.compile_steps(traced, constants)
        goodput.mark(start)
        rewinds = stored_rewinds(checkpointer, start)
        with watchdog.suspended(), goodput.phase("input"):  # it may read all labels
            order = build.make_order(config, checked.train_source)
            shape_at = build.image_shapes(config, plan, order, objective.inputs())
            ideal = compilation.make_ideal_step_seconds(traced, shape_at, mesh, build.compute_dtype(config))
        as_json, fields = json.loads(config_lib.to_json(config)), dict(config_lib.flatten(config))
        with (
            experiments.track(
                workdir, config.log.trackers, as_json, fields, watchdog=watchdog, enabled=is_first
            ) as copies,
            writers.MetricWriter(
                workdir,
                last_step=start,
                tensorboard=config.log.tensorboard or "tensorboard" in config.log.trackers,
                on_error=on_error,
                enabled=is_first,
                worker=background,
                copies=copies,
            ) as writer,
        ):
            run = _Run(
                checked=checked,
                mesh=mesh,
                train_step=compiled,
                ideal_step_seconds=ideal,
                evaluators=build.make_evaluators(
                    config,
                    objective,
                    mesh,
                    checked.val_source,
                    train_source=checked.train_source,
                    constants=constants,
                    preemption=preemption,
                    watchdog=watchdog,
                ),
                evaluated=set(evaluated),
                checkpointer=checkpointer,
                metadata={
                    "config": as_json,
                    "best_is_high": best.high,
                    "num_examples": len(checked.train_source),
                    "num_classes": checked.train_source.num_classes,
                    "class_names": list(checked.train_source.class_names),
                },
                best=best,
                writer=writer,
                goodput=goodput,
                profiler=profiler,
                preemption=preemption,
                watchdog=watchdog,
                order=order,
            )
            while True:
                try:
                    with preemption.saving_on_interrupt():
                        return _attempt(run, state, rewinds)
                except Rewind as rewind:
                    bad = rewind.step
                # Here, and not above, where the exception still holds the arrays of the loop.
                state = begin()
                start = int(state.step)
                rewinds = [*rewinds, (bad, start)]
                run.evaluated.intersection_update(range(start + 1))
                writer.go_back(start)
                goodput.lose_steps_after(start)
                log.warning(
                    "GOING BACK from step %d to step %d, and on with the batches after it (%d of at most %d times).",
                    *(bad, start, len(rewinds), config.guard.max_rewinds),
                )


def _read_evaluations(workdir: pathlib.Path, config: ConfigDict) -> list[dict[str, Any]]:
    """Returns what training wrote of its evaluations: process 0 reads it, since others may not see it yet."""
    counts = [f"{name}/count" for name in config.evals]

    def read() -> list[dict[str, Any]]:
        return [record for record in writers.training_records(workdir) if any(count in record for count in counts)]

    return distributed.from_first(read)


def stored_rewinds(checkpointer: Checkpointer, step: int) -> list[tuple[int, int]]:
    """Returns the rewinds that came before the checkpoint of a step; none if there is no such checkpoint."""
    if not distributed.from_first(lambda: step in checkpointer.steps()):
        return []
    return [(bad, good) for bad, good in checkpointer.about(step).get("rewinds", [])]


def _attempt(run: _Run, state: TrainState, rewinds: Sequence[tuple[int, int]]) -> TrainState:
    """Trains from a state to the end, or to a step whose numbers are bad.

    Raises:
        Rewind: there.
    """
    config, plan, start = run.checked.config, run.checked.plan, int(state.step)
    run.metadata["rewinds"] = rewinds
    with (
        build.make_train_loader(config, plan, run.mesh, run.checked.train_source, rewinds, order=run.order) as loader,
        Prefetcher(
            loader,
            range(start, plan.total_steps),
            sharding.batch_placer(run.mesh, config.batch_size),
            config.data.prefetch,
            run.preemption.noticed,
        ) as batches,
        writers.Progress(
            plan.total_steps, initial=start, description="train", enabled=jax.process_index() == 0
        ) as progress,
        run.goodput.phase("steps"),
    ):
        guard = config.guard
        tracker = Tracker(
            Counts(config.batch_size, plan.steps_per_epoch, plan.total_steps, config.log.every_steps),
            Outputs(run.writer, progress, batches, run.checkpointer, run.goodput),
            BadNumbers(guard.nonfinite, guard.spikes, guard.max_skips, guard.max_rewinds),
            rewinds=len(rewinds),
            ideal_step_seconds=run.ideal_step_seconds,
        )
        return _loop(run, state, batches, tracker)


def _loop(run: _Run, state: TrainState, batches: Prefetcher, tracker: Tracker) -> TrainState:
    """Does the updates that are left. The order of operations is explained at the top of this file."""
    plan, goodput = run.checked.plan, run.goodput

    def save(step: int) -> None:
        tracker.settle()  # so that nothing that is not finite is saved
        run.writer.flush()
        with goodput.phase("saves"):
            run.checkpointer.save(step, state, run.metadata)
        goodput.mark(step)

    def stop(step: int) -> Preempted | KeyboardInterrupt:
        """Returns what to raise, once the state is saved; again, if it could not be saved before."""
        save(step)
        with goodput.phase("saves"):
            run.checkpointer.wait()
        return KeyboardInterrupt(f"step {step} is saved") if run.preemption.interrupted else Preempted(step)

    for step in range(int(state.step), plan.total_steps + 1):  # `step` updates are done
        stops = run.preemption.should_stop()
        if plan.saves_at(step):
            save(step)
        if stops:
            raise stop(step)
        if plan.evaluates_at(step) and step not in run.evaluated:
            try:
                _evaluate(run, step, state)
            except Interrupted:
                raise stop(step) from None
            tracker.restart_clock()
        if step < plan.total_steps:
            with run.profiler.step(step + 1):
                try:
                    with goodput.phase("input"):
                        batch = next(batches)
                except Interrupted:  # the input hangs, or is slow
                    raise stop(step) from None
                state, metrics = run.train_step(state, batch)
            with goodput.phase("other"):
                run.profiler.after_step(step + 1, metrics)
            tracker.add(step + 1, metrics)
            run.watchdog.beat()
    save(plan.total_steps)  # again, if it could not be saved before the evaluation
    with goodput.phase("saves"):
        run.checkpointer.wait()
    return state


def _evaluate(run: _Run, step: int, state: TrainState) -> None:
    """Evaluates a state, and writes and logs the results.

    Raises:
        Interrupted: if the run is to stop.
    """
    variables = {"": state.variables} | ({"ema_": state.ema} if state.ema is not None else {})
    with run.goodput.phase("evaluation"):
        due = {name: run.evaluators[name] for name in run.checked.plan.evals_at(step)}
        results = evaluate.measure(
            due,
            run.checked.objective,
            variables,
            keep_tables=functools.partial(_write_tables, run.writer, step),
        )
    run.evaluated.add(step)
    if (value := run.best.score(results)) is not None:
        run.checkpointer.record(step, value)
    run.writer.write(step, results)
    log.info("Step %d of %d, evaluated:\n%s", step, run.checked.plan.total_steps, evaluate.format_results(results))


def _write_tables(writer: writers.MetricWriter, step: int, tables: dict[str, Table]) -> None:
    """Writes the tables of an evaluation, and pictures of them if matplotlib is installed."""
    writer.write_tables(step, tables)
    if importlib.util.find_spec("matplotlib") is not None:
        writer.draw(step, functools.partial(figures.table_images, tables))
    else:
        log.info("The tables of step %d are not drawn, since matplotlib is not installed.", step)


def _log_run(checked: Checked, state: TrainState) -> None:
    """Logs what is about to be trained, on what, and for how long."""
    log.info(
        "Parameters of %s:\n%s",
        checked.config.model.name,
        parameter_overview.get_parameter_overview(state.params, include_stats=False),
    )
    devices = jax.devices()
    log.info("Devices: %d x %s, in %d processes.", len(devices), devices[0].device_kind, jax.process_count())
    log.info("%s", summarize(checked))


def summarize(checked: Checked) -> str:
    """Returns a sentence on the length of a training and its learning rate."""
    config, plan = checked.config, checked.plan
    rate = f"{plan.learning_rate:.6g}"
    if (reference := config.optimizer.learning_rate_batch_size) is not None:
        rate += (
            f" ({config.optimizer.learning_rate:.6g} for {reference} examples, "
            f"{config.optimizer.learning_rate_scaling} scaling)"
        )
    return (
        f"{len(checked.train_source)} training and {len(checked.val_source)} validation examples; {plan.total_steps} "
        f"steps of {config.batch_size} examples ({plan.total_steps / plan.steps_per_epoch:.4g} epochs), of which "
        f"{plan.warmup_steps} warm up to a learning rate of {rate}; computing in {build.compute_dtype(config)}."
    )
