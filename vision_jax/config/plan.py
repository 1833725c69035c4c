"""What follows from a configuration: sizes, steps and rates."""

import dataclasses
import math
import re
from typing import Any

from ml_collections import ConfigDict

from vision_jax import augment, optim
from vision_jax.config.fields import EVAL_FIELDS
from vision_jax.data.resizing import Canvas, Resizing
from vision_jax.errors import ConfigError
from vision_jax.evaluators import EVALUATORS
from vision_jax.models import registry
from vision_jax.objectives import OBJECTIVES, options_of
from vision_jax.optim.pruning import LARGEST_GROUP


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns the configuration with what `data.model_input` asks for filled in; a copy.

    Raises:
        ConfigError: if there is no such model.
    """
    config = config.copy_and_resolve_references()
    if config.data.model_input:
        spec = _weights_input(config.model.name, config.model.pretrained)
        config.data.update(
            {"image_size": spec.size, "channels": spec.channels, "mean": spec.mean, "std": spec.std}
            | {"eval_crop": spec.crop_pct, "eval_filter": spec.interpolation}
        )
    return config


def _weights_input(name: str, path: str | None) -> registry.InputSpec:
    """Returns what weights of a model expect: those of hf://timm/NAME by their own name, if it is known."""
    known = registry.entry(name)
    found = re.match("hf://timm/([^@/]+)", path or "")
    if found and registry.aliases().get(found[1]) == known.name:
        return registry.entry(found[1]).input
    return known.input


def objective_name(config: ConfigDict) -> str:
    """Returns the name of what is minimized; see `vision_jax.objectives`."""
    return config.objective.name or ("classification" if config.distill.teacher is None else "distillation")


def steps_per_batch(config: ConfigDict) -> int:
    """Returns in how many steps, one after another, each batch is seen; see `Objective.steps_per_batch`."""
    replays = options_of(OBJECTIVES[objective_name(config)]).get("replays")
    return 1 if replays is None else config.objective.get("replays", replays.default)


def eval_kind(config: ConfigDict, name: str) -> str:
    """Returns the kind of an evaluation; see `vision_jax.evaluators`."""
    objective = OBJECTIVES[objective_name(config)]
    usual = {"boxes": "detection", "masks": "segmentation"}.get(objective.dense, "objective")
    return config.evals[name].get("kind") or ("classification" if objective.classifies else usual)


def eval_options(config: ConfigDict, name: str) -> dict[str, Any]:
    """Returns the options of the evaluation `name`: its fields but for those that every evaluation has."""
    return {key: value for key, value in config.evals[name].items() if key not in EVAL_FIELDS}


def metric_directions(config: ConfigDict) -> dict[str, bool]:
    """Returns, for every metric that the evaluations of a run give, whether a higher value is better."""
    directions: dict[str, bool] = {}
    for name in config.evals:
        kind = eval_kind(config, name)
        metrics = EVALUATORS[kind].metrics if kind != "objective" else OBJECTIVES[objective_name(config)].metrics
        for prefix in ("", "ema_"):
            directions |= {f"{name}/{prefix}{metric}": higher for metric, higher in metrics.items()}
    return directions


def eval_size(config: ConfigDict) -> int:
    """Returns height and width of the images that are evaluated."""
    return config.data.eval_size or config.data.image_size


def eval_resize(config: ConfigDict) -> int:
    """Returns what the shorter side of an evaluation image is resized to."""
    crop = config.data.eval_crop
    return config.data.eval_resize if crop is None else math.floor(eval_size(config) / crop)


def dense_resizing(config: ConfigDict, *, train: bool) -> tuple[Resizing, tuple[Canvas, ...]]:
    """Returns how images with boxes or masks are resized, and the canvases that they are laid into.

    Raises:
        ConfigError: if that cannot work.
    """
    dense = config.data.dense
    shorter, longer = tuple(dense.shorter), dense.longer
    canvases = tuple((height, width) for height, width in dense.canvases)
    training = Resizing(
        dense.resize, shorter, 1333 if longer is None and dense.resize == "fit" else longer, tuple(dense.jitter)
    )
    training.check_canvases(canvases)
    if train:
        return training, canvases
    eval_canvases = tuple((height, width) for height, width in dense.eval_canvases) or canvases
    # What training cuts to fit is made smaller instead, so that either side fits.
    least, most = (min(canvases[0]), min(canvases[0])) if training.cuts else (max(shorter), training.longer)
    kind = "squash" if dense.resize == "squash" else "fit"
    try:
        resizing = Resizing(kind, (dense.eval_shorter or least,), dense.eval_longer or most)
        resizing.check_canvases(eval_canvases)
    except ConfigError as error:  # in which these fields have the names of training
        raise ConfigError(re.sub(r"(?<=data\.dense\.)(?=shorter|longer|canvases)", "eval_", str(error))) from error
    return resizing, eval_canvases


