"""What a configuration describes, made: sources, model, objective, optimizer, layouts, step, evaluators."""

import dataclasses
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

from vision_jax import augment, models, optim, pretrained, steps
from vision_jax.config.fields import EVAL_FIELDS, MODEL_OPTIONS, OPTIMIZER_OPTIONS, SCHEDULE_OPTIONS
from vision_jax.config.plan import Plan, augmentation_fields, eval_kind, eval_resize, eval_size, objective_name
from vision_jax.data import check, digits, order
from vision_jax.data.cache import cache_dir
from vision_jax.data.loader import Loader, batch_fields
from vision_jax.data.order import BalancedOrder, OffsetOrder, TrainOrder
from vision_jax.data.sources import (
    FolderSource,
    RelabeledSource,
    Source,
    SubsetSource,
    SyntheticSource,
    TfdsSource,
    folder_class_names,
    read_labels,
)
from vision_jax.data.transforms import EvalTransform, TrainTransform
from vision_jax.data.views import View, parse_views
from vision_jax.data.workers import ProcessLoader, create_loader
from vision_jax.devices import compilation, distributed, partition, sharding
from vision_jax.errors import CheckpointError, ConfigError, DataError
from vision_jax.evaluators import EVALUATORS, Context, Evaluator
from vision_jax.objectives import OBJECTIVES, Distillation, Ema, Objective, Setup
from vision_jax.optim import masks
from vision_jax.runtime import writers
from vision_jax.runtime.checkpoint import Checkpointer
from vision_jax.runtime.preemption import Preemption
from vision_jax.runtime.watchdog import Watchdog
from vision_jax.state import TrainState

log = logging.getLogger(__name__)


def create_source(config: ConfigDict, *, train: bool, class_names: Sequence[str] = ()) -> Source:
    """Returns the training or validation source that `config.data` names.

    Where the model has more classes than the data, and starts from weights with classes of known names, its labels are
    the numbers of these.

    Args:
        config: the configuration.
        train: whether it is the training source.
        class_names: that number the labels of a validation source of folders; (): those of the training split, if
            that is there.

    Raises:
        DataError: if it is missing, empty or malformed.
    """
    data = config.data
    source = _create_source(config, train, class_names)
    if train and data.train_examples is not None:
        if data.train_examples > len(source):
            raise DataError(
                f"data.train_examples is {data.train_examples}, more than the {len(source)} of the split "
                f"{data.train_split!r}."
            )
        source = SubsetSource(source, order.subset(len(source), data.train_examples))
    return _relabel(config, source)


def _create_source(config: ConfigDict, train: bool, class_names: Sequence[str]) -> Source:
    """Returns the whole of a split."""
    data = config.data
    split = data.train_split if train else data.val_split
    match data.source:
        case "synthetic":
            examples = data.synthetic_train_examples if train else data.synthetic_val_examples
            size = data.image_size if train else data.eval_resize
            return SyntheticSource(examples, config.model.num_classes or 1000, size, seed=config.seed)
        case "folder":
            directory = pathlib.Path(data.dir).expanduser()
            if train:
                return FolderSource(directory, split, labels=data.train_labels)
            names = class_names or folder_class_names(directory, data.train_split, data.train_labels)
            return FolderSource(
                directory, split, labels=data.val_labels, class_names=names, labels_option="data.val_labels"
            )
        case "tfds":
            return TfdsSource(pathlib.Path(data.dir).expanduser(), split)
        case "digits":
            try:
                root = pathlib.Path(data.dir).expanduser() if data.dir else cache_dir()
            except DataError as error:
                raise DataError(f"{error} Or set data.dir to a folder for the digits.") from error
            try:
                directory = digits.prepare(root)
            except OSError as error:
                raise DataError(
                    f"Cannot write the digits to {root}: {error}. Set data.dir to another folder."
                ) from error
            return TfdsSource(directory, split)
    raise DataError(f"data.source is {data.source!r}, which is unknown.")


