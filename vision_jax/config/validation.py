"""The checks of a configuration that need no data."""

import itertools
import math
import pathlib
from collections.abc import Container, Iterator, Mapping

from ml_collections import ConfigDict

from vision_jax import augment, models, optim
from vision_jax.config.fields import MODEL_OPTIONS, OPTIMIZER_OPTIONS, SCHEDULE_OPTIONS, default_config
from vision_jax.config.plan import augmentation_fields, eval_resize, eval_size
from vision_jax.config.store import flatten, parent
from vision_jax.data.views import parse_views
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, suggest

# What `validate` allows; fields that are not set are not checked.
_CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "data.source": ("digits", "tfds", "folder", "synthetic"),
    "data.train_filter": ("bilinear", "bicubic", "area", "pillow-bilinear", "pillow-bicubic"),
    "data.eval_filter": ("bilinear", "bicubic"),
    "optimizer.learning_rate_scaling": ("linear", "sqrt"),
    "loss.name": ("softmax", "sigmoid"),
    "distill.kind": ("soft", "hard"),
    "guard.nonfinite": ("stop", "skip", "rewind"),
    "guard.spikes": ("stop", "skip", "rewind"),
    "checkpoint.on_error": ("stop", "continue"),
}


# What tuples hold that do not hold numbers.
_PATTERNS = ("optimizer.no_decay", "optimizer.no_clip_adaptive", "optimizer.frozen")


_PAIRS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "optimizer.multipliers": (str, "(pattern, factor)"),
    "schedule.points": ((int, float), "(epoch, share of the peak)"),
}


# Fields that hold pairs of strings, and what these are.
_STRING_PAIRS = {"mesh.rules": "(pattern, layout)"}


_POSITIVE = (
    *("batch_size", "epochs", "total_steps", "model.num_classes", "data.image_size", "data.prefetch"),
    *("data.num_threads", "data.synthetic_train_examples", "data.synthetic_val_examples"),
    *("data.train_examples", "data.repeats", "data.eval_size"),
    *("optimizer.sam_rho", "optimizer.sam_every", "optimizer.accumulate", "distill.temperature"),
    *("ema_every_steps", "guard.spike_deviations", "guard.window", "guard.max_skips"),
    *("optimizer.learning_rate", "optimizer.learning_rate_batch_size", "optimizer.clip_global_norm"),
    *("optimizer.clip_value", "optimizer.clip_adaptive", "schedule.every_epochs", "schedule.decay_epochs"),
    *("eval.every_epochs", "eval.every_steps", "eval.batch_size"),
    *("checkpoint.every_steps", "checkpoint.keep", "log.every_steps"),
    *("mesh.fsdp_min_size", "guard.max_rewinds"),
)


_NOT_NEGATIVE = (
    *("seed", "optimizer.weight_decay", "model.bn_group_size", "data.num_workers", "data.max_bad_records"),
    *("schedule.warmup_epochs", "schedule.warmup_steps", "schedule.end_factor", "schedule.warmup_factor"),
    "schedule.cooldown_epochs",
    *("augment.mixup", "augment.cutmix", "augment.cutout", "augment.shift", "augment.col_out"),
    "augment.mix_group",
    *("optimizer.weight_decay_end", "loss.auxiliary_weight", "ema_start_epochs", "watchdog_seconds"),
)


_PROBABILITIES = (
    *("augment.flip", "augment.color_jitter_prob", "augment.greyscale", "augment.solarize", "augment.blur"),
    *("augment.erase", "augment.mix_prob", "augment.mix_switch_prob", "distill.weight"),
)


_BELOW_ONE = (
    "label_smoothing",
    "ema_decay",
    "augment.col_out",
    "schedule.warmup_share",
    *(f"optimizer.{name}" for name in ("momentum", "b1", "b2", "decay")),
)


def validate(config: ConfigDict, num_devices: int) -> None:
    """Checks all fields together, before anything is read or allocated.

    Args:
        config: the configuration.
        num_devices: devices of all processes.

    Raises:
        ConfigError: with one line for each problem.
    """
    problems = list(_check_types(config))
    if not problems:  # the other checks compute with the values
        checks = (_check_ranges(config), _check_names(config), _check_data(config), _check_batches(config, num_devices))
        problems = [problem for check in checks for problem in check]
    if problems:
        raise ConfigError("The configuration cannot work:\n" + "\n".join(f"  - {p}" for p in problems))


