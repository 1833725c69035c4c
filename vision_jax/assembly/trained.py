"""A trained model, ready to be used: its weights on the devices, and the preprocessing that they expect."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Container, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import config as config_lib
from vision_jax import pretrained
from vision_jax.assembly import dense_files
from vision_jax.assembly.inputs import make_eval_transform, make_preprocessing
from vision_jax.assembly.models import check_sizes, make_objective, model_options
from vision_jax.assembly.states import partition_rules
from vision_jax.assembly.weights import load_pretrained, load_trained, restore_variables
from vision_jax.config import command_line
from vision_jax.config.plan import objective_name
from vision_jax.config.validation import SOURCES
from vision_jax.data.sources import OWN_SOURCES, digest_of
from vision_jax.data.transforms import Preprocessing
from vision_jax.devices import partition, sharding
from vision_jax.errors import CheckpointError, ConfigError, check_no_url
from vision_jax.evaluators import EVALUATORS
from vision_jax.models import registry
from vision_jax.objectives import OBJECTIVES, Objective
from vision_jax.objectives.base import Variables
from vision_jax.runtime import digests
from vision_jax.runtime.checkpoint import Checkpointer, choose_checkpoints

log = logging.getLogger(__name__)

# What `data.model_input` sets.
_MODEL_INPUT = ("image_size", "channels", "mean", "std", "eval_crop", "eval_filter")


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with weights.

    Attributes:
        config: describes the model and the images that it expects.
        objective: has the module, and the heads of a training beside it.
        variables: its `params` and `batch_stats`, on the devices of `mesh`.
        class_names: one for each class; empty: unknown.
        origin: where the weights are from, for a person.
        mesh: of all devices.
        step: of the checkpoint; None: they are not of a run.
        averaged: they are the moving average of the run's weights.
    """

    config: ConfigDict
    objective: Objective
    variables: Variables
    class_names: tuple[str, ...]
    origin: str
    mesh: Mesh
    step: int | None = None
    averaged: bool = False

    @property
    def name(self) -> str:
        """Of the architecture."""
        return self.config.model.name

    @property
    def model(self) -> nn.Module:
        """The module, for `model.apply(variables, images, train=False)`."""
        return self.objective.setup.model

    @property
    def dense(self) -> str:
        """What it finds in images: "boxes" or "masks"; "": it is a model of whole images."""
        return self.objective.dense

    @property
    def num_classes(self) -> int:
        """Number of logits, of an image, a box or a pixel; 0: it has no classifier."""
        counted: Any = self.objective if self.dense else self.objective.setup.model
        return counted.num_classes

    @property
    def preprocessing(self) -> Preprocessing:
        """Of images, as in evaluation. Labels are not copied."""
        return make_preprocessing(self.config)

    @functools.cached_property
    def digest(self) -> str:
        """What tells this model, its weights and their preprocessing from others, however they are sharded."""
        arrays = digests.describe(dict(self.variables))
        preprocessing = make_eval_transform(self.config) if self.dense else self.preprocessing
        return digest_of(self.name, model_options(self.config), preprocessing, arrays)


def checkpoint_config(about: Mapping[str, Any]) -> ConfigDict:
    """Returns the configuration of a checkpoint, with a mesh that suits the devices that there are.

    Raises:
        ConfigError: if it names what this version does not know, or a config file registers that has not been read.
    """
    config = config_lib.from_dict(about["config"])
    _check_registered(config)
    try:
        sharding.mesh_axes(config.mesh, jax.device_count())
    except ConfigError as error:
        log.warning("The mesh of the training is not for these devices, so batches alone are divided. %s", error)
        config_lib.reset_mesh(config)
    return config


def _check_registered(config: ConfigDict) -> None:
    """Checks that what a config file may have registered for a run is there when the run is used.

    Raises:
        ConfigError: if it is not.
    """
    kinds = {f"evals.{name}.kind": kind for name in config.evals if (kind := config.evals[name].get("kind"))}
    names: dict[str, tuple[str | None, Container[str]]] = {
        "model.name": (config.model.name, {*registry.list_models(), *registry.aliases()}),
        "objective.name": (config.objective.name, OBJECTIVES),
        "data.source": (config.data.source, {*SOURCES, *OWN_SOURCES}),
        **{path: (kind, EVALUATORS) for path, kind in kinds.items()},
    }
    for path, (name, known) in names.items():
        if name is not None and name not in known:
            raise ConfigError(
                f"The run has {path}={name}, which this package does not have. If its config file registers it, pass "
                "that: --config=FILE."
            )