def _relabel(config: ConfigDict, source: Source) -> Source:
    """Numbers the labels of a source as the weights number their classes, if the model has as many as these."""
    model = config.model
    if model.pretrained is None or model.num_classes is None or model.num_classes <= source.num_classes:
        return source
    given = pretrained.read_class_names(model.pretrained_classes)
    names = pretrained.Classes(source.class_names, given).weight_names(model.num_classes)
    if not names or not source.class_names:
        return source
    labels = pretrained.map_classes(source.class_names, names)
    if (labels < 0).any():
        lacking = [name for name, label in zip(source.class_names, labels, strict=True) if label < 0]
        raise DataError(
            f"The data has {len(lacking)} classes that are none of model.pretrained_classes, such as {lacking[0]!r}: "
            "leave model.num_classes unset, for a classifier of the data's own classes."
        )
    log.info("Labels are the numbers that %d of the weights' %d classes have, by name.", len(labels), len(names))
    return RelabeledSource(source, labels, names)


def check_images(config: ConfigDict, source: Source) -> None:
    """Decodes all images of the validation source.

    Raises:
        DataError: if more of them are damaged than an evaluation may leave out; it names the first ones.
    """
    data = config.data
    log.info("Checking the %d images of the split %r.", len(source), data.val_split)
    with writers.Progress(len(source), description="check", enabled=jax.process_index() == 0) as bar:

        def progress(count: int) -> None:
            for _ in range(count):
                bar.update({})

        damaged = check.find_damaged(
            source,
            channels=data.channels,
            max_pixels=data.max_pixels,
            num_threads=data.num_threads,
            progress=progress,
        )
    check.refuse_damaged(damaged, len(source), data.max_bad_eval_records, data.val_split)


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
    ema = None
    if config.ema_decay is not None:
        start = plan.ema_start if plan else 0
        ema = Ema(config.ema_decay, config.ema_every_steps, start, config.ema_warmup)
    setup = Setup(
        model=build_model(config, num_classes if kind.classifies else 0),
        image_shape=image_shape(config),
        inputs=make_views(config),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        augmentation=augment.create_augmentation(augmentation_fields(config)),
        ema=ema,
        **({"steps_per_epoch": plan.steps_per_epoch, "total_steps": plan.total_steps} if plan else {}),
    )
    options = {name: value for name, value in config.objective.items() if name != "name"}
    if kind.classifies:
        options |= _label_options(config)
    if kind is Distillation:
        options |= _teacher_options(config, setup.model.num_classes)
    return kind(setup=setup, **options)


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
    wanted = config.model.num_classes if num_classes else 0
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


def load_pretrained(
    config: ConfigDict, num_classes: int, *, classifier_seed: int | None, class_names: Sequence[str] = ()
) -> dict[str, Any]:
    """Reads the weights that `config.model.pretrained` names.

    Args:
        config: the configuration.
        num_classes: of the model.
        classifier_seed: see `pretrained.from_torch`.
        class_names: of the data; empty: unknown.

    Returns:
        the model's variables, in the memory of the host.

    Raises:
        DataError: if they cannot be read or do not fit.
    """
    options = all_model_options(config, num_classes)
    log.info("Weights: %s.", config.model.pretrained)
    classes = pretrained.Classes(class_names, pretrained.read_class_names(config.model.pretrained_classes))
    return pretrained.load(
        config.model.name, config.model.pretrained, classifier_seed=classifier_seed, classes=classes, **options
    )


def load_initial(config: ConfigDict, objective: Objective, class_names: Sequence[str], mesh: Mesh) -> Any:
    """Reads what `config.model.pretrained` names: a file of weights, or the workdir of another run.

    Args:
        config: the configuration.
        objective: what will be trained.
        class_names: of the training data.
        mesh: of all devices.

    Returns:
        `params` and `batch_stats` of the model, where the classifier is a new one unless it is of the same classes; or
        None, if nothing is named.

    Raises:
        DataError, CheckpointError: if they cannot be read or do not fit.
    """
    given = config.model.pretrained
    num_classes = objective.setup.model.num_classes
    if not given:
        return None
    if not pretrained.is_workdir(given):
        return load_pretrained(config, num_classes, classifier_seed=config.seed, class_names=class_names)
    checkpointer = Checkpointer(pathlib.Path(given).expanduser() / "checkpoints")
    step, variables = restore_any(checkpointer, mesh)
    about = checkpointer.about(step)
    log.info("Weights: step %d of %s, a %s.", step, given, about["config"]["model"]["name"])
    classifier = _classifier_paths(config, objective)
    same = about["num_classes"] == num_classes and list(about["class_names"]) == list(class_names)
    fresh = jax.device_get(init_variables(objective, jax.random.key(config.seed)))
    if classifier and not same:
        log.info("Its classes are others (%d of them), so the classifier is a new one.", about["num_classes"])
        variables["params"] = _replace(variables["params"], fresh["params"], classifier)
    return variables


