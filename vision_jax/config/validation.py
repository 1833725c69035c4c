"""The checks of a configuration that need no data."""

import dataclasses
import itertools
import math
import pathlib
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vision_jax import augment, models, optim
from vision_jax.config.dense_problems import changed, dense_problems
from vision_jax.config.fields import (
    EVAL_FIELDS,
    MODEL_OPTIONS,
    OPEN_FIELDS,
    OPTIMIZER_OPTIONS,
    SCHEDULE_OPTIONS,
    default_config,
)
from vision_jax.config.plan import (
    augmentation_fields,
    eval_kind,
    eval_options,
    eval_resize,
    eval_size,
    metric_directions,
    objective_name,
    prune_pattern,
    prune_sparsity,
)
from vision_jax.config.store import flatten, parent
from vision_jax.data.sources import OWN_SOURCES
from vision_jax.data.views import parse_views
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, check_no_url, suggest
from vision_jax.evaluators import EVALUATORS, LogitsEvaluator
from vision_jax.objectives import OBJECTIVES, Pairs, options_of
from vision_jax.optim.pruning import MASKED, SCOPES
from vision_jax.runtime import experiments

# What `data.source` may be, besides `OWN_SOURCES`.
SOURCES = ("digits", "tfds", "folder", "synthetic", "pairs", "coco", "voc", "masks", "scenes")
# What `validate` allows; fields that are not set are not checked.
_CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "data.source": SOURCES,
    "data.train_filter": ("bilinear", "bicubic", "area", "pillow-bilinear", "pillow-bicubic"),
    "data.eval_filter": ("bilinear", "bicubic"),
    "optimizer.learning_rate_scaling": ("linear", "sqrt"),
    "loss.name": ("softmax", "sigmoid"),
    "distill.kind": ("soft", "hard"),
    "guard.nonfinite": ("stop", "skip", "rewind"),
    "guard.spikes": ("stop", "skip", "rewind"),
    "checkpoint.on_error": ("stop", "continue"),
    "prune.scope": SCOPES,
    "prune.masked": MASKED,
}


# Fields that are paths. Weights may also be named as hf://OWNER/NAME.
_PATHS = ("data.dir", "data.train_list", "compilation_cache")
_WEIGHTS = ("model.pretrained", "distill.pretrained")


# What tuples hold that do not hold numbers.
_NAMES = ("data.dense.categories", "log.trackers", "objective.words", "objective.templates")
_PATTERNS = (
    *(f"optimizer.{name}" for name in ("no_decay", "no_clip_adaptive", "frozen", "layers", "constant_rate")),
    "prune.exclude",
)


_PAIRS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "optimizer.multipliers": (str, "(pattern, factor)"),
    "optimizer.frozen_until": (str, "(pattern, epochs)"),
    "schedule.points": ((int, float), "(epoch, share of the peak)"),
}


# Fields that hold pairs of integers, height and width.
_SIZES = ("data.dense.canvases", "data.dense.eval_canvases")


# Fields that hold pairs of strings, and what these are.
_STRING_PAIRS = {"mesh.rules": "(pattern, layout)"}


_POSITIVE = (
    *("batch_size", "epochs", "total_steps", "model.num_classes", "data.image_size", "data.prefetch"),
    *("model.window_size", "model.num_heads", "model.feature_blocks", "model.attention_window"),
    *("data.num_threads", "data.synthetic_train_examples", "data.synthetic_val_examples"),
    *("data.train_examples", "data.train_per_class", "data.repeats", "data.eval_size", "data.max_pixels"),
    *("data.dense.longer", "data.dense.max_boxes", "data.dense.eval_shorter", "data.dense.eval_longer"),
    *("optimizer.sam_rho", "optimizer.sam_every", "optimizer.accumulate", "distill.temperature"),
    *("ema_every_steps", "guard.spike_deviations", "guard.window", "guard.max_skips"),
    *("optimizer.learning_rate", "optimizer.learning_rate_batch_size", "optimizer.clip_global_norm"),
    *("optimizer.clip_value", "optimizer.clip_adaptive", "optimizer.clip_parameter_norm"),
    *("schedule.every_epochs", "schedule.decay_epochs", "prune.every_steps"),
    *("eval.every_epochs", "eval.every_steps", "eval.batch_size"),
    *("checkpoint.every_steps", "checkpoint.keep", "log.every_steps"),
    *("mesh.fsdp_min_size", "guard.max_rewinds", "optimizer.eps", "schedule.power", "schedule.timescale"),
)


