"""Measures a detector or segmenter on the validation split of its run, by the evaluators of its configuration."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import numpy as np

from vision_jax import build, evaluate
from vision_jax.build import TrainedModel, compute_dtype
from vision_jax.config.plan import eval_kind, eval_options
from vision_jax.data.sources import Source, check_classes, closing, digest_of
from vision_jax.devices import distributed
from vision_jax.errors import ConfigError
from vision_jax.evaluators import Evaluator
from vision_jax.evaluators.dense import DenseEvaluator
from vision_jax.runtime import writers
from vision_jax.suite import tables
from vision_jax.suite.results import Entry, Results
from vision_jax.suite.run import Options, versions

SET = "val"


def run_dense(trained: TrainedModel, output: pathlib.Path, options: Options, batch_size: int | None = None) -> None:
    """Measures a model of boxes or masks, and keeps the results in `output`; all processes call it.

    There is a row for each evaluation of the configuration that measures boxes or masks: `val`, and `val/NAME` of
    others. What `output` has already of this model and the same images is not measured again.

    Args:
        trained: the model.
        output: a folder; see `results.Results`.
        options: of which `max_bad` and `overwrite` count.
        batch_size: images computed at once; None: as the configuration says.

    Raises:
        ConfigError: if no evaluation measures boxes or masks, or `output` has results of another model.
        DataError: if the split cannot be read, or has other classes.
        CheckpointError: if the results cannot be written.
    """
    config = trained.config
    names = [name for name in config.evals if _measures(trained, name)]
    if not names:
        raise ConfigError(f"None of the evaluations {', '.join(config.evals)} of the run measures {trained.dense}.")
    source = build.create_source(config, train=False)
    distributed.check_agreement({}, {"validation data": source})
    with contextlib.ExitStack() as lock, closing(source):
        check_classes(source, trained.num_classes, trained.class_names, config.data.val_split)
        about = _about(trained)

        def open_results() -> Results:
            output.mkdir(exist_ok=True)
            lock.enter_context(writers.open_workdir(output, flag="--output"))
            return Results.open(output, about, {}, options.overwrite)

        results = open_results() if jax.process_index() == 0 else None
        transform = build.make_eval_transform(config)
        made = build.make_evaluators(config, trained.objective, trained.mesh, source)
        for name in names:
            row = SET if name == SET else f"{SET}/{name}"
            how = (eval_kind(config, name), sorted(eval_options(config, name).items()))
            identity = digest_of(how, source.fingerprint(), transform)
            known = functools.partial(_is_known, results, row, identity, options.max_bad)
            if distributed.from_first(known):
                continue
            entry = _measure(trained, name, _adapted(made[name], options.max_bad, batch_size), source)
            if results is not None:
                results.put(row, {**entry, "identity": identity})
                print(tables.row_text(row, results.sets[row]), flush=True)


def _is_known(results: Results | None, row: str, identity: str, max_bad: int) -> bool:
    """Returns whether a row has been measured already, which is then shown."""
    if results is None or not results.has(row, identity, max_bad):
        return False
    print(f"{tables.row_text(row, results.sets[row])}   measured before", flush=True)
    return True


def _measures(trained: TrainedModel, name: str) -> bool:
    kind = build.evaluator_kind(trained.config, name)
    return issubclass(kind, DenseEvaluator) and kind.dense == trained.dense


def _adapted(evaluator: Evaluator, max_bad: int, batch_size: int | None) -> Evaluator:
    """Returns an evaluator that leaves out so many damaged images, and computes so many at once."""
    context = dataclasses.replace(evaluator.context, max_bad_records=max_bad)
    if batch_size is not None:
        context = dataclasses.replace(context, batch_size=batch_size)
    return dataclasses.replace(evaluator, context=context)


def _measure(trained: TrainedModel, name: str, evaluator: Evaluator, source: Source) -> Entry:
    """Returns a row of the table for JSON: numbers in percent, None where there is nothing to measure."""
    found: dict[str, Any] = {}
    start = time.perf_counter()
    values = evaluate.measure({name: evaluator}, trained.objective, {"": trained.variables}, keep_tables=found.update)
    measured = {key.partition("/")[2]: value for key, value in values.items()}
    count = int(measured.pop("count"))
    # COCO's -1: there is no object of this kind.
    percent = {key: 100 * x if np.isfinite(x) and x >= 0 else None for key, x in measured.items()}
    return {
        "measures": percent,
        **{"count": count, "expected": len(source), "incomplete": [], "damaged": len(source) - count},
        "rule": f"{type(evaluator).__name__.removesuffix('Evaluator')} on the split {trained.config.data.val_split}.",
        "classes": found.get(f"{name}/classes"),
        "seconds": time.perf_counter() - start,
    }


def _about(trained: TrainedModel) -> dict[str, Any]:
    """Returns what suite.json says besides the results."""
    dtype = np.dtype(compute_dtype(trained.config)).name
    model = {
        **{"name": trained.name, "origin": trained.origin, "digest": trained.digest, "dtype": dtype},
        "objective": dict(trained.config.objective),
        "classes": f"{trained.num_classes}, its own",
        "identity": digest_of(trained.digest, dtype, trained.class_names),
    }
    return {"model": model, "versions": versions(), "published": None}
