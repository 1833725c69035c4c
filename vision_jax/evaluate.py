"""The evaluation program: of a checkpoint, or of weights from elsewhere, by the evaluators of the configuration."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.data.sources import Source, check_classes, closing
from vision_jax.devices import distributed, partition, sharding
from vision_jax.errors import check_no_url, reason
from vision_jax.evaluators import Evaluator, Table
from vision_jax.evaluators.base import Prefixed
from vision_jax.objectives import Objective
from vision_jax.runtime import writers
from vision_jax.runtime.checkpoint import Checkpointer, choose_checkpoints
from vision_jax.runtime.preemption import Preemption
from vision_jax.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)


def evaluate_checkpoint(
    workdir: str | pathlib.Path,
    step: int | str | None = None,
    config: ConfigDict | None = None,
    *,
    preemption: Preemption | None = None,
) -> tuple[int, dict[str, float]]:
    """Evaluates a checkpoint on whatever devices there are, and adds the results to metrics.jsonl and tables.jsonl.

    Args:
        workdir: of the run.
        step: a number; "best" by the configuration's `checkpoint.best_metric`; None for the latest that is whole.
        config: None: the one in the checkpoint.
        preemption: asked before each batch whether to stop; None: nobody is asked.

    Returns:
        the step, and the results as `measure` gives them.

    Raises:
        CheckpointError: if there is no such checkpoint, or it does not fit the configuration.
        ConfigError: if the workdir is a URL.
        Interrupted: once `preemption` said so.
    """
    check_no_url("The workdir", str(workdir))
    workdir = pathlib.Path(workdir)
    checkpointer = Checkpointer(workdir / "checkpoints")
    candidate, (results, tables) = checkpointer.restore_first(
        choose_checkpoints(checkpointer, workdir, step),
        lambda candidate: _evaluate_step(checkpointer, candidate, config, preemption),
    )
    if jax.process_index() == 0:
        try:
            writers.append_evaluation(workdir, candidate, results, tables)
        except OSError as error:
            log.warning("The results are not added to the files of the workdir: %s", reason(error, path=True))
    return candidate, results


def _evaluate_step(
    checkpointer: Checkpointer, step: int, config: ConfigDict | None, preemption: Preemption | None
) -> tuple[dict[str, float], dict[str, Table]]:
    """Restores what a checkpoint holds of the model, and evaluates it; returns the results and the tables."""
    with restored(checkpointer, step, config) as model:
        constants = {}
        if build.evaluates_objective(model.config):
            with model.watchdog.suspended():  # storage may be slow
                constants = build.load_constants(model.objective, model.mesh)
        with _training_split(model.config, model.source) as train_source:
            evaluators = build.make_evaluators(
                model.config,
                model.objective,
                model.mesh,
                model.source,
                train_source=train_source,
                constants=constants,
                preemption=preemption,
                watchdog=model.watchdog,
            )
            tables: dict[str, Table] = {}
            return measure(evaluators, model.objective, model.variables, keep_tables=tables.update), tables


@contextlib.contextmanager
def _training_split(config: ConfigDict, validation: Source) -> Iterator[Source | None]:
    """Gives the training split, if an evaluation learns from it; else None.

    Raises:
        DataError: if it is missing, empty or malformed, or has other classes than the validation split.
    """
    if not build.learns_from_training(config):
        yield None
        return
    source = build.create_source(config, train=True)
    distributed.check_agreement({}, {"training data": source})
    with closing(source):
        check_classes(source, validation.num_classes, validation.class_names, config.data.train_split)
        yield source


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds of the model, on the devices, with the split that it is evaluated on.

    Attributes:
        config: the configuration, resolved.
        mesh: of all devices.
        source: the validation split; of the classes of the checkpoint.
        objective: whose variables they are.
        variables: by prefix; see `build.restore_variables`.
        watchdog: runs as long as they are used.
    """

    config: ConfigDict
    mesh: Mesh
    source: Source
    objective: Objective
    variables: Prefixed
    watchdog: Watchdog