_NOT_NEGATIVE = (
    *("seed", "optimizer.weight_decay", "model.bn_group_size", "data.num_workers", "data.max_bad_records"),
    "data.max_bad_eval_records",
    *("schedule.warmup_epochs", "schedule.warmup_steps", "schedule.end_factor", "schedule.cooldown_epochs"),
    *("augment.mixup", "augment.cutmix", "augment.cutout", "augment.shift", "augment.col_out"),
    "augment.mix_group",
    *("optimizer.weight_decay_end", "loss.auxiliary_weight", "ema_start_epochs", "watchdog_seconds"),
    *(
        "model.layer_scale",
        "model.head_std",
        "model.norm_epsilon",
        "model.global_blocks",
        "prune.begin_epochs",
        "prune.end_epochs",
    ),
)


_PROBABILITIES = (
    *("augment.flip", "augment.color_jitter_prob", "augment.greyscale", "augment.solarize", "augment.blur"),
    *("augment.erase", "augment.mix_prob", "augment.mix_switch_prob"),
)


_MOST_EPOCHS = 10**9  # whose steps can still be counted
_SHARES = ("distill.weight", "schedule.warmup_factor")  # from 0 to 1


_FACTORS = ("optimizer.layer_decay", "schedule.factor")  # more than 0, and at most 1


_BELOW_ONE = (
    "label_smoothing",
    "ema_decay",
    "augment.col_out",
    *("schedule.warmup_share", "loss.threshold", "prune.sparsity", "prune.initial_sparsity"),
    *(f"model.{name}" for name in ("drop_rate", "proj_drop_rate", "drop_path_rate")),
    *(f"optimizer.{name}" for name in ("momentum", "b1", "b2", "decay")),
)


def check_urls(config: ConfigDict) -> None:
    """Checks that no path in a configuration is a URL: this needs neither JAX nor data, and comes before all else.

    Raises:
        ConfigError: if one is.
    """
    values = dict(flatten(config))
    for path in (*_PATHS, *_WEIGHTS):
        value = values.get(path)
        if isinstance(value, str) and not (path in _WEIGHTS and value.startswith("hf://")):
            check_no_url(path, value)


def validate(config: ConfigDict, num_devices: int, *, train: bool = True) -> None:
    """Checks all fields together, before anything is read or allocated.

    Args:
        config: the configuration.
        num_devices: devices of all processes.
        train: whether it is for training, not only for evaluation.

    Raises:
        ConfigError: with one line for each problem.
    """
    check_urls(config)
    problems = list(_check_types(config))
    if not problems:  # the other checks compute with the values
        checks = (
            *(_check_ranges(config), _check_names(config), _check_data(config), _check_pruning(config)),
            _check_batches(config, num_devices),
        )
        problems = [problem for check in checks for problem in check]
        problems += [f"log.trackers: {what}" for what in experiments.problems(config.log.trackers, train=train)]
        problems += _check_mixing(config) if train else []
        if train and config.dtype == "float16":
            problems.append(
                "dtype is 'float16', which in training needs loss scaling, which is not implemented: small gradients "
                "would become zero. Train in bfloat16 or float32; float16 can be used in evaluation."
            )
    if problems:
        raise ConfigError("The configuration cannot work:\n" + "\n".join(f"  - {p}" for p in problems))


