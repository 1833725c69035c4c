"""The model and the objective that a configuration describes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vision_jax import augment, models
from vision_jax.assembly.inputs import make_views
from vision_jax.config.fields import MODEL_OPTIONS
from vision_jax.config.plan import Plan, augmentation_fields, dense_resizing, objective_name
from vision_jax.errors import ConfigError
from vision_jax.objectives import OBJECTIVES, Distillation, Ema, Objective, Setup


def make_objective(config: ConfigDict, num_classes: int, plan: Plan | None = None) -> Objective:
    """Returns what a training by this configuration minimizes, with its model.

    Args:
        config: the configuration.
        num_classes: of the training data.
        plan: of the training; None: for evaluation, where nothing depends on how long it is.

    Raises:
        ConfigError: if `config.model.num_classes` is a smaller number, or options do not fit.
    """
    kind = OBJECTIVES[objective_name(config)]
    views = make_views(config)
    size = config.data.image_size
    if not kind.crops and config.data.views and [(v.name, v.count, v.size) for v in views] != [("image", 1, size)]:
        raise ConfigError(
            f"data.views is {config.data.views!r}, and the objective {objective_name(config)} takes one crop of each "
            f"image, of data.image_size={size} pixels: 1x{size}, or with a range of areas, 1x{size}:0.2-1."
        )
    name = objective_name(config)
    kind.check_views(views, name)
    if kind.teaches and config.ema_decay is not None:
        raise ConfigError(
            f"ema_decay is {config.ema_decay}, but the average of the objective {name} is its teacher: leave it unset, "
            "and set objective.momentum."
        )
    ema = None
    if config.ema_decay is not None:
        start = plan.ema_start if plan else 0
        ema = Ema(config.ema_decay, config.ema_every_steps, start, config.ema_warmup)
    setup = Setup(
        model=build_model(config, num_classes if kind.classifies else 0),
        image_shape=image_shape(config),
        inputs=views,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        augmentation=augment.create_augmentation(augmentation_fields(config)),
        augmentations=_crop_augmentations(config, sum(view.count for view in views)),
        ema=ema,
        batch_size=config.batch_size,
        **({"steps_per_epoch": plan.steps_per_epoch, "total_steps": plan.total_steps} if plan else {}),
    )
    options = {name: value for name, value in config.objective.items() if name != "name"}
    if kind.classifies:
        options |= _label_options(config)
    if kind.dense:
        options["num_classes"] = _classes_of(config, num_classes)
    if kind is Distillation:
        options |= _teacher_options(config, setup.model.num_classes)
    return kind(setup=setup, **options)


def _classes_of(config: ConfigDict, num_classes: int) -> int:
    """Returns for how many classes something is trained on data of so many.

    Raises:
        ConfigError: if `config.model.num_classes` is a smaller number.
    """
    wanted = config.model.num_classes
    if wanted is not None and wanted < num_classes:
        raise ConfigError(f"model.num_classes is {wanted}, but the data has {num_classes} classes: leave it unset.")
    return wanted or num_classes


def _crop_augmentations(config: ConfigDict, crops: int) -> tuple[augment.Augmentation, ...]:
    """Returns the augmentation of each crop, as far as `augment.crops` says that they differ."""
    fields = augment.parse_crops(config.augment.crops, augmentation_fields(config))
    if len(fields) > crops:
        raise ConfigError(
            f"augment.crops is {config.augment.crops!r}, for {len(fields)} crops, and data.views has {crops}."
        )
    return tuple(map(augment.create_augmentation, fields))


def _label_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the options of classification, which have fields of their own in the configuration."""
    loss = config.loss
    return {
        "label_smoothing": config.label_smoothing,
        "loss_name": loss.name,
        "threshold": loss.threshold,
        "sum_classes": loss.sum_classes,
        "class_weights": tuple(loss.class_weights),
        "auxiliary_weight": loss.auxiliary_weight,
    }


def _teacher_options(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """Returns the options of distillation, which have fields of their own in the configuration."""
    distill = config.distill
    seen = models.registry.entry(distill.teacher).input if distill.model_input else config.data
    options: dict[str, Any] = {"num_classes": num_classes, "in_channels": config.data.channels}
    if "img_size" in models.registry.option_names(distill.teacher):
        options["img_size"] = config.data.image_size
    return {
        "teacher": distill.teacher,
        "pretrained": distill.pretrained,
        "teacher_options": tuple(options.items()),
        "kind": distill.kind,
        "temperature": distill.temperature,
        "weight": distill.weight,
        "teacher_mean": tuple(seen.mean),
        "teacher_std": tuple(seen.std),
    }


def build_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """Returns the model that `config` describes, for data of so many classes; for 0, without its classifier.

    Raises:
        ConfigError: if `config.model.num_classes` is a smaller number.
    """
    options = all_model_options(config, _classes_of(config, num_classes) if num_classes else 0)
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
    """Returns (height, width, channels) of the model's input in training; of several canvases, of the first."""
    if OBJECTIVES[objective_name(config)].dense:
        return (*dense_resizing(config, train=True)[1][0], config.data.channels)
    return (config.data.image_size, config.data.image_size, config.data.channels)


def variable_shapes(config: ConfigDict, model: nn.Module, size: int | None = None) -> dict[str, Any]:
    """Returns `params` and `batch_stats` of a model, with shapes and dtypes in place of arrays.

    Args:
        config: the configuration.
        model: the module, without the heads of an objective.
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
        reason = "nothing is left of them" if isinstance(error, ZeroDivisionError) else error
        advice = "Choose another size (data.image_size, data.eval_size; with boxes or masks, those of data.dense)"
        if OBJECTIVES[objective_name(config)].dense and hasattr(model, "img_size"):
            advice = "Set data.dense.canvases to one square, ((S, S),), and data.image_size to its side S"
        raise ConfigError(
            f"{config.model.name} cannot take images of (height, width, channels) = {shape}: {reason}. {advice}, or "
            "choose another model."
        ) from error
    return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}


def check_sizes(config: ConfigDict, model: nn.Module, *, train: bool) -> None:
    """Checks that a model takes images of all sizes with the same parameters.

    Args:
        config: the configuration.
        model: the module.
        train: the sizes of crops and of progressive resizing count too, besides that of evaluation.

    Raises:
        ConfigError: if not.
    """
    shapes = variable_shapes(config, model)
    sizes = [("data.progressive_sizes", size) for size in config.data.progressive_sizes] if train else []
    if train:
        sizes += [("data.views", view.size) for view in make_views(config) if view.size != config.data.image_size]
    if config.data.eval_size is not None:
        sizes.append(("data.eval_size", config.data.eval_size))
    for path, size in sizes:
        if variable_shapes(config, model, size) != shapes:
            raise ConfigError(
                f"{config.model.name} has other parameters for images of {size} pixels ({path}) than for "
                f"{config.data.image_size} (data.image_size): give it one size alone."
            )