@contextlib.contextmanager
def restored(checkpointer: Checkpointer, step: int, config: ConfigDict | None = None) -> Iterator[Restored]:
    """Restores a checkpoint onto whatever devices there are, and opens the validation split, until the context ends.

    Args:
        checkpointer: of the checkpoints.
        step: which of them.
        config: None: the one in the checkpoint; if its mesh is not for these devices, with data parallelism alone.

    Raises:
        DamagedError: if files are incomplete or altered.
        CheckpointError: if the checkpoint does not fit the configuration.
        ConfigError, DataError: if the configuration or its data cannot be used here.
    """
    about = checkpointer.about(step)
    if config is None:
        config = build.checkpoint_config(about)
    config = config_lib.resolve(config)
    config_lib.validate(config, jax.device_count(), train=False)
    mesh = sharding.make_mesh(config.mesh)
    source = build.create_source(config, train=False, class_names=about["class_names"])
    distributed.check_agreement({}, {"validation data": source})
    check_classes(source, about["num_classes"], about["class_names"], config.data.val_split)
    stacks = checkpointer.directory.with_name("stacks")
    with (
        Watchdog(config.watchdog_seconds, stacks, process_index=jax.process_index()) as watchdog,
        closing(source),
    ):
        with watchdog.suspended():  # storage may be slow
            objective, variables = build.restore_variables(checkpointer, step, config, mesh)
        build.check_sizes(config, objective.setup.model, train=False)
        yield Restored(config, mesh, source, objective, variables, watchdog)


def evaluate_pretrained(config: ConfigDict, *, preemption: Preemption | None = None) -> dict[str, float]:
    """Evaluates the weights that `config.model.pretrained` names on the validation split.

    Returns:
        see `measure`.

    Raises:
        ConfigError, DataError: for input that cannot work.
        Interrupted: once `preemption` said so.
    """
    config = config_lib.resolve(config)
    config_lib.validate(config, jax.device_count(), train=False)
    mesh = sharding.make_mesh(config.mesh)
    source = build.create_source(config, train=False)
    distributed.check_agreement({}, {"validation data": source})
    with Watchdog(config.watchdog_seconds, process_index=jax.process_index()) as watchdog, closing(source):
        objective = build.make_objective(config, source.num_classes)
        model = objective.setup.model
        build.check_sizes(config, model, train=False)
        with watchdog.suspended():  # they may have to be downloaded
            variables = build.load_trained(config, objective, source.class_names)
        layouts = partition.layouts(build.partition_rules(config, mesh), mesh, variables["params"], variables)
        variables = sharding.place(variables, layouts)
        with _training_split(config, source) as train_source:
            evaluators = build.make_evaluators(
                config, objective, mesh, source, train_source=train_source, preemption=preemption, watchdog=watchdog
            )
            return measure(evaluators, objective, {"": variables})


def measure(
    evaluators: Mapping[str, Evaluator],
    objective: Objective,
    variables: Prefixed,
    *,
    keep_tables: Callable[[dict[str, Table]], object] | None = None,
) -> dict[str, float]:
    """Returns what evaluators give, the same in every process, under their names: `val/top1`, `val/count` and so on.

    Args:
        evaluators: by name.
        objective: whose variables they are.
        variables: by prefix, such as {"": weights, "ema_": their average}.
        keep_tables: gets the tables of the evaluators, if they give any, under such names; None: they are dropped.

    Raises:
        Interrupted, DataError: as `Evaluator`.
    """
    results: dict[str, float] = {}
    tables: dict[str, Table] = {}
    try:
        for name, evaluator in evaluators.items():
            for metric, value in evaluator(objective, variables).items():
                if isinstance(value, dict):
                    tables[f"{name}/{metric}"] = value
                else:
                    results[f"{name}/{metric}"] = value
    finally:
        for evaluator in evaluators.values():
            if evaluator.context.train is not None:
                evaluator.context.train.clear()  # the features, which may fill much of the memory
    if tables and keep_tables is not None:
        keep_tables(tables)
    return distributed.from_first(lambda: results)


def format_results(results: Mapping[str, float]) -> str:
    """Returns a small table for each evaluation: a row for the weights, and one for their average if there is one."""
    tables = []
    for name in dict.fromkeys(key.partition("/")[0] for key in results if "/" in key):
        values = {key.partition("/")[2]: value for key, value in results.items() if key.startswith(f"{name}/")}
        columns = [metric for metric in values if not metric.startswith("ema_") and metric != "count"]
        width = {metric: max(9, len(_heading(metric)) + 2) for metric in columns}
        heading = "".join(f"{_heading(metric):>{width[metric]}}" for metric in columns)
        first = max(10, len(name) + 1)
        rows = [f"{'' if name == 'val' else name:{first}}{heading}{'examples':>10}"]
        for prefix, label in (("", "weights"), ("ema_", "EMA")):
            if prefix + columns[0] in values:
                cells = "".join(f"{_cell(metric, values.get(prefix + metric)):>{width[metric]}}" for metric in columns)
                rows.append(f"{label:{first}}{cells}{int(values['count']):10d}")
        tables.append("\n".join(rows))
    return "\n".join(tables)


def _heading(metric: str) -> str:
    return {"top1": "top-1", "top5": "top-5"}.get(metric, metric)


def _cell(metric: str, value: float | None) -> str:
    if value is None:  # was not finite when it was written, or could not be measured
        return "nan"
    if metric.startswith("top"):
        return f"{value:.2%}"
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
