"""Weights that detection and segmentation start from: of a backbone, of a whole network, and of other runs."""

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import optax
import pytest

from vision_jax import build, pretrained, recipes
from vision_jax import config as config_lib
from vision_jax.config import store
from vision_jax.dense import weights
from vision_jax.devices import sharding
from vision_jax.errors import DataError
from vision_jax.optim import masks
from vision_jax.runtime.checkpoint import Checkpointer

NAMES = ["ant", "bee", "cat"]


def config_of(name: str, **fields: Any) -> Any:
    """Returns a configuration on ResNet-18."""
    if name == "classification":
        config = config_lib.default_config()
        config.model.name = "resnet18"
    else:
        options = {"head": "linear"} if name == "segmentation" else {"channels": 32}
        config = recipes.scenes("resnet18", name, **options)
    config.update({"batch_size": 4, "total_steps": 4})
    config.schedule.warmup_epochs = 0.0
    config.update_from_flattened_dict(fields)
    return config


def objective_of(config: Any, num_classes: int) -> Any:
    return build.make_objective(config, num_classes, config_lib.make_plan(config, 100))


@functools.cache
def variables_of(name: str, num_classes: int, seed: int) -> dict[str, Any]:
    """Random variables, with statistics that are no zeros and ones."""
    of = objective_of(config_of(name), num_classes)
    shapes = build.abstract_variables(of)
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.uniform(0.5, 1.5, x.shape).astype(np.float32), shapes)


def begun(config: Any, class_names: list[str]) -> tuple[dict[str, np.ndarray], Any]:
    """Returns what a training begins with, by collection and path."""
    of = objective_of(config, len(class_names))
    given = build.load_initial(config, of, class_names, sharding.make_mesh(config.mesh))
    missing = (*build.heads(of), *build.classifier(of))
    variables = jax.jit(lambda given: build.initialize(of, jax.random.key(0), given, missing))(given)
    return flat(variables), of


def flat(variables: Any) -> dict[str, np.ndarray]:
    return {
        f"{name}/{masks.path_string(path)}": np.asarray(x)
        for name in ("params", "batch_stats")
        for path, x in jax.tree_util.tree_leaves_with_path(variables[name])
    }


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> set[str]:
    """Returns the paths of equal arrays."""
    return {path for path, x in one.items() if path in other and np.array_equal(x, other[path])}


def beside(paths: Any) -> set[str]:
    return {path for path in paths if path.split("/")[1] in ("neck", "head", "aux_head")}


@pytest.mark.parametrize("name", ["retinanet", "segmentation"])
def test_a_file_of_the_backbone(name: str, tmp_path: pathlib.Path):
    """Such as one of ImageNet: all of the backbone is that of the file, and the rest is new."""
    whole = variables_of("classification", 7, 1)
    path = tmp_path / "resnet18.npz"
    np.savez(path, **pretrained.to_torch("resnet18", whole, library="timm"))
    found, _ = begun(config_of(name, **{"model.pretrained": str(path)}), NAMES)
    assert same(found, flat(whole)) == found.keys() - beside(found)


@pytest.mark.parametrize("name", ["retinanet", pytest.param("fcos", marks=pytest.mark.exhaustive), "segmentation"])
def test_a_file_of_a_whole_network_of_other_classes(name: str, tmp_path: pathlib.Path):
    """By torchvision's names: all but the classifier is that of the file; of the same classes, that too."""
    theirs = variables_of(name, 5, 2)
    path = tmp_path / "whole.npz"
    np.savez(path, **weights.to_torch(objective_of(config_of(name), 5).network, theirs))
    config = config_of(name, **{"model.pretrained": str(path)})
    found, of = begun(config, NAMES)
    new = {f"params/{path}" for path in build.classifier(of)}
    assert 1 < len(new) <= 2
    assert same(found, flat(theirs)) == found.keys() - new
    found, _ = begun(config, [*NAMES, "dog", "elk"])
    assert same(found, flat(theirs)) == found.keys()


def run_of(directory: pathlib.Path, name: str, num_classes: int, class_names: list[str], seed: int) -> dict[str, Any]:
    """Writes a checkpoint as a run does, and returns its variables."""
    variables, config = variables_of(name, num_classes, seed), config_of(name)
    of = objective_of(config, num_classes)
    state = jax.jit(lambda given: build.create_state(of, optax.sgd(0.1), seed=0, given=given))(variables)
    as_json = json.loads(store.to_json(config))
    about = {"config": as_json, "num_classes": num_classes, "class_names": class_names}
    with Checkpointer(directory / "checkpoints") as checkpointer:
        checkpointer.save(0, state, about)
    return flat(variables)


@pytest.mark.parametrize("name", ["retinanet", pytest.param("segmentation", marks=pytest.mark.exhaustive)])
def test_a_run_that_classifies(name: str, tmp_path: pathlib.Path):
    theirs = run_of(tmp_path, "classification", 3, NAMES, 3)  # of the same classes, which are no boxes
    found, _ = begun(config_of(name, **{"model.pretrained": str(tmp_path)}), NAMES)
    assert same(found, theirs) == found.keys() - beside(found)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["retinanet", "segmentation"])
def test_a_run_of_the_same_method(name: str, tmp_path: pathlib.Path):
    """Of the same classes it gives all; of as many others, and of more, all but the classifier."""
    theirs = run_of(tmp_path, name, 3, NAMES, 4)
    config = config_of(name, **{"model.pretrained": str(tmp_path)})
    found, of = begun(config, NAMES)
    assert same(found, theirs) == found.keys()
    new = {f"params/{path}" for path in build.classifier(of)}
    for names in (["dog", "elk", "fox"], [*NAMES, "dog"]):
        found, _ = begun(config, names)
        assert same(found, theirs) == found.keys() - new


@pytest.mark.exhaustive
def test_runs_of_other_methods_and_other_heads(tmp_path: pathlib.Path):
    """Of another method the backbone alone is taken; other channels are an error in one line."""
    theirs = run_of(tmp_path, "retinanet", 3, NAMES, 5)
    found, _ = begun(config_of("fcos", **{"model.pretrained": str(tmp_path)}), NAMES)
    assert same(found, theirs) == found.keys() - beside(found)
    config = config_of("retinanet", **{"model.pretrained": str(tmp_path), "objective.channels": 64})
    with pytest.raises(DataError, match="arrays beside the backbone do not fit") as raised:
        begun(config, NAMES)
    assert "\n" not in str(raised.value)
    config = config_of("retinanet", **{"model.pretrained": str(tmp_path), "model.name": "resnet34"})
    with pytest.raises(DataError, match="is a run of resnet18, and this is resnet34"):
        begun(config, NAMES)