def from_workdir(
    workdir: str | pathlib.Path,
    step: int | str | None = None,
    weights: str | None = None,
    overrides: Sequence[str] = (),
    *,
    needs_data: bool = True,
) -> TrainedModel:
    """Restores a checkpoint of a run.

    Args:
        workdir: of the run.
        step: of the checkpoint, or "best"; None: the latest that is whole.
        weights: "raw", or "ema": their moving average; None: that if there is one.
        overrides: fields of its configuration that are to be others, such as --config.data.eval_size=288.
        needs_data: False: if the folder of its data is not here, its source becomes `synthetic`.

    Raises:
        CheckpointError: if there is no such checkpoint, or it does not fit.
        ConfigError: for an override that cannot be used.
    """
    check_no_url("The workdir", str(workdir))
    checkpointer = Checkpointer(pathlib.Path(workdir).expanduser() / "checkpoints")

    def restore(candidate: int) -> tuple[ConfigDict, Mesh, Objective, dict[str, dict[str, Any]]]:
        config = checkpoint_config(checkpointer.about(candidate))
        if not needs_data and config.data.dir and not pathlib.Path(config.data.dir).expanduser().is_dir():
            without_data(config)
        config = _settle(config, overrides)
        mesh = sharding.make_mesh(config.mesh)
        return config, mesh, *restore_variables(checkpointer, candidate, config, mesh)

    candidates = choose_checkpoints(checkpointer, checkpointer.directory.parent, step)
    chosen, (config, mesh, objective, variables) = checkpointer.restore_first(candidates, restore)
    check_sizes(config, objective.setup.model, train=False)
    prefix = {"raw": "", "ema": "ema_", None: "ema_" if "ema_" in variables else ""}[weights]
    if prefix not in variables:
        raise CheckpointError(f"The checkpoint of step {chosen} in {workdir} has no moving average: use --weights=raw.")
    about = checkpointer.about(chosen)
    origin = f"step {chosen} of {workdir}" + (", EMA" if prefix else "")
    names = tuple(about["class_names"])
    return TrainedModel(config, objective, variables[prefix], names, origin, mesh, chosen, bool(prefix))


def finds_of_workdir(workdir: str | pathlib.Path, step: int | str | None = None) -> str:
    """Returns what a run finds in images, "boxes" or "masks"; "": it is of whole images.

    Raises:
        CheckpointError: if there is no such checkpoint.
    """
    checkpointer = Checkpointer(pathlib.Path(workdir).expanduser() / "checkpoints")
    candidates = choose_checkpoints(checkpointer, checkpointer.directory.parent, step)
    _, found = checkpointer.restore_first(candidates, lambda candidate: checkpointer.about(candidate)["config"])
    config = config_lib.from_dict(found)
    _check_registered(config)
    return OBJECTIVES[objective_name(config)].dense


def from_file(
    name: str,
    path: str,
    class_names: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    classifier: bool = True,
) -> TrainedModel:
    """Reads published weights, with the preprocessing that timm has for them.

    Args:
        name: of the model; see `vision_jax.list_models`. Or torchvision's of a detector or segmenter; see
            `vision_jax.dense.networks`.
        path: of the weights; see `pretrained.load`.
        class_names: of the weights' classes; empty: what the file says, or ImageNet's if there are 1,000.
        overrides: fields of the configuration that are to be others, such as --config.data.eval_size=288.
        classifier: False: without it, whether the weights have one or not.

    Raises:
        DataError: if the weights cannot be read or do not fit, or there are not as many names as classes.
        ConfigError: for an unknown model, or an override that cannot be used.
    """
    if name in dense_files.NAMES:
        return _from_dense_file(name, path, class_names, overrides)
    config = config_lib.default_config()
    config.model.name, config.model.pretrained, config.data.model_input = name, path, True
    config.data.source = "synthetic"  # which needs no data: overrides may name some
    config = _settle(config, overrides)
    num_classes, names = pretrained.classes_of(name, path) if classifier else (0, ())
    if class_names and num_classes and len(class_names) != num_classes:
        raise ConfigError(f"There are {len(class_names)} names of classes, and {path} has {num_classes} classes.")
    if num_classes == len(pretrained.imagenet_classes()):
        names = names or pretrained.imagenet_classes()
    config.model.num_classes = num_classes or None
    objective = make_objective(config, num_classes)
    check_sizes(config, objective.setup.model, train=False)
    variables = load_pretrained(config, num_classes, classifier_seed=None)
    return _placed(config, objective, variables, class_names or names, path)


def _from_dense_file(name: str, path: str, class_names: Sequence[str], overrides: Sequence[str]) -> TrainedModel:
    """Reads torchvision's weights of a detector or segmenter, with the sizes of images that torchvision has for it."""
    config, num_classes, names = dense_files.describe(name, path)
    if class_names and len(class_names) != num_classes:
        raise ConfigError(f"There are {len(class_names)} names of classes, and {path} has {num_classes} classes.")
    config = _settle(config, overrides)
    objective = make_objective(config, num_classes)
    check_sizes(config, objective.setup.model, train=False)
    return _placed(config, objective, load_trained(config, objective, ()), class_names or names, path)


def _placed(
    config: ConfigDict, objective: Objective, variables: Variables, class_names: Sequence[str], path: str
) -> TrainedModel:
    """Returns a model with weights of a file, laid out on all devices."""
    mesh = sharding.make_mesh(config.mesh)
    layouts = partition.layouts(partition_rules(config, mesh), mesh, variables["params"], variables)
    placed = sharding.place(variables, layouts)
    return TrainedModel(config, objective, placed, tuple(class_names), path, mesh)


def without_data(config: ConfigDict) -> None:
    """Lets a configuration name data that is always there, of the kind that its objective learns from."""
    if not OBJECTIVES[objective_name(config)].dense:
        config.data.source = "synthetic"
        return
    config.data.source = "scenes"
    defaults = config_lib.default_config().data.dense
    for field in ("categories", "category_ids", "reduce_zero_label", "skip_bad"):  # which are of other sources
        config.data.dense[field] = defaults[field]


def _settle(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Returns a configuration with what `data.model_input` asks for, and then the overrides; checked."""
    if config.data.model_input:
        asked = config_lib.resolve(config).data
        with config.ignore_type():
            config.data.update({name: asked[name] for name in _MODEL_INPUT})
        config.data.model_input = False  # it has been done, and would undo overrides
    # Fields that are not set have types until they are resolved, which flags need.
    config = config_lib.resolve(command_line.override(config, overrides))
    config_lib.validate(config, jax.device_count(), train=False)
    return config