def _classifier_paths(config: ConfigDict, objective: Objective) -> set[str]:
    """Returns the paths of the parameters that a model has only for its classes."""
    if not objective.setup.model.num_classes:
        return set()
    full, body = (variable_shapes(config, model) for model in (objective.setup.model, build_model(config, 0)))
    return _paths(full["params"]) - _paths(body["params"])


def _paths(params: Any) -> set[str]:
    return {masks.path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}


def _replace(params: Any, other: Any, paths: set[str]) -> dict[str, Any]:
    """Returns a nested dict with what `other` has at some paths in place of what was there."""
    kept = optim.GroupRules().split(params)[0]
    result: dict[str, Any] = {}
    for tree, wanted in ((kept, False), (other, True)):
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            if (masks.path_string(path) in paths) == wanted:
                *parents, name = [key.key for key in path]
                node = result
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[name] = x
    return result


def restore_any(checkpointer: Checkpointer, mesh: Mesh) -> tuple[int, dict[str, Any]]:
    """Restores the variables of another run's latest whole checkpoint, whatever they are of.

    Args:
        checkpointer: of the other run.
        mesh: every device of it holds them in full.

    Returns:
        the step, and `params` and `batch_stats`: their moving averages, if the run kept some.

    Raises:
        CheckpointError: if there is none.
    """
    candidates = distributed.from_first(checkpointer.steps)[::-1]
    if not candidates:
        raise CheckpointError(f"There is no checkpoint in {checkpointer.directory}: check model.pretrained.")

    def restore(step: int) -> dict[str, Any]:
        item: dict[str, Any] = {}
        for name, (shape, dtype, _) in checkpointer.about(step)["arrays"].items():
            kind, *parents, last = name.split("/")
            if kind != "model":
                continue
            node = item
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = jax.ShapeDtypeStruct(tuple(shape), dtype)
        for variables in (item, *([item["ema"]] if "ema" in item else [])):
            variables.setdefault("batch_stats", {})  # it is stored, too, if it is empty
        return checkpointer.restore_item(step, "model", sharding.abstract(item, sharding.replicated(mesh)))

    step, restored = checkpointer.restore_first(candidates, restore)
    kept = restored.get("ema", restored)
    return step, {"params": kept["params"], "batch_stats": kept.get("batch_stats", {})}


def load_constants(objective: Objective, mesh: Mesh) -> dict[str, Any]:
    """Reads the constants of an objective, such as a teacher's weights, onto the devices; divided as parameters are.

    Raises:
        DataError: if they cannot be read or do not fit.
    """
    constants = {}
    for name, constant in objective.frozen().items():
        log.info("Weights of the %s are read.", name)
        rules = partition.Rules(dict(mesh.shape))
        layouts = partition.layouts(rules, mesh, constant.shapes["params"], constant.shapes)
        constants[name] = sharding.place(constant.load(), layouts)
    return constants


def abstract_constants(objective: Objective, mesh: Mesh) -> dict[str, Any]:
    """Returns shapes, dtypes and layouts of what `load_constants` reads, without reading it."""
    rules = partition.Rules(dict(mesh.shape))
    return {
        name: sharding.abstract(
            constant.shapes, partition.layouts(rules, mesh, constant.shapes["params"], constant.shapes)
        )
        for name, constant in objective.frozen().items()
    }


