"""Weights from elsewhere: published ones, another run's, a checkpoint's, a teacher's."""

import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import pretrained
from vision_jax.assembly.models import all_model_options, make_objective
from vision_jax.assembly.states import (
    abstract_variables,
    classifier,
    heads,
    heads_alone,
    partition_rules,
    pooled_norm,
)
from vision_jax.config.plan import objective_name
from vision_jax.devices import distributed, partition, sharding
from vision_jax.errors import CheckpointError, DataError
from vision_jax.objectives import Dense, Objective
from vision_jax.optim import masks
from vision_jax.runtime.checkpoint import Checkpointer

log = logging.getLogger(__name__)


def load_pretrained(
    config: ConfigDict,
    num_classes: int,
    *,
    classifier_seed: int | None,
    class_names: Sequence[str] = (),
    file: pretrained.WeightFile | None = None,
) -> dict[str, Any]:
    """Reads the weights that `config.model.pretrained` names.

    Args:
        config: the configuration.
        num_classes: of the model.
        classifier_seed: see `pretrained.from_torch`.
        class_names: of the data; empty: unknown.
        file: what has been read of it already, or a part of that; None: it is read.

    Returns:
        the model's variables, in the memory of the host.

    Raises:
        DataError: if they cannot be read or do not fit.
    """
    options = all_model_options(config, num_classes)
    log.info("Weights: %s.", config.model.pretrained)
    classes = pretrained.Classes(class_names, pretrained.read_class_names(config.model.pretrained_classes))
    return pretrained.load(
        config.model.name, file or config.model.pretrained, classifier_seed=classifier_seed, classes=classes, **options
    )


def load_trained(config: ConfigDict, objective: Objective, class_names: Sequence[str]) -> dict[str, Any]:
    """Reads the weights that `config.model.pretrained` names, which are to be evaluated as they are.

    Args:
        config: the configuration.
        objective: whose variables they are.
        class_names: of the data.

    Raises:
        DataError: if they cannot be read or do not fit; also if a detector or segmenter is not all there.
    """
    if (whole := _load_whole(config, objective, classifier_seed=None)) is not None:
        return whole
    if isinstance(objective, Dense):
        raise DataError(
            f"{config.model.pretrained} has no whole network of {objective_name(config)} under torchvision's names: "
            "give a file of one, or the --workdir of a run."
        )
    return load_pretrained(config, objective.setup.model.num_classes, classifier_seed=None, class_names=class_names)


def _load_whole(config: ConfigDict, objective: Objective, *, classifier_seed: int | None) -> dict[str, Any] | None:
    """Reads the variables of a detector or segmenter; None: the objective is none, or the file has a backbone alone."""
    if not isinstance(objective, Dense):
        return None
    file = pretrained.read(config.model.pretrained)
    if (variables := objective.from_file(file, seed=classifier_seed)) is not None:
        log.info("Weights: %s, of a whole network.", config.model.pretrained)
    return variables


def load_initial(config: ConfigDict, objective: Objective, class_names: Sequence[str], mesh: Mesh) -> Any:
    """Reads what `config.model.pretrained` names: a file of weights, or the workdir of another run.

    Args:
        config: the configuration.
        objective: what will be trained.
        class_names: of the training data.
        mesh: of all devices.

    Returns:
        `params` and `batch_stats` of the model, and of heads beside it as far as they are there; of another run,
        without a classifier unless it is of the same classes. For an objective that trains the classifier alone there
        is none: it is a new one. Of a file of the objective's authors that has all that is needed to go on, also "ema",
        the variables of the teacher, and "extra", of the state without gradients. None, if nothing is named.

    Raises:
        DataError, CheckpointError: if they cannot be read or do not fit.
    """
    given = config.model.pretrained
    num_classes = objective.setup.model.num_classes
    if not given:
        if objective.classifier_alone:
            log.warning("model.pretrained is not set: the classifier learns from the features of random weights.")
        return None
    if not pretrained.is_workdir(given):
        if (whole := _load_whole(config, objective, classifier_seed=config.seed)) is not None:
            return whole
        if objective.classifier_alone:
            return load_pretrained(config, 0, classifier_seed=None)
        return _load_file(config, objective, class_names)
    checkpointer = Checkpointer(pathlib.Path(given).expanduser() / "checkpoints")
    step, variables = restore_any(checkpointer, mesh, config.model.pretrained_average)
    about = checkpointer.about(step)
    log.info("Weights: step %d of %s, a %s.", step, given, about["config"]["model"]["name"])
    variables = pretrained.adapt_variables(config.model.name, variables, all_model_options(config, num_classes))
    _check_model(config, objective, about["config"]["model"]["name"], variables)
    same = list(about["class_names"]) == list(class_names) and _told_apart(about, objective)
    dropped = classifier(objective) if not same or objective.classifier_alone else ()
    variables["params"] = _without(variables["params"], dropped)
    _check_heads(config, objective, about["config"]["objective"]["name"], variables, dropped)
    if pooled_norm(objective) and "fc_norm" not in variables["params"]:
        log.info("The norm of averaged features is a new one: that run normalizes all tokens.")
    if lacking := set(classifier(objective)) - set(masks.all_paths(variables["params"])):
        log.info("The classifier is a new one (%s): that run has another one, or none.", ", ".join(sorted(lacking)))
    return variables


def _told_apart(about: Mapping[str, Any], objective: Objective) -> bool:
    """Returns whether a run tells as many classes apart as an objective does."""
    if isinstance(objective, Dense):  # whose model has no classifier
        return (about["config"]["model"]["num_classes"] or about["num_classes"]) == objective.num_classes
    return about["num_classes"] == objective.setup.model.num_classes


