"""Evaluation: every example once, from a state or from a checkpoint."""

import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import build, steps
from vision_jax import config as config_lib
from vision_jax.data.loader import Prefetcher, batch_fields
from vision_jax.data.order import EvalOrder
from vision_jax.data.sources import Source, check_classes, closing
from vision_jax.data.transforms import EvalTransform
from vision_jax.data.workers import create_loader
from vision_jax.devices import partition, sharding
from vision_jax.errors import ConfigError, Interrupted
from vision_jax.runtime import writers
from vision_jax.runtime.checkpoint import Checkpointer, DamagedError, choose_checkpoints
from vision_jax.runtime.preemption import Preemption
from vision_jax.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)


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
            abstract = sharding.abstract_batch(self._mesh, self._batch_size, batch_fields(self._transform))
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


def _evaluate_step(
    checkpointer: Checkpointer, step: int, config: ConfigDict | None, preemption: Preemption | None
) -> dict[str, float]:
    """Restores what a checkpoint holds of the model, and evaluates it."""
    about = checkpointer.about(step)
    if config is None:
        config = config_lib.from_dict(about["config"])
        try:
            sharding.mesh_axes(config.mesh, jax.device_count())
        except ConfigError as error:
            log.warning("The mesh of the training is not for these devices, so batches alone are divided. %s", error)
            config_lib.reset_mesh(config)
    config = config_lib.resolve(config)
    config_lib.validate(config, jax.device_count())
    mesh = sharding.make_mesh(config.mesh)
    source = build.create_source(config, train=False)
    check_classes(source, about["num_classes"], about["class_names"], config.data.val_split)
    stacks = checkpointer.directory.with_name("stacks")
    with (
        Watchdog(config.watchdog_seconds, stacks, process_index=jax.process_index()) as watchdog,
        closing(source),
    ):
        model, variables = build.restore_model(checkpointer, step, config, mesh)
        build.check_sizes(config, model, train=False)
        watchdog.beat()
        return Evaluator(config, mesh, model, source, preemption=preemption, watchdog=watchdog)(variables)


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
    mesh = sharding.make_mesh(config.mesh)
    source = build.create_source(config, train=False)
    with Watchdog(config.watchdog_seconds, process_index=jax.process_index()) as watchdog, closing(source):
        model = build.build_model(config, source.num_classes)
        build.check_sizes(config, model, train=False)
        with watchdog.suspended():  # they may have to be downloaded
            variables = build.load_pretrained(config, model.num_classes, classifier_seed=None)
        layouts = partition.layouts(build.partition_rules(config, mesh), mesh, variables["params"], variables)
        variables = jax.device_put(variables, layouts)
        return Evaluator(config, mesh, model, source, preemption=preemption, watchdog=watchdog)({"": variables})