def _check_types(config: ConfigDict) -> Iterator[str]:
    """Checks that there are all fields and no others, each of the type of its default."""
    reference = default_config()
    values, defaults = dict(flatten(config)), dict(flatten(reference))
    for path in sorted(values.keys() - defaults.keys()):
        if path.startswith(OPEN_FIELDS):
            continue
        yield f"{path} is no field of the configuration: {suggest(path, list(defaults), 'vision_jax/config/fields.py')}"
    for path in sorted(defaults.keys() - values.keys()):
        if path.startswith(OPEN_FIELDS):
            continue
        yield f"{path} is missing: start from vision_jax.config.default_config()."
    yield from _check_kinds(config)
    for path in sorted(defaults.keys() & values.keys()):
        if path.startswith(OPEN_FIELDS):
            continue
        value = values[path]
        node, name = parent(reference, path)
        kind = node.get_type(name)
        allowed = {float: (float, int), tuple: (list,)}.get(kind, (kind,))
        if value is None:
            if defaults[path] is not None:
                yield f"{path} is None; it takes {_a(kind)}, such as {defaults[path]!r}."
        elif not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            yield f"{path} is {value!r}; it takes {_a(kind)}."
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{path} is {value!r}; it takes a finite number."
        elif isinstance(value, list):
            yield from _check_items(path, value)


def _check_kinds(config: ConfigDict) -> Iterator[str]:
    """Checks `objective` and `evals`, whose options are the fields of a dataclass each."""
    if not isinstance(config.objective, ConfigDict) or "name" not in config.objective:
        yield f"objective is {config.objective!r}: it takes a name and its options; see vision_jax/objectives."
        return
    name = config.objective.name
    if name is not None and name not in OBJECTIVES:
        yield f"objective.name is {name!r}: {suggest(str(name), OBJECTIVES)}"
        return
    name = objective_name(config)
    kind = OBJECTIVES[name]
    if kind.classifies and config.data.source == "pairs":
        yield f"data.source is 'pairs', whose images have captions, but no labels, from which {name} learns."
    if name != "distillation" and config.distill.teacher is not None:
        yield f"objective.name is {name!r}, and distill.teacher is {config.distill.teacher!r}: unset one."
    if name == "distillation" and config.distill.teacher is None:
        yield "objective.name is 'distillation', and distill.teacher is not set: it takes a name and weights."
    all_elsewhere = kind.configured and not options_of(kind)
    elsewhere = {*config.objective} - {"name"} if all_elsewhere else kind.configured
    for option in sorted({*config.objective} & elsewhere):
        yield f"objective.{option} is set, but {name} has its options in label_smoothing, loss and distill."
    own = {option: value for option, value in config.objective.items() if option not in elsewhere}
    yield from _check_fields("objective", own, kind, ("name",))
    if not isinstance(config.evals, ConfigDict) or not all(isinstance(v, ConfigDict) for v in config.evals.values()):
        yield f"evals is {config.evals!r}: it takes names of evaluations, and for each its kind and options."
        return
    for name in config.evals:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name == "train":
            yield f"evals has {name!r}: a name is made of a-z, 0-9, _ and -, and is not train."
        kind_name = config.evals[name].get("kind")
        if kind_name is not None and kind_name not in EVALUATORS:
            yield f"evals.{name}.kind is {kind_name!r}: {suggest(str(kind_name), EVALUATORS)}"
            continue
        if kind_name is not None and issubclass(EVALUATORS[kind_name], LogitsEvaluator) and not kind.classifies:
            objective = objective_name(config)
            yield f"evals.{name}.kind is {kind_name!r}, but the objective {objective} trains no classifier to measure."
        if kind_name not in (None, "objective") and getattr(EVALUATORS[kind_name], "dense", "") != kind.dense:
            learned = f"learns from {kind.dense}" if kind.dense else "learns from neither boxes nor masks"
            yield f"evals.{name}.kind is {kind_name!r}, and the objective {objective_name(config)} {learned}."
        if kind_name == "zero_shot" and not issubclass(kind, Pairs):
            yield f"evals.{name}.kind is 'zero_shot', but the objective {objective_name(config)} learns no words."
        elif kind_name == "zero_shot" and config.data.source == "pairs":
            yield f"evals.{name}.kind is 'zero_shot', and data.source='pairs' has no labels to measure it by."
        every = config.evals[name].get("every_epochs")
        if every is not None and not (isinstance(every, int | float) and every > 0):
            yield f"evals.{name}.every_epochs is {every!r}, which must be positive."
        evaluator = EVALUATORS[eval_kind(config, name)]
        if problems := list(_check_fields(f"evals.{name}", dict(config.evals[name]), evaluator, EVAL_FIELDS)):
            yield from problems
            continue
        context: Any = None  # which options do not depend on
        try:
            evaluator(context=context, **eval_options(config, name))
        except ConfigError as error:
            yield f"evals.{name}.{error}"


