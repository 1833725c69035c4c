"""Every file in configs/ makes training steps, without data and with few blocks."""

import dataclasses
import importlib.util
import pathlib
import re
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vision_jax import build, models
from vision_jax import config as config_lib
from vision_jax.data.views import Field, View
from vision_jax.devices import sharding
from vision_jax.objectives import Dense, Objective, Pairs

DIRECTORY = pathlib.Path(__file__).parent.parent / "configs"
# Besides the first one of each file, those with another kind of step. The rest is left to the exhaustive run.
ALWAYS = ("deit:small_distilled", "composer:hot", "vit:augreg_s16")
# Files whose first one is left to it too: others that are traced here have the same kind of step.
RARELY = (
    *("ares", "fast_adversarial", "free_adversarial", "revisiting_at", "robust_resnet50", "trades"),  # attacks
    *("barlow_twins", "byol", "mocov2", "mocov3", "semi_supervised", "simclr", "simsiam", "swav", "vicreg"),
    *("fcn", "fcos", "retinanet", "upernet"),
    *("bit", "bit_hyperrule", "cifar", "composer", "convnext", "deit", "densenet", "efficientnet", "ffcv"),
    *("finetune", "finetune_mocov3", "finetune_simmim", "fixres", "flax_resnet50", "inception", "mixer"),
    *("mobilenetv3", "resnet50_rsb", "torchvision_v2", "vit", "vtab"),
)


def load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, DIRECTORY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipes(*, only_first: bool = False) -> list:
    """Returns the names of all recipes, `file:variant`."""
    result = []
    for path in sorted(DIRECTORY.glob("*.py")):
        for i, variant in enumerate(getattr(load(path.stem), "VARIANTS", [""])):
            name = f"{path.stem}:{variant}".rstrip(":")
            if i == 0 or not only_first:
                often = (i == 0 and path.stem not in RARELY) or name in ALWAYS
                marks = [] if often else [pytest.mark.exhaustive]
                result.append(pytest.param(name, marks=marks, id=name))
    return result


def reduced(recipe: str) -> ConfigDict:
    """Returns the configuration of a recipe for twenty steps of eight made-up examples."""
    name, _, variant = recipe.partition(":")
    config = config_lib.resolve(load(name).get_config(*filter(None, [variant])))
    config.batch_size, config.total_steps, config.schedule.warmup_steps = 8, 20, 1
    config.data.source, config.data.synthetic_train_examples = "synthetic", 16
    config.data.label = config.data.train_list = None  # which made-up images do not have
    config_lib.validate(config, num_devices=1)
    return config


def make(config: ConfigDict) -> tuple[build.Program, object]:
    """Returns the program of a model with one block a stage, and the shapes of the objective's constants."""
    plan = config_lib.make_plan(config, 16)
    objective = build.make_objective(config, config.model.num_classes or 10, plan)
    options = build.all_model_options(config, objective.setup.model.num_classes)
    fields = models.registry.option_names(config.model.name)
    # Layers that are listed block by block are those that there are.
    config.optimizer.layers = tuple(x for x in config.optimizer.layers if not re.search(r"blocks/[1-9]", x))
    if "depths" in fields:
        options["depths"] = tuple(min(1, depth) for depth in models.create_model(config.model.name).depths)
    elif "stages" in fields:
        options["stages"] = tuple(stage[:1] for stage in models.create_model(config.model.name).stages)
    elif "depth" in fields:
        options["depth"] = 10 if config.model.name.startswith("wrn") else options.get("feature_blocks", 1)
    model = models.create_model(config.model.name, dtype=build.compute_dtype(config), **options)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    objective = dataclasses.replace(objective, setup=dataclasses.replace(objective.setup, model=model))
    return build.make_program(config, plan, objective, mesh), build.abstract_constants(objective, mesh)