def _check_types(config: ConfigDict) -> Iterator[str]:
    """Checks that there are all fields and no others, each of the type of its default."""
    reference = default_config()
    values, defaults = dict(flatten(config)), dict(flatten(reference))
    for path in sorted(values.keys() - defaults.keys()):
        yield f"{path} is no field of the configuration: {suggest(path, list(defaults), 'vision_jax/config/fields.py')}"
    for path in sorted(defaults.keys() - values.keys()):
        yield f"{path} is missing: start from vision_jax.config.default_config()."
    for path in sorted(defaults.keys() & values.keys()):
        value = values[path]
        node, name = parent(reference, path)
        kind = node.get_type(name)
        allowed = {float: (float, int), tuple: (list,)}.get(kind, (kind,))
        if value is None:
            if defaults[path] is not None:
                yield f"{path} is None; it takes a {kind.__name__}, such as {defaults[path]!r}."
        elif not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            yield f"{path} is {value!r}; it takes a {kind.__name__}."
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{path} is {value!r}; it takes a finite number."
        elif isinstance(value, list):
            yield from _check_items(path, value)


def _check_items(path: str, items: list) -> Iterator[str]:
    """Checks what a tuple holds."""

    def is_number(value: object) -> bool:
        return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)

    if path in _PATTERNS:
        if not all(isinstance(v, str) for v in items):
            yield f"{path} is {items!r}; it takes strings, regular expressions."
    elif path in _PAIRS:
        first, what = _PAIRS[path]
        for pair in items:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], first) and is_number(pair[1])):
                yield f"{path} has {pair!r} in it; it takes pairs of {what}."
    elif path in _STRING_PAIRS:
        for pair in items:
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, str) for v in pair)):
                yield f"{path} has {pair!r} in it; it takes pairs of strings, {_STRING_PAIRS[path]}."
    elif not all(is_number(v) for v in items):
        yield f"{path} is {items!r}; it takes finite numbers."


def _check_ranges(config: ConfigDict) -> Iterator[str]:
    """Checks the fields that have a range or a list of choices of their own."""
    values = dict(flatten(config))
    for path, allowed in _CHOICES.items():
        if values[path] not in allowed:
            yield f"{path} is {values[path]!r}: {suggest(str(values[path]), allowed)}"
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
    for path in _PROBABILITIES:
        if not 0 <= values[path] <= 1:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, a probability between 0 and 1."
    if config.schedule.warmup_steps is not None and config.schedule.warmup_share is not None:
        yield "schedule.warmup_steps and schedule.warmup_share are both set: leave one of them unset."
    in_epochs = config.total_steps is None and config.schedule.warmup_steps is config.schedule.warmup_share is None
    if in_epochs and config.schedule.warmup_epochs >= config.epochs > 0:
        yield (
            f"schedule.warmup_epochs is {config.schedule.warmup_epochs} and the training only {config.epochs} "
            "epochs: shorten the warm-up or lengthen the training."
        )
    if config.batch_size % config.optimizer.accumulate:
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
    profiled = config.log.profile_steps
    if profiled and not (
        len(profiled) == 2 and all(isinstance(step, int) for step in profiled) and 1 <= profiled[0] <= profiled[1]
    ):
        yield f"log.profile_steps is {tuple(profiled)}: it takes (first, last), positive integers, or () for none."
    best_metric = config.checkpoint.best_metric
    names = [f"val/{prefix}{name}" for prefix in ("", "ema_") for name in ("top1", "top5", "loss")]
    if best_metric not in names:
        yield f"checkpoint.best_metric is {best_metric!r}: {suggest(best_metric, names)}"
    elif config.ema_decay is None and best_metric.startswith("val/ema_"):
        yield f"checkpoint.best_metric is {best_metric!r}, but ema_decay is not set."