def _check_fields(path: str, values: Mapping[str, object], kind: type, others: Sequence[str]) -> Iterator[str]:
    """Checks the options of an objective or evaluator against the fields of its dataclass.

    Args:
        path: of the node in the configuration.
        values: what is set there.
        kind: the dataclass.
        others: fields of the node that are no options.
    """
    options = options_of(kind)
    for name in sorted(values.keys() - options.keys() - set(others)):
        yield f"{path}.{name} is no option of {kind.__name__}: {suggest(name, [*others, *options])}"
    for name in sorted(values.keys() & options.keys()):
        default, value = options[name].default, values[name]
        if default is dataclasses.MISSING or default is None or value is None:
            continue
        fits = _is_like(value, default)
        if fits and isinstance(value, tuple) and isinstance(default, tuple):
            fits = all(_is_like(item, example) for item in value for example in default[:1])
        if not fits:
            yield f"{path}.{name} is {value!r}; it takes {_a(type(default))}, such as {default!r}."
    for name, option in options.items():
        if option.default is dataclasses.MISSING and name not in values:
            yield f"{path}.{name} is not set, and {kind.__name__} needs it."


def _is_like(value: object, example: object) -> bool:
    """Returns whether a value is of an example's type; an integer is a float too, and a float is finite."""
    if isinstance(example, float) and isinstance(value, float | int) and not isinstance(value, bool):
        return math.isfinite(value)
    return isinstance(value, type(example)) and isinstance(value, bool) == isinstance(example, bool)


def _a(kind: type) -> str:
    """Returns the name of a type with its article."""
    return f"{'an' if kind is int else 'a'} {kind.__name__}"


def _check_patterns(path: str, patterns: Sequence[object]) -> Iterator[str]:
    """Checks that those that are strings are regular expressions."""
    for pattern in patterns:
        if not isinstance(pattern, str):
            continue
        try:
            re.compile(pattern)
        except re.error as error:
            yield (
                f"{path} has {pattern!r} in it, which is no regular expression: {error}. Write {re.escape(pattern)!r} "
                "for the characters themselves."
            )


def _check_items(path: str, items: list) -> Iterator[str]:
    """Checks what a tuple holds."""

    def is_number(value: object) -> bool:
        return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)

    if path in _NAMES:
        if not all(isinstance(v, str) for v in items):
            yield f"{path} is {items!r}; it takes names."
    elif path in _PATTERNS:
        if not all(isinstance(v, str) for v in items):
            yield f"{path} is {items!r}; it takes strings, regular expressions."
        yield from _check_patterns(path, items)
    elif path in _PAIRS:
        first, what = _PAIRS[path]
        for pair in items:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], first) and is_number(pair[1])):
                yield f"{path} has {pair!r} in it; it takes pairs of {what}."
        yield from _check_patterns(path, [pair[0] for pair in items if isinstance(pair, list) and pair])
    elif path in _SIZES:
        for pair in items:
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(v) is int and v > 0 for v in pair)):
                yield f"{path} has {pair!r} in it; it takes pairs of positive integers, (height, width)."
    elif path in _STRING_PAIRS:
        for pair in items:
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, str) for v in pair)):
                yield f"{path} has {pair!r} in it; it takes pairs of strings, {_STRING_PAIRS[path]}."
        yield from _check_patterns(path, [pair[0] for pair in items if isinstance(pair, list) and pair])
    elif not all(is_number(v) for v in items):
        yield f"{path} is {items!r}; it takes finite numbers."