def shapes(tree: object) -> object:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def batch_of(
    size: int, channels: int, objective: Objective, views: tuple[View, ...] = ()
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch; of several views if they are given, otherwise of one of this size."""
    fields = [view.fields(channels) for view in views or (View(size=size),)]
    if isinstance(objective, Pairs):
        fields.append({"tokens": Field((objective.context_length,), np.dtype(np.int32))})
    return {
        **{name: jax.ShapeDtypeStruct((8, *x.shape), x.dtype) for field in fields for name, x in field.items()},
        "label": jax.ShapeDtypeStruct((8,), np.int32),
        "mask": jax.ShapeDtypeStruct((8,), np.float32),
    }


def dense_batch(config: ConfigDict, *, train: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch on the largest canvas."""
    plan = config_lib.make_plan(config, 16)
    transform = build.make_transform(config, plan) if train else build.make_eval_transform(config)
    fields = {**transform.largest().fields(), "mask": Field((), np.dtype(np.float32))}
    return {name: jax.ShapeDtypeStruct((8, *x.shape), x.dtype) for name, x in fields.items()}


@pytest.mark.parametrize("recipe", recipes())
def test_a_step_gives_what_it_takes(recipe: str):
    """So there can be any number of them; and an evaluation at its own size."""
    config = reduced(recipe)
    program, constants = make(config)
    state = program.abstract_state
    for size in {config.data.image_size, *config.data.progressive_sizes[:1]}:
        views = program.objective.inputs() if type(program.objective).crops else ()
        batch = batch_of(size, config.data.channels, program.objective, views)
        if isinstance(program.objective, Dense):
            batch = dense_batch(config, train=True)
        after, metrics = jax.eval_shape(program.train_step, state, batch, constants)
        assert shapes(after) == shapes(state)
        assert {"loss", "grad_norm", "learning_rate", *program.objective.metrics} <= metrics.keys()
    evaluator = build.make_evaluators(config, program.objective, None, None)["val"]
    eval_step = evaluator.make_step(program.objective)
    batch = batch_of(config_lib.eval_size(config), config.data.channels, program.objective)
    if program.objective.classifies:
        assert jax.eval_shape(eval_step, {"": state.variables}, batch).keys() == {"loss", "top1", "top5", "count"}
    elif isinstance(program.objective, Dense):
        found = jax.eval_shape(eval_step, {"": state.variables}, dense_batch(config, train=False))
        of_kind = {"boxes": {"boxes", "scores", "labels", "index"}, "masks": {"words", "count"}}
        assert found.keys() == of_kind[program.objective.dense]
    elif isinstance(program.objective, Pairs):
        weights = jax.ShapeDtypeStruct((program.objective.embed_dim, 10), np.float32)
        found = jax.eval_shape(eval_step, ({"": state.variables}, {"": weights}), batch)
        assert found.keys() == {"loss", "top1", "top5", "count"}
    else:
        found = jax.eval_shape(eval_step, ({"": state.variables}, constants), batch)
        assert found.keys() == {*program.objective.metrics, "count"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("recipe", recipes(only_first=True))
def test_two_steps_are_taken(recipe: str):
    """On small images where the model takes them."""
    config = reduced(recipe)
    if config.model.name != "inception_v3":  # whose auxiliary classifier would have nothing left
        small = 96 if config.objective.name == "simmim" else 112  # a multiple of the squares that it hides
        config.data.image_size = min(config.data.image_size, small)
    config.data.eval_size = None
    config.data.dense.resize, config.data.dense.canvases = "squash", ((64, 64),)
    program, _ = make(config)
    state = program.initialize()
    step = jax.jit(program.train_step, compiler_options={"xla_backend_optimization_level": 0})
    before = jax.device_get(state.params)
    random = np.random.default_rng(0)
    for _ in range(2):
        views = program.objective.inputs() if type(program.objective).crops else ()
        shapes_ = batch_of(config.data.image_size, config.data.channels, program.objective, views)
        batch = {key: random.integers(0, 256, x.shape, np.uint8) for key, x in shapes_.items() if x.dtype == np.uint8}
        if isinstance(program.objective, Dense):
            zeros = {key: np.zeros(x.shape, x.dtype) for key, x in dense_batch(config, train=True).items()}
            boxes = {"boxes": np.full(zeros["boxes"].shape, (10, 10, 50, 50), np.float32)} if "boxes" in zeros else {}
            images = random.integers(0, 256, zeros["image"].shape, np.uint8)
            batch = {**zeros, "image": images, "size": np.full((8, 2), 64, np.int32), **boxes}
        if isinstance(program.objective, Pairs):
            batch["tokens"] = random.integers(0, 256, shapes_["tokens"].shape, np.int32)
        state, metrics = step(state, {**batch, "label": np.arange(8, dtype=np.int32), "mask": np.ones(8, np.float32)})
        assert np.isfinite(metrics["loss"])
        assert np.isfinite(metrics["grad_norm"])
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, before, jax.device_get(state.params))))