def restore_variables(
    checkpointer: Checkpointer, step: int, config: ConfigDict, mesh: Mesh
) -> tuple[Objective, dict[str, dict[str, Any]]]:
    """Restores what a checkpoint holds of the model and of the heads beside it.

    Args:
        checkpointer: of the checkpoints.
        step: which of them.
        config: describes the model.
        mesh: what the arrays are laid out on, as in training.

    Returns:
        the objective, and its variables by prefix: "" the weights, and "ema_" their moving averages, if there are any.

    Raises:
        DamagedError: if files are incomplete or altered.
        CheckpointError: if the checkpoint is of another model.
    """
    about = checkpointer.about(step)
    objective = make_objective(config, about["num_classes"])
    shapes = abstract_variables(objective)
    item = {"step": jax.ShapeDtypeStruct((), jnp.int32), **shapes}
    if any(name.startswith("model/ema/") for name in about["arrays"]):
        item["ema"] = shapes
    layouts = partition.layouts(partition_rules(config, mesh), mesh, shapes["params"], item)
    restored = checkpointer.restore_item(step, "model", sharding.abstract(item, layouts))
    variables = {"": {name: restored[name] for name in shapes}}
    if "ema" in restored:
        variables["ema_"] = restored["ema"]
    return objective, variables


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
        no_clip_adaptive=tuple(config.optimizer.no_clip_adaptive),
    )


def make_optimizer(config: ConfigDict, plan: Plan, params: Any) -> optax.GradientTransformation:
    """Returns the optimizer, with what holds for which parameters and the guard, if there is one.

    `params` are all parameters, frozen ones too, or their shapes.

    Raises:
        ConfigError: if a pattern of `config.optimizer` matches none of them.
    """
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
            clip_adaptive_mask=rules.clip_adaptive_mask,
            clip_global_norm=config.optimizer.clip_global_norm,
            **optimizer_options(config),
        ),
        params,
    )
    if config.guard.nonfinite == "skip" or config.guard.spike_deviations is not None:
        return optim.guard(optimizer, spike_deviations=config.guard.spike_deviations, window=config.guard.window)
    return optimizer


def optimizer_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of the optimizer that `config` sets, besides those that each of them has."""
    return {name: config.optimizer[name] for name in OPTIMIZER_OPTIONS if config.optimizer[name] is not None}


@dataclasses.dataclass(frozen=True)
class Program:
    """The pure functions of a run.

    Attributes:
        objective: what is minimized.
        initialize: (variables that training starts from, or None for random ones) -> the state before the first step.
            What the objective has beside the model may be missing in them.
        train_step: (state, batch, constants) -> (state, metrics).
        abstract_state: the state, with shapes, dtypes and layouts in place of arrays.
    """

    objective: Objective
    initialize: Callable[..., TrainState]
    train_step: steps.TrainStep
    abstract_state: TrainState


def make_program(config: ConfigDict, plan: Plan, objective: Objective, mesh: Mesh) -> Program:
    """Returns the pure functions of a run.

    Raises:
        ConfigError: if `mesh.rules` do not fit the model, or rules on the paths of parameters match nothing.
    """
    rules, params = make_rules(config), abstract_variables(objective)["params"]
    optimizer = make_optimizer(config, plan, params)
    create = functools.partial(create_state, objective, optimizer, rules, seed=config.seed)
    shapes = jax.eval_shape(create)
    layouts = partition.layouts(partition_rules(config, mesh), mesh, shapes.params, shapes)
    initialize = jax.jit(
        lambda given=None: create(given=given, missing=heads(objective)),
        out_shardings=layouts,
        # It runs once: on CPUs, optimizing it would take longer than all of a short training.
        compiler_options={"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None,
    )
    sam = None
    if config.optimizer.sam_rho is not None:
        sam = steps.Sam(config.optimizer.sam_rho, config.optimizer.sam_every)
    train_step = steps.make_train_step(
        objective,
        optimizer,
        make_schedule(config, plan),
        seed=config.seed,
        accumulate=config.optimizer.accumulate,
        sam=sam,
        rules=rules,
    )
    return Program(objective, initialize, train_step, sharding.abstract(shapes, layouts))


def heads(objective: Objective) -> tuple[str, ...]:
    """Returns the beginnings of the paths of the parameters that an objective has beside those of its model."""
    images = jnp.zeros((1, *objective.setup.image_shape), jnp.float32)
    model = jax.eval_shape(lambda: objective.setup.model.init(jax.random.key(0), images, train=False))["params"]
    return tuple(f"{name}/" for name in abstract_variables(objective)["params"] if name not in model)


def without_heads(objective: Objective, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of the model alone, without those that an objective has beside them at the root."""
    names = {prefix.removesuffix("/") for prefix in heads(objective)}
    return {
        collection: {name: values for name, values in tree.items() if name not in names}
        for collection, tree in variables.items()
    }


