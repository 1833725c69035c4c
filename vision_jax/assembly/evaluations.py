"""The evaluators that a configuration describes."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax.assembly.inputs import make_eval_transform
from vision_jax.config.plan import eval_kind, eval_options
from vision_jax.data.sources import Source
from vision_jax.evaluators import EVALUATORS, Bank, Context, Evaluator, FrozenFeatures, LogitsEvaluator
from vision_jax.objectives import Objective
from vision_jax.runtime.preemption import Preemption
from vision_jax.runtime.watchdog import Watchdog


def evaluates_objective(config: ConfigDict) -> bool:
    """Returns whether an evaluation asks for the loss of the objective itself, and so for its constants."""
    return any(eval_kind(config, name) == "objective" for name in config.evals)


def learns_from_training(config: ConfigDict) -> bool:
    """Returns whether an evaluation learns from the training split, which is then to be opened."""
    return any(issubclass(EVALUATORS[eval_kind(config, name)], FrozenFeatures) for name in config.evals)


def evaluator_kind(config: ConfigDict, name: str) -> type[Evaluator]:
    """Returns the class of an evaluation."""
    return EVALUATORS[eval_kind(config, name)]


def make_context(
    config: ConfigDict,
    mesh: Mesh,
    source: Source,
    *,
    train_source: Source | None = None,
    constants: Mapping[str, Any] | None = None,
    preemption: Preemption | None = None,
    watchdog: Watchdog | None = None,
) -> Context:
    """Returns what every evaluator of a configuration gets; the arguments are those of `make_evaluators`."""
    data = config.data
    train = None
    if train_source is not None:  # what the training tolerates in it, an evaluation does, too
        train = Bank(train_source, max(data.max_bad_records, data.max_bad_eval_records))
    return Context(
        mesh=mesh,
        source=source,
        transform=make_eval_transform(config),
        batch_size=config.eval.batch_size or config.batch_size,
        mean=tuple(data.mean),
        std=tuple(data.std),
        seed=config.seed,
        constants=constants or {},
        train=train,
        num_workers=data.num_workers,
        num_threads=data.num_threads,
        max_bad_records=data.max_bad_eval_records,
        prefetch=data.prefetch,
        preemption=preemption,
        watchdog=watchdog or Watchdog(0),
    )


def make_evaluators(
    config: ConfigDict,
    objective: Objective,
    mesh: Mesh,
    source: Source,
    *,
    train_source: Source | None = None,
    constants: Mapping[str, Any] | None = None,
    preemption: Preemption | None = None,
    watchdog: Watchdog | None = None,
) -> dict[str, Evaluator]:
    """Returns the evaluators that `config.evals` names.

    Args:
        config: the configuration.
        objective: what they measure.
        mesh: of all devices.
        source: the validation split.
        train_source: the training split, if an evaluation learns from it; see `learns_from_training`.
        constants: of the objective.
        preemption: asked before each batch whether to stop, and while waiting for one; None: nobody is asked.
        watchdog: told of each batch; None: nobody is.
    """
    context = make_context(
        config,
        mesh,
        source,
        train_source=train_source,
        constants=constants,
        preemption=preemption,
        watchdog=watchdog,
    )
    evaluators = {}
    for name in config.evals:
        kind = eval_kind(config, name)
        options = {"flip": config.eval.flip} if issubclass(EVALUATORS[kind], LogitsEvaluator) else {}
        options |= eval_options(config, name)
        evaluators[name] = EVALUATORS[kind](context=context, **options)
    return evaluators