def _check_names(config: ConfigDict) -> Iterator[str]:
    """Checks the names that other modules define, and that what has such a name has the options that are set."""
    if config.optimizer.name not in optim.list_optimizers():
        yield f"optimizer.name is {config.optimizer.name!r}: {suggest(config.optimizer.name, optim.list_optimizers())}"
    else:
        takes = optim.optimizer_arguments(config.optimizer.name)
        yield from _check_options(config.optimizer, "optimizer", dict.fromkeys(OPTIMIZER_OPTIONS), takes)
    if config.schedule.name not in optim.list_schedules():
        yield f"schedule.name is {config.schedule.name!r}: {suggest(config.schedule.name, optim.list_schedules())}"
    else:
        yield from _check_options(
            config.schedule, "schedule", SCHEDULE_OPTIONS, optim.schedule_arguments(config.schedule.name)
        )
    try:
        augment.create_augmentation(augmentation_fields(config))
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
            elif name and config.distill.model_input:
                channels = models.registry.entry(name).input.channels
                if channels != config.data.channels:
                    yield f"distill.model_input is set, but {name} expects {channels} channels: set it to False."


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
    if data.source == "digits" and data.dir and pathlib.Path(data.dir).expanduser().is_file():
        yield f"data.dir is {data.dir!r}, a file: it takes the folder that the digits are cached in."
    if data.channels not in (1, 3):
        yield f"data.channels is {data.channels}: 3 is RGB, 1 is greyscale."
    for path in ("mean", "std"):
        if len(data[path]) != data.channels:
            yield f"data.{path} has {len(data[path])} values for data.channels={data.channels}: give one a channel."
    if any(not s > 0 for s in data.std):
        yield f"data.std is {data.std}: every value must be positive."
    if data.eval_crop is not None and not 0 < data.eval_crop <= 1:
        yield f"data.eval_crop is {data.eval_crop}, a share: more than 0 and at most 1."
    elif (resize := eval_resize(config)) < eval_size(config):
        what = "image_size" if data.eval_size is None else "eval_size"
        yield f"data.eval_resize is {resize}, less than data.{what}={eval_size(config)}: raise it."
    if data.balanced and data.repeats > 1:
        yield f"data.balanced and data.repeats={data.repeats} cannot go together: set repeats to 1."
    if data.repeats > config.batch_size:
        yield f"data.repeats is {data.repeats}, more than batch_size={config.batch_size}."
    yield from _check_progressive(config)
    for path, top in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
        if len(data[path]) != 2 or not 0 < data[path][0] <= data[path][1] <= top:
            limit = " and at most 1" if top == 1 else ""
            yield f"data.{path} is {data[path]}: it takes (least, largest), positive{limit}."
    if data.views:
        try:
            names = [view.name for view in parse_views(data.views)]
        except ConfigError as error:
            yield f"data.views: {error}"
        else:
            if data.progressive_sizes and "image" not in names:
                yield f"data.progressive_sizes are those of the view 'image', and data.views has {', '.join(names)}."
    if data.source in ("tfds", "folder"):
        if not data.dir:
            yield (
                f"data.dir is not set, and data.source={data.source} reads from it: pass --config.data.dir=DIR, or "
                "--config.data.source=synthetic for a run without data."
            )
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
        yield f"data.progressive_epochs is {tuple(epochs)}: it must begin with 0 and rise."
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        yield f"data.progressive_sizes is {tuple(sizes)}: every size must be a positive integer."


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
            yield f"{path} is {batch_size}, which {along_data} devices do not divide: {near} would do."
    if 0 < config.augment.mix_group < config.batch_size and config.batch_size % config.augment.mix_group:
        yield f"augment.mix_group is {config.augment.mix_group}, which does not divide batch_size={config.batch_size}."
    part = config.batch_size // config.optimizer.accumulate
    if config.optimizer.accumulate > 1 and part % along_data:
        yield (
            f"optimizer.accumulate is {config.optimizer.accumulate}: its parts of {part} examples are not divided by "
            f"{along_data} devices."
        )
    group = config.model.bn_group_size
    if group and 0 < group < part and part % group:
        what = "batch_size" if part == config.batch_size else "batch_size / optimizer.accumulate"
        yield f"model.bn_group_size is {group}, which does not divide {what}={part}."