def prune_pattern(text: str) -> tuple[int, int] | None:
    """Returns (n, m) of a pattern such as "2:4", that at most n of m consecutive inputs are not zero; None of "".

    Raises:
        ConfigError: if it is none.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 0 < int(found[1]) < int(found[2]) <= LARGEST_GROUP:
        raise ConfigError(
            f"prune.pattern is {text!r}: it takes N:M, such as 2:4 or 4:8, for at most N of M weights that are not "
            f"zero, with N from 1 to M - 1 and M up to {LARGEST_GROUP}."
        )
    return int(found[1]), int(found[2])


def prune_sparsity(config: ConfigDict) -> float | None:
    """Returns the sparsity that `config.prune` asks for; None: nothing is pruned.

    Raises:
        ConfigError: if its pattern is none.
    """
    pattern = prune_pattern(config.prune.pattern)
    return config.prune.sparsity if pattern is None else 1 - pattern[0] / pattern[1]


def _prune_steps(config: ConfigDict, steps_per_epoch: int, total_steps: int) -> tuple[int, int]:
    """Returns the updates after which pruning begins and ends.

    Raises:
        ConfigError: if it is not over when the run is.
    """
    if prune_sparsity(config) is None:
        return 0, 0
    begin, until = round(config.prune.begin_epochs * steps_per_epoch), config.prune.end_epochs
    end = (begin + total_steps) // 2 if until is None else round(until * steps_per_epoch)
    if not begin <= end <= total_steps:
        raise ConfigError(
            f"Pruning goes from step {begin} to step {end}, and the run has {total_steps} (an epoch has "
            f"{steps_per_epoch}): set prune.begin_epochs and prune.end_epochs so that it is over before the run is."
        )
    return begin, end


def augmentation_fields(config: ConfigDict) -> augment.AugmentConfig:
    """Returns the augmentation settings of `config`."""
    fields = {name: value for name, value in config.augment.items() if name != "crops"}
    return augment.AugmentConfig(
        **fields, mean_color=tuple(min(255, max(0, round(255 * mean))) for mean in config.data.mean)
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What follows from a configuration once the number of training examples is known.

    Attributes:
        steps_per_epoch: floor(examples / batch_size).
        total_steps: updates in the whole run.
        warmup_steps: updates during which the learning rate rises.
        learning_rate: the peak, scaled to the batch.
        eval_every: steps between evaluations, except for those with an interval of their own.
        evals: (name, steps between evaluations) for each of `config.evals`.
        checkpoint_every: steps between checkpoints; None: only those before evaluations and at the end.
        train_sizes: (first step, size) of progressive resizing, ascending; empty without it.
        ema_start: updates before averaging starts.
        prune_steps: updates after which pruning begins and ends.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    learning_rate: float
    eval_every: int
    checkpoint_every: int | None
    train_sizes: tuple[tuple[int, int], ...] = ()
    ema_start: int = 0
    evals: tuple[tuple[str, int], ...] = ()
    prune_steps: tuple[int, int] = (0, 0)

    def evals_at(self, step: int) -> tuple[str, ...]:
        """Returns the names of the evaluations that are due after `step` updates; at the end, all of them."""
        return tuple(name for name, every in self.evals if step > 0 and (step % every == 0 or step == self.total_steps))

    def evaluates_at(self, step: int) -> bool:
        """Returns whether the state is evaluated after `step` updates."""
        return bool(self.evals_at(step))

    def saves_at(self, step: int) -> bool:
        """Returns whether the state is saved after `step` updates, which includes every evaluation."""
        every = self.checkpoint_every
        return self.evaluates_at(step) or (step > 0 and every is not None and step % every == 0)


def make_plan(config: ConfigDict, num_examples: int) -> Plan:
    """Turns epochs into steps and scales the learning rate.

    Args:
        config: the configuration.
        num_examples: in the training split.

    Raises:
        ConfigError: if the batch is larger than the split, the warm-up not shorter than the run, or pruning longer.
    """
    steps_per_epoch = num_examples // config.batch_size
    if not steps_per_epoch:
        raise ConfigError(
            f"batch_size is {config.batch_size}, more than the {num_examples} examples of the split "
            f"{config.data.train_split!r}: make it at most {num_examples}."
        )

    def steps(path: str, epochs: float, given: int | None) -> int:
        if given is not None:
            return given
        if epochs > 0 and (result := round(epochs * steps_per_epoch)) == 0:
            raise ConfigError(f"{path} is {epochs}, less than one of the {steps_per_epoch} steps of an epoch.")
        return result if epochs > 0 else 0

    total_steps = steps("epochs", config.epochs, config.total_steps)
    warmup_steps = config.schedule.warmup_steps
    if config.schedule.warmup_share is not None:
        warmup_steps = round(config.schedule.warmup_share * total_steps)
    warmup_steps = steps("schedule.warmup_epochs", config.schedule.warmup_epochs, warmup_steps)
    if warmup_steps >= total_steps:
        raise ConfigError(
            f"The warm-up is {warmup_steps} steps and the run {total_steps} (an epoch has {steps_per_epoch}): "
            "lower schedule.warmup_epochs or schedule.warmup_steps, or raise epochs or total_steps."
        )
    learning_rate = config.optimizer.learning_rate
    if (reference := config.optimizer.learning_rate_batch_size) is not None:
        scaling = config.optimizer.learning_rate_scaling
        learning_rate = optim.scale_learning_rate(learning_rate, config.batch_size, reference, scaling)
    eval_every = steps("eval.every_epochs", config.eval.every_epochs, config.eval.every_steps)

    def steps_between(name: str) -> int:
        every = config.evals[name].get("every_epochs")
        return eval_every if every is None else steps(f"evals.{name}.every_epochs", every, None)

    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        learning_rate=learning_rate,
        eval_every=eval_every,
        evals=tuple((name, steps_between(name)) for name in config.evals),
        checkpoint_every=config.checkpoint.every_steps,
        train_sizes=tuple(
            (round(epoch * steps_per_epoch), size)
            for epoch, size in zip(config.data.progressive_epochs, config.data.progressive_sizes, strict=True)
        ),
        ema_start=round(config.ema_start_epochs * steps_per_epoch),
        prune_steps=_prune_steps(config, steps_per_epoch, total_steps),
    )