def _check_model(config: ConfigDict, objective: Objective, theirs: str, variables: Mapping[str, Any]) -> None:
    """Raises a DataError if a run of another model has not the backbone of this one."""
    beside = (*heads(objective), *classifier(objective), *pooled_norm(objective), "head_norm/")
    found = dict(_shapes(variables))
    wanted = {path: shape for path, shape in _shapes(abstract_variables(objective)) if not path[1].startswith(beside)}
    different = [path for path, shape in wanted.items() if found.get(path) != shape]
    if theirs != config.model.name and different:
        raise DataError(
            f"{config.model.pretrained} is a run of {theirs}, and this is {config.model.name}: {len(different)} of its "
            f"{len(wanted)} arrays are missing there or have another shape, such as {different[0][1]}. Set model.name "
            "to that of the run, or model.pretrained to a run of this model."
        )


def _shapes(variables: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], tuple[int, ...]]]:
    """Yields (collection, path) and shape of every array."""
    for name, tree in variables.items():
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            yield (name, masks.path_string(path)), tuple(x.shape)


def _check_heads(
    config: ConfigDict, objective: Objective, theirs: str | None, variables: dict[str, Any], dropped: Sequence[str] = ()
) -> None:
    """Leaves out the heads of another method, which may have the same names; of the same one, checks that all fit.

    Args:
        config: the configuration.
        objective: what will be trained.
        theirs: name of the objective of the run that begins it; None: it learned from labels.
        variables: `params` and `batch_stats` of that run; changed.
        dropped: paths of parameters that have been left out of them, and will be new.

    Raises:
        DataError: if it is a run of the same method, and has others.
    """
    wanted, ours, given = heads_alone(objective), objective_name(config), config.model.pretrained
    if not (roots := set(wanted["params"])):
        return
    found = {name: {root: x for root, x in tree.items() if root in roots} for name, tree in variables.items()}
    if theirs != ours:
        for name, tree in found.items():
            variables[name] = {root: x for root, x in variables[name].items() if root not in tree}
        level = logging.WARNING if found["params"] else logging.INFO
        log.log(
            level,
            "%s is a run of %s, not of %s: only its backbone is used, and what is beside it is new (%s).",
            *(given, theirs or "classification", ours, ", ".join(sorted(roots))),
        )
        return
    shapes, expected = (
        {f"{name}/{path}": shape for (name, path), shape in _shapes({name: tree.get(name, {}) for name in wanted})}
        for tree in (found, wanted)
    )
    new = {f"params/{path}" for path in dropped}
    wrong = [f"{path} is missing" for path in expected if path not in shapes and path not in new]
    wrong += [f"{path} is left over" for path in shapes if path not in expected]
    wrong += [
        f"{path} has the shape {shape}, not {expected[path]}"
        for path, shape in shapes.items()
        if shape != expected.get(path, shape)
    ]
    if wrong:
        raise DataError(
            f"{given}: {len(wrong)} arrays beside the backbone do not fit, such as {'; '.join(wrong[:3])}: set the "
            "options of the objective to those of that run."
        )


def _load_file(config: ConfigDict, objective: Objective, class_names: Sequence[str]) -> dict[str, Any]:
    """Reads what a file has for a training: the model, and all that is beside it, if it is the objective's."""
    num_classes = objective.setup.model.num_classes
    file, official = pretrained.read(config.model.pretrained), objective.official
    beside = pretrained.load_heads(file, heads_alone(objective), official, objective_name(config))

    def load(part: pretrained.WeightFile, heads: Mapping[str, Any]) -> dict[str, Any]:
        variables = load_pretrained(
            config, num_classes, classifier_seed=config.seed, class_names=class_names, file=part
        )
        return {name: {**variables[name], **heads[name]} for name in ("params", "batch_stats")}

    if not beside.found:
        return load(file, beside.heads)
    if beside.teacher is None:
        given = load(file, beside.heads)
    else:
        network, teacher = pretrained.networks(file, official)
        given = {**load(network, beside.heads), "ema": load(teacher, beside.teacher)}
    try:
        return objective.from_official(given, beside.state)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def _without(tree: Mapping[str, Any], paths: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Returns a nested dict without what it has at some paths."""
    kept = {name: value for name, value in tree.items() if prefix + name not in paths}
    return {
        name: _without(value, paths, f"{prefix}{name}/") if isinstance(value, Mapping) else value
        for name, value in kept.items()
    }


def restore_any(checkpointer: Checkpointer, mesh: Mesh, average: bool | None = None) -> tuple[int, dict[str, Any]]:
    """Restores the variables of another run's latest whole checkpoint, whatever they are of.

    Args:
        checkpointer: of the other run.
        mesh: every device of it holds them in full.
        average: their moving averages; None: if the run kept some.

    Returns:
        the step, and `params` and `batch_stats`.

    Raises:
        CheckpointError: if there is none, or no moving average where that is asked for.
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
    if average and "ema" not in restored:
        raise CheckpointError(
            f"The run of {checkpointer.directory} keeps no moving averages: leave model.pretrained_average unset."
        )
    kept = restored if average is False else restored.get("ema", restored)
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
    if any(name.startswith("model/extra/") for name in about["arrays"]):  # it is stored with them, and must be read too
        item["extra"] = jax.eval_shape(objective.init_extra, shapes)
    layouts = partition.layouts(partition_rules(config, mesh), mesh, shapes["params"], item)
    restored = checkpointer.restore_item(step, "model", sharding.abstract(item, layouts))
    variables = {"": {name: restored[name] for name in shapes}}
    if "ema" in restored:
        variables["ema_"] = restored["ema"]
    return objective, variables