def create_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rules: optim.GroupRules | None = None,
    *,
    seed: int,
    given: Mapping[str, Any] | None = None,
    missing: Sequence[str] = (),
) -> TrainState:
    """Returns the state before the first step. It can be jitted, and evaluated abstractly.

    Args:
        objective: makes the variables, and what it keeps besides.
        optimizer: makes its own part of the state, for the parameters that are trained.
        rules: say which these are; None: all.
        seed: decides the initial parameters.
        given, missing: see `initialize`.
    """
    variables = initialize(objective, jax.random.key(seed), given, missing)
    step = jnp.zeros((), jnp.int32)
    keeps_average = objective.ema_decay(objective.progress(step)) is not None
    trained, _ = (rules or optim.GroupRules()).split(variables["params"])
    return TrainState(
        step=step,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(trained),
        ema=jax.tree.map(jnp.copy, variables) if keeps_average else None,
        extra=objective.init_extra(variables),
    )


def initialize(
    objective: Objective, key: jax.Array, given: Mapping[str, Any] | None = None, missing: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the variables that a training begins with: those that are given, and random ones for the rest.

    Args:
        objective: what is trained.
        key: of the random ones.
        given: `params` and `batch_stats` of other weights; what the objective does not have of them is left out. None:
            all are random.
        missing: beginnings of the paths, such as "projector/", of what may be missing in `given`.

    Returns:
        `params` and `batch_stats`.

    Raises:
        DataError: if something is neither given nor may be missing, or has another shape.
    """
    variables = init_variables(objective, key)
    if given is None:
        return variables
    flat = {
        (name, masks.path_string(path)): x
        for name in ("params", "batch_stats")
        for path, x in jax.tree_util.tree_leaves_with_path(given.get(name, {}))
    }
    lacking: list[str] = []

    def choose(name: str, path: Any, x: Any) -> Any:
        text = masks.path_string(path)
        if (name, text) not in flat:
            if not text.startswith(tuple(missing)):
                lacking.append(text)
            return x
        if flat[name, text].shape != x.shape:
            raise DataError(f"{text} has the shape {flat[name, text].shape} in the weights, and {x.shape} here.")
        return jnp.asarray(flat[name, text], x.dtype)

    merged = {
        name: jax.tree_util.tree_map_with_path(functools.partial(choose, name), variables[name])
        for name in ("params", "batch_stats")
    }
    if lacking:
        raise DataError(
            f"The weights lack {len(lacking)} arrays, such as {', '.join(lacking[:3])}; they have such as "
            f"{', '.join(text for _, text in list(flat)[:3])}. Are they of another model?"
        )
    return merged


def init_variables(objective: Objective, key: jax.Array) -> dict[str, Any]:
    """Returns the random variables that an objective begins with."""
    images = jnp.zeros((1, *objective.setup.image_shape), jnp.float32)
    return {"batch_stats": {}, **objective.init(key, {"image": images})}


def abstract_variables(objective: Objective) -> dict[str, Any]:
    """Returns `params` and `batch_stats` of an objective, with shapes and dtypes in place of arrays."""
    shapes = jax.eval_shape(lambda: init_variables(objective, jax.random.key(0)))
    return {"params": shapes["params"], "batch_stats": shapes["batch_stats"]}


def trace_steps(
    config: ConfigDict, plan: Plan, program: Program, mesh: Mesh, constants: Mapping[str, Any] | None = None
) -> dict[int, jax.stages.Traced]:
    """Traces the training step for every size of images that there will be, by size.

    Args:
        config, plan, mesh: of the run.
        program: its functions.
        constants: of the objective, or their shapes and layouts; None: {}.
    """
    transform = make_transform(config, plan, program.objective.inputs())
    by_size = {}
    for step in [step for step, _ in plan.train_sizes] or [0]:
        fields = batch_fields(transform.at(step), replaces=config.data.max_bad_records > 0)
        by_size[fields["image"].shape[-2]] = fields
    traced = {}
    for size, fields in sorted(by_size.items()):
        batch = sharding.abstract_batch(mesh, config.batch_size, fields)
        traced[size] = compilation.trace_step(
            mesh, program.train_step, program.abstract_state, batch, dict(constants or {})
        )
    return traced


def compile_steps(
    traced: Mapping[int, jax.stages.Traced], constants: Mapping[str, Any] | None = None
) -> Callable[[TrainState, steps.Batch], tuple[TrainState, steps.Metrics]]:
    """Compiles what `trace_steps` has traced, and returns it as one function of state and batch."""
    compiled = {size: compilation.compile_step(step) for size, step in traced.items()}
    constants = dict(constants or {})
    return lambda state, batch: compiled[batch["image"].shape[-2]](state, batch, constants)


def evaluates_objective(config: ConfigDict) -> bool:
    """Returns whether an evaluation asks for the loss of the objective itself, and so for its constants."""
    return any(eval_kind(config, name) == "objective" for name in config.evals)


def make_evaluators(
    config: ConfigDict,
    objective: Objective,
    mesh: Mesh,
    source: Source,
    *,
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
        constants: of the objective.
        preemption: asked before each batch whether to stop, and while waiting for one; None: nobody is asked.
        watchdog: told of each batch; None: nobody is.
    """
    data = config.data
    context = Context(
        mesh=mesh,
        source=source,
        transform=make_eval_transform(config),
        batch_size=config.eval.batch_size or config.batch_size,
        mean=tuple(data.mean),
        std=tuple(data.std),
        seed=config.seed,
        constants=constants or {},
        num_workers=data.num_workers,
        num_threads=data.num_threads,
        max_bad_records=data.max_bad_eval_records,
        prefetch=data.prefetch,
        preemption=preemption,
        watchdog=watchdog or Watchdog(0),
    )
    evaluators = {}
    for name in config.evals:
        kind = eval_kind(config, name)
        options = {"flip": config.eval.flip} if kind == "classification" else {}
        options |= {key: value for key, value in config.evals[name].items() if key not in EVAL_FIELDS}
        evaluators[name] = EVALUATORS[kind](context=context, **options)
    return evaluators


def make_order(config: ConfigDict, source: Source) -> TrainOrder | BalancedOrder:
    """Returns the order of the training's batches. For `data.balanced` this may read the whole data set, once."""
    data = config.data
    if data.balanced:
        labels = read_labels(source, data.num_threads)
        return BalancedOrder(labels, source.num_classes, config.batch_size, config.seed)
    return TrainOrder(len(source), config.batch_size, config.seed, data.repeats)


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
        max_pixels=data.max_pixels,
    )


def make_eval_transform(config: ConfigDict) -> EvalTransform:
    """Returns what makes a batch of records for evaluation and prediction: the preprocessing of a checkpoint."""
    data = config.data
    return EvalTransform(
        eval_size(config), eval_resize(config), data.channels, data.eval_filter, max_pixels=data.max_pixels
    )


def make_train_loader(
    config: ConfigDict,
    plan: Plan,
    mesh: Mesh,
    source: Source,
    rewinds: Sequence[tuple[int, int]] = (),
    *,
    order: TrainOrder | BalancedOrder | None = None,
    views: Sequence[View] | None = None,
) -> Loader | ProcessLoader:
    """Returns the loader of the training's batches.

    Args:
        config, plan, mesh, source: of the run.
        rewinds: each left some batches out.
        order: that of `make_order`, for a caller who makes several loaders; None: it is made here.
        views: what is cut out of each image; None: what `make_views` says.
    """
    data = config.data
    order = make_order(config, source) if order is None else order
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