def _check_ranges(config: ConfigDict) -> Iterator[str]:
    """Checks the fields that have a range or a list of choices of their own."""
    values = dict(flatten(config))
    own = {"data.source": tuple(OWN_SOURCES)}
    for path, choices in _CHOICES.items():
        allowed = (*choices, *own.get(path, ()))
        if values[path] not in allowed:
            yield f"{path} is {values[path]!r}: {suggest(str(values[path]), allowed)}"
    if (stride := values["model.output_stride"]) not in (None, *models.resnet.OUTPUT_STRIDES):
        yield f"model.output_stride is {stride!r}: give 8, 16 or 32."
    for path in _POSITIVE:
        if values[path] is not None and not values[path] > 0:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, which must be positive."
    for path in _NOT_NEGATIVE:
        if values[path] is not None and not values[path] >= 0:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, which must not be negative."
    for path in _BELOW_ONE:
        if values[path] is not None and not 0 <= values[path] < 1:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, which must be at least 0 and less than 1."
    if config.seed >= 2**31:
        yield f"seed is {config.seed}, which must be less than 2^31."
    if config.model.num_classes is not None and config.model.num_classes > 2**31:
        yield f"model.num_classes is {config.model.num_classes}, and labels are int32: give at most 2^31."
    for path in _PROBABILITIES:
        if not 0 <= values[path] <= 1:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, a probability between 0 and 1."
    for path in _SHARES:
        if not 0 <= values[path] <= 1:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, a share between 0 and 1."
    for path in _FACTORS:
        if values[path] is not None and not 0 < values[path] <= 1:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, which must be more than 0 and at most 1."
    yield from _check_points(config)
    if config.schedule.warmup_steps is not None and config.schedule.warmup_share is not None:
        yield "schedule.warmup_steps and schedule.warmup_share are both set: leave one of them unset."
    if config.epochs > _MOST_EPOCHS:
        yield f"epochs is {config.epochs}, which is more than {_MOST_EPOCHS:,}."
    in_epochs = config.total_steps is None and config.schedule.warmup_steps is config.schedule.warmup_share is None
    if in_epochs and config.schedule.warmup_epochs >= config.epochs > 0:
        yield (
            f"schedule.warmup_epochs is {config.schedule.warmup_epochs} and the run only {config.epochs} epochs: "
            "shorten the warm-up or lengthen the run."
        )
    if config.optimizer.accumulate > 0 and config.batch_size % config.optimizer.accumulate:
        yield (
            f"optimizer.accumulate is {config.optimizer.accumulate}, which does not divide "
            f"batch_size={config.batch_size}."
        )
    if config.loss.name != "sigmoid" and (config.loss.threshold is not None or config.loss.sum_classes):
        yield f"loss.threshold and loss.sum_classes are of the loss sigmoid, and loss.name is {config.loss.name!r}."
    if any(not weight >= 0 for weight in config.loss.class_weights):
        yield f"loss.class_weights is {config.loss.class_weights}: no weight may be negative."
    if (config.distill.teacher is None) != (config.distill.pretrained is None):
        yield (
            f"distill.teacher is {config.distill.teacher!r} and distill.pretrained {config.distill.pretrained!r}: a "
            "teacher takes a name and weights, such as resnet50 and resnet50.safetensors."
        )
    if config.model.pretrained_classes is not None and config.model.pretrained is None:
        yield (
            f"model.pretrained_classes is {config.model.pretrained_classes!r}, but there are no weights: set "
            "model.pretrained too, or neither."
        )
    if config.optimizer.layers and config.optimizer.layer_decay is None:
        yield f"optimizer.layers is {tuple(config.optimizer.layers)}, but optimizer.layer_decay is not set: set both."
    profiled = config.log.profile_steps
    if profiled and not (
        len(profiled) == 2 and all(isinstance(step, int) for step in profiled) and 1 <= profiled[0] <= profiled[1]
    ):
        yield f"log.profile_steps is {tuple(profiled)}: it takes (first, last), positive integers, or () for none."
    best_metric = config.checkpoint.best_metric
    names = list(metric_directions(config))
    if best_metric not in names:
        yield f"checkpoint.best_metric is {best_metric!r}: {suggest(best_metric, names)}"
    has_average = config.ema_decay is not None or OBJECTIVES[objective_name(config)].teaches
    if best_metric in names and best_metric.partition("/")[2].startswith("ema_") and not has_average:
        yield f"checkpoint.best_metric is {best_metric!r}, but ema_decay is not set."


