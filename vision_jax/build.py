"""What a configuration describes, made: sources, model, objective, optimizer, layouts, step, evaluators."""

import functools
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import augment, losses, models, optim, pretrained, steps
from vision_jax.config.fields import MODEL_OPTIONS, OPTIMIZER_OPTIONS, SCHEDULE_OPTIONS
from vision_jax.config.plan import Plan, augmentation_fields
from vision_jax.data import digits, order
from vision_jax.data.loader import Loader, batch_fields
from vision_jax.data.order import BalancedOrder, OffsetOrder, TrainOrder
from vision_jax.data.sources import (
    FolderSource,
    Source,
    SubsetSource,
    SyntheticSource,
    TfdsSource,
    cache_dir,
    read_labels,
)
from vision_jax.data.transforms import TrainTransform
from vision_jax.data.views import View, parse_views
from vision_jax.data.workers import ProcessLoader, create_loader
from vision_jax.devices import compilation, partition, sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.runtime.checkpoint import Checkpointer
from vision_jax.state import TrainState, create_state

log = logging.getLogger(__name__)


def create_source(config: ConfigDict, *, train: bool) -> Source:
    """Returns the training or validation source that `config.data` names.

    Raises:
        DataError: if it is missing, empty or malformed.
    """
    data = config.data
    source = _create_source(config, train=train)
    if train and data.train_examples is not None:
        if data.train_examples > len(source):
            raise DataError(
                f"data.train_examples is {data.train_examples}, more than the {len(source)} of the split "
                f"{data.train_split!r}."
            )
        source = SubsetSource(source, order.subset(len(source), data.train_examples))
    return source


def _create_source(config: ConfigDict, *, train: bool) -> Source:
    """Returns the whole of a split."""
    data = config.data
    split = data.train_split if train else data.val_split
    match data.source:
        case "synthetic":
            examples = data.synthetic_train_examples if train else data.synthetic_val_examples
            size = data.image_size if train else data.eval_resize
            return SyntheticSource(examples, config.model.num_classes or 1000, size, seed=config.seed)
        case "folder":
            return FolderSource(pathlib.Path(data.dir).expanduser(), split)
        case "tfds":
            return TfdsSource(pathlib.Path(data.dir).expanduser(), split)
        case "digits":
            root = pathlib.Path(data.dir).expanduser() if data.dir else cache_dir()
            try:
                directory = digits.prepare(root)
            except OSError as error:
                raise DataError(
                    f"Cannot write the digits to {root}: {error}. Set data.dir to another folder."
                ) from error
            return TfdsSource(directory, split)
    raise DataError(f"data.source is {data.source!r}, which is unknown.")


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
    options = {"num_classes": num_classes, "in_channels": config.data.channels, **model_options(config)}
    if "img_size" in models.registry.option_names(config.model.name):
        options["img_size"] = config.data.image_size
    return options


def model_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of the model that `config` sets, besides its name, classes, channels and dtype."""
    return {name: config.model[name] for name in MODEL_OPTIONS if config.model[name] is not None}


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
    layouts = partition.layouts(partition_rules(config, mesh), mesh, shapes["params"], item)
    restored = checkpointer.restore_item(step, "model", sharding.abstract(item, layouts))
    variables = {"": {name: restored[name] for name in shapes}}
    if "ema" in restored:
        variables["ema_"] = restored["ema"]
    return model, variables


def partition_rules(config: ConfigDict, mesh: Mesh) -> partition.Rules:
    """Returns what decides on the layouts of parameters."""
    given = tuple((pattern, layout) for pattern, layout in config.mesh.rules)
    return partition.Rules(dict(mesh.shape), given, config.mesh.fsdp_min_size)


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
        **schedule_options(config, plan.steps_per_epoch),
    )


def schedule_options(config: ConfigDict, steps_per_epoch: int) -> dict[str, Any]:
    """Returns the arguments of the schedule that `config` sets, besides those that each of them has; in steps."""
    options: dict[str, Any] = {}
    for field, name in SCHEDULE_OPTIONS.items():
        value = config.schedule[field]
        if value is None:
            continue
        if field == "points":
            value = tuple((epoch * steps_per_epoch, share) for epoch, share in value)
        elif field == "milestone_epochs":
            value = tuple(epoch * steps_per_epoch for epoch in value)
        elif field in ("every_epochs", "decay_epochs"):
            value = value * steps_per_epoch
        options[name] = value
    return options


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
            **optimizer_options(config),
        )
    )
    if config.guard.nonfinite == "skip" or config.guard.spike_deviations is not None:
        return optim.guard(optimizer, spike_deviations=config.guard.spike_deviations, window=config.guard.window)
    return optimizer


def optimizer_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of the optimizer that `config` sets, besides those that each of them has."""
    return {name: config.optimizer[name] for name in OPTIMIZER_OPTIONS if config.optimizer[name] is not None}


