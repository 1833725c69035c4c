"""Evaluation: every example once, from a state or from a checkpoint."""

import logging
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import config as config_lib
from vision_jax import models, partition, pretrained, sharding, steps, writers
from vision_jax.checkpoint import Checkpointer, DamagedError, best_step
from vision_jax.data.decode import EvalTransform
from vision_jax.data.loader import Prefetcher
from vision_jax.data.order import EvalOrder
from vision_jax.data.sources import Source, closing, create_source
from vision_jax.data.workers import create_loader
from vision_jax.errors import CheckpointError, ConfigError, DataError, Interrupted
from vision_jax.preemption import Preemption
from vision_jax.watchdog import Watchdog

log = logging.getLogger(__name__)


def build_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """Returns the model that `config` describes, for data of so many classes.

    Raises:
        ConfigError: if `config.model.num_classes` is a smaller number.
    """
    wanted = config.model.num_classes
    if wanted is not None and wanted < num_classes:
        raise ConfigError(f"model.num_classes is {wanted}, but the data has {num_classes} classes: leave it unset.")
    options = all_model_options(config, wanted or num_classes)
    return models.create_model(config.model.name, dtype=compute_dtype(config), **options)


def all_model_options(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """Returns the arguments of the model that `config` describes, besides its name and dtype."""
    options = {"num_classes": num_classes, "in_channels": config.data.channels, **config_lib.model_options(config)}
    if "img_size" in models.registry.option_names(config.model.name):
        options["img_size"] = config.data.image_size
    return options


def load_pretrained(config: ConfigDict, num_classes: int, *, classifier_seed: int | None) -> dict[str, Any]:
    """Reads the weights that `config.model.pretrained` names.

    Args:
        config: the configuration.
        num_classes: of the model.
        classifier_seed: see `pretrained.from_torch`.

    Returns:
        the model's variables, in the memory of the host.

    Raises:
        DataError: if they cannot be read or do not fit.
    """
    options = all_model_options(config, num_classes)
    log.info("Weights: %s.", config.model.pretrained)
    return pretrained.load(config.model.name, config.model.pretrained, classifier_seed=classifier_seed, **options)


def build_teacher(config: ConfigDict, num_classes: int) -> steps.Teacher | None:
    """Returns the model that `config.distill` learns from, if there is one."""
    distill = config.distill
    if distill.teacher is None:
        return None
    seen = models.registry.entry(distill.teacher).input if distill.model_input else config.data
    return steps.Teacher(
        models.create_model(distill.teacher, dtype=compute_dtype(config), **_teacher_options(config, num_classes)),
        kind=distill.kind,
        temperature=distill.temperature,
        weight=distill.weight,
        mean=tuple(seen.mean),
        std=tuple(seen.std),
    )


def load_teacher(config: ConfigDict, num_classes: int, mesh: Mesh) -> dict[str, Any] | None:
    """Reads the weights of the model that `config.distill` learns from, if there is one, onto all devices.

    Raises:
        DataError: if they cannot be read or do not fit.
    """
    if config.distill.teacher is None:
        return None
    log.info("Weights of the teacher: %s.", config.distill.pretrained)
    options = _teacher_options(config, num_classes)
    variables = pretrained.load(config.distill.teacher, config.distill.pretrained, **options)
    return jax.device_put(variables, sharding.replicated(mesh))


def _teacher_options(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    options: dict[str, Any] = {"num_classes": num_classes, "in_channels": config.data.channels}
    if "img_size" in models.registry.option_names(config.distill.teacher):
        options["img_size"] = config.data.image_size
    return options


def compute_dtype(config: ConfigDict) -> jnp.dtype:
    """Returns the dtype that the model computes in."""
    if config.dtype != "auto":
        return jnp.dtype(config.dtype)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Returns (height, width, channels) of the model's input in training."""
    return (config.data.image_size, config.data.image_size, config.data.channels)


def variable_shapes(config: ConfigDict, model: nn.Module, size: int | None = None) -> dict[str, Any]:
    """Returns `params` and `batch_stats` of a model, with shapes and dtypes in place of arrays.

    Args:
        config: the configuration.
        model: the module.
        size: height and width of the images; None: `config.data.image_size`.

    Raises:
        ConfigError: if it cannot take images of that size.
    """
    shape = (size, size, config.data.channels) if size else image_shape(config)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    try:
        shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
        if empty := [path for path, x in jax.tree_util.tree_leaves_with_path(shapes) if not x.size]:
            raise ValueError(f"nothing is left of them at {jax.tree_util.keystr(empty[0])}")
    except (ValueError, TypeError, ZeroDivisionError) as error:  # a dimension became zero, or does not divide
        raise ConfigError(
            f"{config.model.name} cannot take images of (height, width, channels) = {shape}: {error}"
        ) from error
    return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}


def check_sizes(config: ConfigDict, model: nn.Module, *, train: bool) -> None:
    """Checks that a model takes images of all sizes with the same parameters.

    Args:
        config: the configuration.
        model: the module.
        train: the sizes of progressive resizing count too, besides that of evaluation.

    Raises:
        ConfigError: if not.
    """
    shapes = variable_shapes(config, model)
    sizes = [("data.progressive_sizes", size) for size in config.data.progressive_sizes] if train else []
    if config.data.eval_size is not None:
        sizes.append(("data.eval_size", config.data.eval_size))
    for path, size in sizes:
        if variable_shapes(config, model, size) != shapes:
            raise ConfigError(
                f"{config.model.name} has other parameters for images of {size} pixels ({path}) than for "
                f"{config.data.image_size} (data.image_size): give it one size alone."
            )


class Evaluator:
    """Evaluates variables on the validation split, with a step that is compiled once.

    Args:
        config: the configuration.
        mesh: of all devices.
        model: the module.
        source: the validation split.
        preemption: asked before each batch whether to stop, and while waiting for one; None: nobody is asked.
        watchdog: told of each batch; None: nobody is.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: Mesh,
        model: nn.Module,
        source: Source,
        *,
        preemption: Preemption | None = None,
        watchdog: Watchdog | None = None,
    ):
        data = config.data
        self._should_stop = _never if preemption is None else preemption.should_stop
        self._give_up = _never if preemption is None else preemption.noticed
        self._watchdog = watchdog or Watchdog(0)
        self._config, self._mesh, self._source = config, mesh, source
        self._batch_size = config.eval.batch_size or config.batch_size
        self._order = EvalOrder(len(source), self._batch_size)
        self._transform = EvalTransform(
            config_lib.eval_size(config), config_lib.eval_resize(config), data.channels, data.eval_filter
        )
        step = steps.make_eval_step(model, mean=data.mean, std=data.std, flip=config.eval.flip)
        self._step = jax.jit(step, out_shardings=sharding.replicated(mesh))
        self._compiled: Any = None

    def __call__(self, variables: Mapping[str, Any]) -> dict[str, float]:
        """Evaluates one or several sets of variables in one pass over the data.

        Args:
            variables: by prefix, such as {"": raw, "ema_": averaged}.

        Returns:
            means over all examples, under `val/` + prefix + `top1`, `top5` and `loss`, and `val/count`.

        Raises:
            Interrupted: once `preemption` said so.
            DataError: for a record that cannot be read.
        """
        variables = dict(variables)
        if self._compiled is None:
            size = config_lib.eval_size(self._config)
            shape = (size, size, self._config.data.channels)
            abstract = sharding.abstract_batch(self._mesh, self._batch_size, shape)
            start = time.perf_counter()
            with self._watchdog.suspended():
                self._compiled = sharding.compile_on(self._mesh, self._step, variables, abstract)
            log.info("The evaluation step was compiled in %.1f s.", time.perf_counter() - start)
        rows = sharding.local_rows(self._mesh, self._batch_size)
        batches = self._order.num_batches
        shown = jax.process_index() == 0
        totals: dict[str, jax.Array] | None = None
        data = self._config.data
        with (
            create_loader(
                self._source,
                self._order,
                self._transform,
                rows,
                num_workers=data.num_workers,
                num_threads=data.num_threads,
            ) as loader,
            Prefetcher(
                loader,
                range(batches),
                sharding.batch_placer(self._mesh, self._batch_size),
                data.prefetch,
                self._give_up,
            ) as prefetcher,
            writers.Progress(batches, description="evaluate", leave=False, enabled=shown) as progress,
        ):
            for batch in prefetcher:
                if self._should_stop():
                    raise Interrupted
                before = totals
                sums = self._compiled(variables, batch)
                totals = sums if totals is None else _add(totals, sums)
                if before is not None:  # stay one batch ahead of the devices, not all of them
                    jax.block_until_ready(before)
                    self._watchdog.beat()
                progress.update({})
        return _means(jax.device_get(totals), tuple(variables), len(self._source))


def _never() -> bool:
    return False


@jax.jit
def _add(totals: dict[str, jax.Array], sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: totals[name] + sums[name] for name in totals}


def _means(totals: Any, prefixes: tuple[str, ...], num_examples: int) -> dict[str, float]:
    """Divides sums by counts, after checking that each example was counted once."""
    results = {}
    for prefix in prefixes:
        count = int(totals[f"{prefix}count"])
        if count != num_examples:
            raise AssertionError(f"{count} examples were counted, and there are {num_examples}.")
        for name in ("top1", "top5", "loss"):
            results[f"val/{prefix}{name}"] = float(totals[prefix + name]) / count
        results["val/count"] = count
    return results


def score(metric: str, results: Mapping[str, Any]) -> float | None:
    """Returns how good results are by a metric, higher being better; None if they lack it."""
    value = results.get(metric)
    if value is None:
        return None
    return -value if metric.endswith("loss") else value


def scores_by_step(workdir: pathlib.Path, metric: str) -> dict[int, float]:
    """Returns the scores that training wrote into metrics.jsonl."""
    records = writers.training_records(workdir)
    return {record["step"]: value for record in records if (value := score(metric, record)) is not None}


def format_results(results: Mapping[str, float]) -> str:
    """Returns a small table: a row for the raw weights, and one for the averaged ones if there are any."""
    rows = [f"{'':10}{'top-1':>9}{'top-5':>9}{'loss':>9}{'examples':>10}"]
    for prefix, label in (("", "weights"), ("ema_", "EMA")):
        if f"val/{prefix}top1" in results:
            top1, top5, loss = (results[f"val/{prefix}{name}"] for name in ("top1", "top5", "loss"))
            rows.append(f"{label:10}{top1:9.2%}{top5:9.2%}{loss:9.4f}{results['val/count']:10d}")
    return "\n".join(rows)


def evaluate_checkpoint(
    workdir: str | pathlib.Path,
    step: int | str | None = None,
    config: ConfigDict | None = None,
    *,
    preemption: Preemption | None = None,
) -> tuple[int, dict[str, float]]:
    """Evaluates a checkpoint on whatever devices there are, and adds the results to metrics.jsonl.

    Args:
        workdir: of the run.
        step: a number; "best" by the configuration's `checkpoint.best_metric`; None for the latest that is whole.
        config: None: the one in the checkpoint.
        preemption: asked before each batch whether to stop; None: nobody is asked.

    Returns:
        the step, and the results as `Evaluator` gives them.

    Raises:
        CheckpointError: if there is no such checkpoint, or it does not fit the configuration.
        Interrupted: once `preemption` said so.
    """
    workdir = pathlib.Path(workdir)
    checkpointer = Checkpointer(workdir / "checkpoints")
    candidates = choose_checkpoints(checkpointer, workdir, step)
    for candidate in candidates:
        try:
            results = _evaluate_step(checkpointer, candidate, config, preemption)
            break
        except DamagedError as error:
            if candidate == candidates[-1]:
                raise
            log.warning("%s\n*** GOING BACK TO THE CHECKPOINT BEFORE IT. ***", error)
    if jax.process_index() == 0:
        try:
            writers.append_evaluation(workdir, candidate, results)
        except OSError as error:
            log.warning("The results are not added to metrics.jsonl: %s", error)
    return candidate, results


def choose_checkpoints(checkpointer: Checkpointer, workdir: pathlib.Path, wanted: int | str | None) -> list[int]:
    """Returns the steps that may be used, the one that is meant first.

    Args:
        checkpointer: of the workdir.
        workdir: of the run.
        wanted: a step or "best"; None: the latest, or one before it.

    Raises:
        CheckpointError: if there is none.
    """
    there = checkpointer.steps()
    if not there:
        raise CheckpointError(f"There is no checkpoint in {checkpointer.directory}: check --workdir.")
    if wanted is None:
        return there[::-1]
    if wanted == "best":
        metric = checkpointer.about(there[-1])["config"]["checkpoint"]["best_metric"]
        wanted = best_step(there, scores_by_step(workdir, metric))
        if wanted is None:
            raise CheckpointError(f"None of the checkpoints in {checkpointer.directory} has been evaluated: {there}.")
    if int(wanted) not in there:
        raise CheckpointError(
            f"There is no checkpoint of step {wanted} in {checkpointer.directory}: there are {there}."
        )
    return [int(wanted)]


def _evaluate_step(
    checkpointer: Checkpointer, step: int, config: ConfigDict | None, preemption: Preemption | None
) -> dict[str, float]:
    """Restores what a checkpoint holds of the model, and evaluates it."""
    about = checkpointer.about(step)
    if config is None:
        config = config_lib.from_dict(about["config"])
        try:
            sharding.mesh_axes(config, jax.device_count())
        except ConfigError as error:
            log.warning("The mesh of the training is not for these devices, so batches alone are divided. %s", error)
            sharding.reset_mesh(config)
    config = config_lib.resolve(config)
    config_lib.validate(config, jax.device_count())
    mesh = sharding.make_mesh(config)
    source = create_source(config, train=False)
    check_classes(source, about["num_classes"], about["class_names"], config.data.val_split)
    stacks = checkpointer.directory.with_name("stacks")
    with (
        Watchdog(config.watchdog_seconds, stacks, process_index=jax.process_index()) as watchdog,
        closing(source),
    ):
        model, variables = restore_model(checkpointer, step, config, mesh)
        check_sizes(config, model, train=False)
        watchdog.beat()
        return Evaluator(config, mesh, model, source, preemption=preemption, watchdog=watchdog)(variables)


def restore_model(
    checkpointer: Checkpointer, step: int, config: ConfigDict, mesh: Mesh
) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """Restores what a checkpoint holds of the model.

    Args:
        checkpointer: of the checkpoints.
        step: which of them.
        config: describes the model.
        mesh: what the arrays are laid out on, as in training.

    Returns:
        the module, and its variables by prefix: "" the weights, and "ema_" their moving averages, if there are any.

    Raises:
        DamagedError: if files are incomplete or altered.
        CheckpointError: if the checkpoint is of another model.
    """
    about = checkpointer.about(step)
    model = build_model(config, about["num_classes"])
    shapes = variable_shapes(config, model)
    item = {"step": jax.ShapeDtypeStruct((), jnp.int32), **shapes}
    if any(name.startswith("model/ema/") for name in about["arrays"]):
        item["ema"] = shapes
    layouts = partition.layouts(config, mesh, shapes["params"], item)
    restored = checkpointer.restore_item(step, "model", sharding.abstract(item, layouts))
    variables = {"": {name: restored[name] for name in shapes}}
    if "ema" in restored:
        variables["ema_"] = restored["ema"]
    return model, variables


def evaluate_pretrained(config: ConfigDict, *, preemption: Preemption | None = None) -> dict[str, float]:
    """Evaluates the weights that `config.model.pretrained` names on the validation split.

    Returns:
        see `Evaluator`.

    Raises:
        ConfigError, DataError: for input that cannot work.
        Interrupted: once `preemption` said so.
    """
    config = config_lib.resolve(config)
    config_lib.validate(config, jax.device_count())
    mesh = sharding.make_mesh(config)
    source = create_source(config, train=False)
    with Watchdog(config.watchdog_seconds, process_index=jax.process_index()) as watchdog, closing(source):
        model = build_model(config, source.num_classes)
        check_sizes(config, model, train=False)
        with watchdog.suspended():  # they may have to be downloaded
            variables = load_pretrained(config, model.num_classes, classifier_seed=None)
        layouts = partition.layouts(config, mesh, variables["params"], variables)
        variables = jax.device_put(variables, layouts)
        return Evaluator(config, mesh, model, source, preemption=preemption, watchdog=watchdog)({"": variables})


def check_classes(source: Source, num_classes: int, class_names: Sequence[str], split: str) -> None:
    """Checks that the labels of a source mean what they meant in training.

    Raises:
        DataError: if not.
    """
    if class_names and source.class_names and list(source.class_names) != list(class_names):
        missing, extra = set(class_names) - set(source.class_names), set(source.class_names) - set(class_names)
        raise DataError(
            f"The split {split!r} has other classes than the training data: missing are {sorted(missing)[:10]}, only "
            f"there are {sorted(extra)[:10]}. Give both the same class folders."
        )
    if source.num_classes != num_classes:
        raise DataError(f"The split {split!r} has {source.num_classes} classes and the training data {num_classes}.")