def _check_points(config: ConfigDict) -> Iterator[str]:
    """Checks the tuples of `config.schedule` and `config.optimizer` that hold numbers."""
    milestones, points = config.schedule.milestone_epochs or (), config.schedule.points or ()
    if any(step < 0 for step in config.schedule.milestone_steps or ()):
        yield f"schedule.milestone_steps is {tuple(config.schedule.milestone_steps)}: no step may be negative."
    if any(epoch < 0 for epoch in milestones):
        yield f"schedule.milestone_epochs is {tuple(milestones)}: no epoch may be negative."
    if any(epoch < 0 or share < 0 for epoch, share in points):
        yield f"schedule.points is {tuple(points)}: neither an epoch nor a share of the peak may be negative."
    if any(epochs < 0 for _, epochs in config.optimizer.frozen_until):
        yield f"optimizer.frozen_until is {tuple(config.optimizer.frozen_until)}: no number of epochs may be negative."
    if any(factor < 0 for _, factor in config.optimizer.multipliers):
        yield f"optimizer.multipliers is {tuple(config.optimizer.multipliers)}: no factor may be negative."


def _check_names(config: ConfigDict) -> Iterator[str]:
    """Checks the names that other modules define, and that what has such a name has the options that are set."""
    if config.optimizer.name not in optim.list_optimizers():
        yield f"optimizer.name is {config.optimizer.name!r}: {suggest(config.optimizer.name, optim.list_optimizers())}"
    else:
        takes = optim.optimizer_arguments(config.optimizer.name)
        yield from _check_options(config.optimizer, "optimizer", dict.fromkeys(OPTIMIZER_OPTIONS), takes)
    if config.optimizer.name == "sophia" and config.optimizer.constant_rate:
        yield "optimizer.constant_rate is set, and sophia cannot split the parameters: leave it unset."
    if config.schedule.name not in optim.list_schedules():
        yield f"schedule.name is {config.schedule.name!r}: {suggest(config.schedule.name, optim.list_schedules())}"
    else:
        yield from _check_options(
            config.schedule, "schedule", SCHEDULE_OPTIONS, optim.schedule_arguments(config.schedule.name)
        )
    try:
        augmentation = augmentation_fields(config)
        for crop in (augmentation, *augment.parse_crops(config.augment.crops, augmentation)):
            augment.create_augmentation(crop)
    except ConfigError as error:
        yield str(error)
    for path, name in (("model.name", config.model.name), ("distill.teacher", config.distill.teacher)):
        try:
            fields = [] if name is None else models.registry.option_names(name)
        except ConfigError as error:
            yield f"{path}: {error}"
        else:
            if path == "model.name":
                yield from _check_options(config.model, "model", dict.fromkeys(MODEL_OPTIONS), fields)
                heads = getattr(models.create_model(name), "num_heads", None)
                if config.model.num_heads is not None and isinstance(heads, tuple):
                    yield f"model.num_heads is {config.model.num_heads}, but {name} has {heads}: leave it unset."
            elif name and config.distill.model_input:
                channels = models.registry.entry(name).input.channels
                if channels != config.data.channels:
                    yield f"distill.model_input is set, but {name} expects {channels} channels: set it to False."