def make_functions(
    config: ConfigDict, plan: Plan, model: nn.Module, mesh: Mesh
) -> tuple[Callable[..., TrainState], steps.TrainStep, TrainState]:
    """Returns the pure functions of a run, and its state with shapes, dtypes and layouts in place of arrays.

    Returns:
        what gives the state before the first step, of the variables that training starts from if it does not start
        from random ones; the training step; and the abstract state.

    Raises:
        ConfigError: if `mesh.rules` do not fit the model.
    """
    schedule, optimizer = make_schedule(config, plan), make_optimizer(config, plan)
    create = functools.partial(
        create_state,
        model,
        optimizer,
        image_shape(config),
        seed=config.seed,
        ema=config.ema_decay is not None,
    )
    shapes = jax.eval_shape(create)
    layouts = partition.layouts(partition_rules(config, mesh), mesh, shapes.params, shapes)
    initialize = jax.jit(
        lambda variables=None: create(variables=variables),
        out_shardings=layouts,
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
        augmentation=augment.create_augmentation(augmentation_fields(config)),
        label_smoothing=config.label_smoothing,
        loss=losses.create_loss(
            config.loss.name,
            threshold=config.loss.threshold,
            sum_classes=config.loss.sum_classes,
            class_weights=config.loss.class_weights,
        ),
        auxiliary_weight=config.loss.auxiliary_weight,
        teacher=build_teacher(config, model.num_classes),
        ema=ema,
        accumulate=config.optimizer.accumulate,
        sam_rho=config.optimizer.sam_rho,
        sam_every=config.optimizer.sam_every,
    )
    return initialize, train_step, sharding.abstract(shapes, layouts)


def trace_steps(
    config: ConfigDict,
    plan: Plan,
    train_step: steps.TrainStep,
    abstract_state: TrainState,
    mesh: Mesh,
    teacher: Any = None,
    views: Sequence[View] | None = None,
) -> dict[int, jax.stages.Traced]:
    """Traces the training step for every size of images that there will be, by size.

    `teacher` are the variables of the teacher, if there is one; `views` those of the loader, see `make_train_loader`.
    """
    transform = make_transform(config, plan, views)
    by_size = {}
    for step in [step for step, _ in plan.train_sizes] or [0]:
        fields = batch_fields(transform.at(step), replaces=config.data.max_bad_records > 0)
        by_size[fields["image"].shape[-2]] = fields
    traced = {}
    for size, fields in sorted(by_size.items()):
        batch = sharding.abstract_batch(mesh, config.batch_size, fields)
        traced[size] = compilation.trace_step(mesh, train_step, abstract_state, batch, teacher)
    return traced


def compile_steps(
    traced: Mapping[int, jax.stages.Traced], teacher: Any = None
) -> Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]:
    """Compiles what `trace_steps` has traced, and returns it as one function of state and batch."""
    compiled = {size: compilation.compile_step(step) for size, step in traced.items()}
    return lambda state, batch: compiled[batch["image"].shape[-2]](state, batch, teacher)


def make_views(config: ConfigDict) -> tuple[View, ...]:
    """Returns what `data.views` says is cut out of each training image: by default one view, `image`."""
    data = config.data
    scale, ratio = tuple(data.crop_scale), tuple(data.crop_ratio)
    if data.views:
        return parse_views(data.views, scale, ratio)
    return (View("image", size=data.image_size, scale=scale, ratio=ratio),)


def make_transform(config: ConfigDict, plan: Plan, views: Sequence[View] | None = None) -> TrainTransform:
    """Returns what makes a training batch of records; `views` are those of `make_views` unless given."""
    data = config.data
    return TrainTransform(
        views=make_views(config) if views is None else tuple(views),
        channels=data.channels,
        seed=config.seed,
        filter=data.train_filter,
        scaled_decoding=data.scaled_decoding,
        fast_dct=data.fast_dct,
        fast_upsampling=data.fast_upsampling,
        sizes=plan.train_sizes,
    )


def make_train_loader(
    config: ConfigDict,
    plan: Plan,
    mesh: Mesh,
    source: Source,
    rewinds: Sequence[tuple[int, int]] = (),
    views: Sequence[View] | None = None,
) -> Loader | ProcessLoader:
    """Returns the loader of the training's batches.

    Args:
        config, plan, mesh, source: of the run.
        rewinds: each left some batches out.
        views: what is cut out of each image; None: what `make_views` says.
    """
    data = config.data
    order: TrainOrder | BalancedOrder = TrainOrder(len(source), config.batch_size, config.seed, data.repeats)
    if data.balanced:
        order = BalancedOrder(read_labels(source, data.num_threads), source.num_classes, config.batch_size, config.seed)
    # The size of the images is that of the step, whatever batch it sees.
    batches = OffsetOrder(order, sum(bad - good for bad, good in rewinds)) if rewinds else order
    return create_loader(
        source,
        batches,
        make_transform(config, plan, views),
        sharding.local_rows(mesh, config.batch_size),
        num_workers=data.num_workers,
        num_threads=data.num_threads,
        max_bad_records=data.max_bad_records,
    )