def _check_pruning(config: ConfigDict) -> Iterator[str]:
    """Checks that what is pruned goes together."""
    prune = config.prune
    try:
        pattern, sparsity = prune_pattern(prune.pattern), prune_sparsity(config)
    except ConfigError as error:
        yield str(error)
        return
    if pattern is not None and prune.scope == "global":
        yield f"prune.scope is 'global', and prune.pattern={prune.pattern} decides in each group: set it to 'array'."
    if sparsity is None:
        defaults = dict(flatten(default_config().prune))
        # The default of `exclude` may change, and configurations are stored with that of their time.
        given = [name for name, value in flatten(prune) if name != "exclude" and value != defaults[name]]
        if given:
            yield f"prune.{given[0]} is set, but nothing is pruned: set prune.sparsity or prune.pattern too."
    elif prune.initial_sparsity > sparsity:
        yield f"prune.initial_sparsity is {prune.initial_sparsity}, more than the sparsity at the end, {sparsity:g}."
    if pattern is not None and sparsity is not None and not math.isclose(prune.sparsity or sparsity, sparsity):
        yield (
            f"prune.sparsity is {prune.sparsity}, and prune.pattern={prune.pattern} makes {sparsity:g} of the weights "
            "zero: leave prune.sparsity unset."
        )
    if prune.end_epochs is not None and prune.end_epochs < prune.begin_epochs:
        yield f"prune.end_epochs is {prune.end_epochs}, before prune.begin_epochs={prune.begin_epochs}."


def _check_options(
    node: ConfigDict, path: str, options: Mapping[str, str | None], takes: Container[str]
) -> Iterator[str]:
    """Checks that what a node names has the options that the node sets: its fields, and their names there if others."""
    for field, name in options.items():
        if node[field] is not None and (name or field) not in takes:
            yield f"{path}.{field} is set to {node[field]!r}, but {node.name} has no such option: leave it unset."


def _check_data(config: ConfigDict) -> Iterator[str]:
    """Checks `config.data`, and that what is to be read is there."""
    data = config.data
    for path in ("dir", "train_labels", "val_labels"):
        try:
            check_no_url(f"data.{path}", data[path] or "")
        except ConfigError as error:
            yield str(error)
    for path in ("train_labels", "val_labels"):
        if data[path] is not None and data.source != "folder":
            yield f"data.{path} is set, which is for data.source=folder, and data.source is {data.source!r}: unset it."
    if data.label is not None and data.source != "tfds":
        yield f"data.label is {data.label!r}, which is for data.source=tfds, and that is {data.source!r}: unset it."
    if data.source in ("digits", "scenes") and data.dir and pathlib.Path(data.dir).expanduser().is_file():
        yield f"data.dir is {data.dir!r}, a file: it takes the folder that the {data.source} are cached in."
    if data.channels not in (1, 3):
        yield f"data.channels is {data.channels}: 3 is RGB, 1 is grayscale."
    for path in ("mean", "std"):
        if len(data[path]) != data.channels:
            yield f"data.{path} has {len(data[path])} values for data.channels={data.channels}: give one per channel."
    if any(not 0 <= mean <= 1 for mean in data.mean):
        yield f"data.mean is {data.mean}: every value must be between 0 and 1, as pixels are."
    if any(not s > 0 for s in data.std):
        yield f"data.std is {data.std}: every value must be positive."
    if data.eval_crop is not None and not 0 < data.eval_crop <= 1:
        yield f"data.eval_crop is {data.eval_crop}, a share: more than 0 and at most 1."
    elif (resize := eval_resize(config)) < eval_size(config) and not OBJECTIVES[objective_name(config)].dense:
        what = "image_size" if data.eval_size is None else "eval_size"
        yield f"data.eval_resize is {resize}, less than data.{what}={eval_size(config)}: raise it."
    parts = [name for name in ("train_examples", "train_per_class", "train_list") if data[name] is not None]
    if len(parts) > 1:
        yield f"data.{' and data.'.join(parts)} are set, which say what to train on: leave all but one unset."
    if data.balanced and data.repeats > 1:
        yield f"data.balanced and data.repeats={data.repeats} cannot go together: set repeats to 1."
    if not config.augment.shift < data.image_size:
        yield f"augment.shift is {config.augment.shift}, which must be less than data.image_size={data.image_size}."
    if data.repeats > config.batch_size > 0:
        yield f"data.repeats is {data.repeats}, more than batch_size={config.batch_size}."
    yield from _check_progressive(config)
    for path, top in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
        if path == "crop_ratio" and not len(data[path]):
            continue
        if len(data[path]) != 2 or not 0 < data[path][0] <= data[path][1] <= top:
            limit = " and at most 1" if top == 1 else ", or () for that of the image"
            yield f"data.{path} is {data[path]}: it takes (minimum, maximum), positive{limit}."
    if data.views:
        try:
            names = [view.name for view in parse_views(data.views)]
        except ConfigError as error:
            yield f"data.views: {error}"
        else:
            if data.progressive_sizes and "image" not in names:
                yield f"data.progressive_sizes are those of the view 'image', and data.views has {', '.join(names)}."
    yield from dense_problems(config)
    if data.source in ("tfds", "folder", "pairs", "coco", "voc", "masks"):
        if not data.dir:
            yield (
                f"data.dir is not set, and data.source={data.source} reads from it: pass --config.data.dir=DIR, or "
                "--config.data.source=synthetic for a run without data."
            )
        elif "://" in data.dir:
            pass  # said above
        elif not (directory := pathlib.Path(data.dir).expanduser()).is_dir():
            yield f"data.dir is {data.dir!r}, and there is no such directory."
        elif not any(directory.iterdir()):
            yield f"data.dir is {data.dir!r}, which is empty."


def _check_progressive(config: ConfigDict) -> Iterator[str]:
    """Checks the sizes of progressive resizing."""
    epochs, sizes = config.data.progressive_epochs, config.data.progressive_sizes
    if len(epochs) != len(sizes):
        yield (
            f"data.progressive_epochs has {len(epochs)} values and data.progressive_sizes {len(sizes)}: each size "
            "takes the epoch from which on it holds."
        )
    elif epochs and (epochs[0] != 0 or any(a >= b for a, b in itertools.pairwise(epochs))):
        yield f"data.progressive_epochs is {tuple(epochs)}: it must start with 0 and increase."
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        yield f"data.progressive_sizes is {tuple(sizes)}: every size must be a positive integer."


def _check_mixing(config: ConfigDict) -> Iterator[str]:
    """Checks that what mixes a batch and its labels is not asked for where an objective has no labels."""
    name = objective_name(config)
    if OBJECTIVES[name].classifies or OBJECTIVES[name].dense:  # `dense_problems` has its own
        return
    for path, value, usual in changed(config, ("augment.mixup", "augment.cutmix", "augment.col_out")):
        yield f"{path} is {value}, which is for objectives with labels, and {name} has none: set it to {usual:g}."


def _check_batches(config: ConfigDict, num_devices: int) -> Iterator[str]:
    """Checks the batches against the devices."""
    try:
        axes = sharding.mesh_axes(config.mesh, num_devices)
    except ConfigError as error:
        yield str(error)
        return
    along_data = axes["data"] * axes["fsdp"]
    batches = {"batch_size": config.batch_size, "eval.batch_size": config.eval.batch_size}
    for path, batch_size in batches.items():
        if batch_size is not None and batch_size % along_data:
            near = max(1, round(batch_size / along_data)) * along_data
            yield f"{path} is {batch_size}, which is not divisible by {along_data} devices: use {near}, for example."
    if 0 < config.augment.mix_group < config.batch_size and config.batch_size % config.augment.mix_group:
        yield f"augment.mix_group is {config.augment.mix_group}, which does not divide batch_size={config.batch_size}."
    part = config.batch_size // max(1, config.optimizer.accumulate)
    if config.optimizer.accumulate > 1 and part % along_data:
        yield (
            f"optimizer.accumulate is {config.optimizer.accumulate}: its micro-batches of {part} examples are not "
            f"divisible by {along_data} devices."
        )
    group = config.model.bn_group_size
    if group and 0 < group < part and part % group:
        what = "batch_size" if part == config.batch_size else "batch_size / optimizer.accumulate"
        yield f"model.bn_group_size is {group}, which does not divide {what}={part}."
